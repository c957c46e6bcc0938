"""Small recipes whose terms are their point: they run, and the terms have a part."""

from __future__ import annotations

from pathlib import Path

import pytest

from xmodal_kd.cli.main import call
from xmodal_kd.runtime.checkpoint import read_json

SHORT = ["train.steps=6", "teacher.train.steps=2", "data.compose.utterances={train: 32, dev: 4, test: 4}"]


@pytest.mark.parametrize(("name", "parts"), [
    ("speech_losses", {"ctc", "inter_ctc_shared", "ctc_kd"}),
    pytest.param("tutornet", {"representation", "ctc", "kd"}, marks=pytest.mark.full),
])  # fmt: skip
def test_terms_of_a_recipe_are_learnt_from(name: str, parts: set[str], digits: Path, tmp_path: Path) -> None:
    sets = [word for one in [*SHORT, f"data.path={digits}", "control=false"] for word in ("--set", one)]
    assert call(["run", f"smoke/{name}", "--out", str(tmp_path / "run"), "--quiet", *sets]) == 0
    told = (tmp_path / "run/checkpoints/student/log.jsonl").read_text()
    assert all(f'"{part}"' in told for part in parts), told
    assert read_json(tmp_path / "run/report.json")["roles"]["student"]["metrics"]["wer"] >= 0
