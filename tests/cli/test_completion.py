"""Tab in a shell: the script that the shell loads, and what it is answered, by the program as it is installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = "import sys; sys.argv = ['xmodal-kd']; from xmodal_kd.cli.main import main; main()"


def ask(what: str, words: str = "") -> list[str]:
    environment = {**os.environ, "_XMODAL_KD_COMPLETE": what, "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout.splitlines()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shells_script(shell: str) -> None:
    assert "_XMODAL_KD_COMPLETE" in "\n".join(ask(f"source_{shell}"))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("xmodal-kd di", ["distil", "diff"]),
        ("xmodal-kd run smoke/sp", ["smoke/speech", "smoke/speech_losses"]),
        ("xmodal-kd new po", ["points"]),
        ("xmodal-kd list mo", ["models", "modalities"]),
        ("xmodal-kd diff --js", ["--json"]),
    ],
)
def test_what_bash_is_answered(words: str, expected: list[str]) -> None:
    assert ask("complete_bash", words) == expected
