"""What docs/tutorial_modality.md and the walk through CONTRIBUTING.md say is run: a modality, a loss, a scheme."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from xmodal_kd.cli.main import call
from xmodal_kd.losses import LOSSES
from xmodal_kd.runtime import registry
from xmodal_kd.runtime.checkpoint import read_json
from xmodal_kd.schemes import SCHEMES

ROOT = Path(__file__).parents[2]
QUICK = ("--quiet", "--set", "teacher.train.steps=40", "--set", "train.steps=20", "--set", "data.test=32")


def block(page: str, head: str) -> str:
    [code] = re.findall(rf"```\w+\n(# {re.escape(head)}\n.*?)```", (ROOT / page).read_text(), re.DOTALL)
    return str(code)


def commands(page: str, verb: str) -> list[list[str]]:
    """The page's command lines of a verb, as arguments."""
    text = (ROOT / page).read_text().replace("\\\n", " ")
    return [shlex.split(line)[1:] for line in text.splitlines() if line.startswith(f"xmodal-kd {verb} sines.yaml")]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the pages' files; what the command allows, finds and registers is forgotten afterwards."""
    for page, name in (("docs/tutorial_modality.md", "sines.py"), ("docs/tutorial_modality.md", "sines.yaml"),
                       ("CONTRIBUTING.md", "mine.py")):  # fmt: skip
        (tmp_path / name).write_text(block(page, name))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(registry, "allowed_imports", set(), raising=True)
    for table in (LOSSES, SCHEMES):
        monkeypatch.setattr(table, "_items", dict(table._items))
    for module in ("sines", "mine"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    return tmp_path


def test_a_modality_in_one_file(folder: Path) -> None:
    assert (folder / "sines.py").read_text().count("\n") < 120, "the page promises a short file"
    [run] = commands("docs/tutorial_modality.md", "run")
    assert call([*run, *QUICK]) == 0
    roles = read_json(folder / "runs/sines/report.json")["roles"]
    assert list(roles) == ["teacher", "control", "student"]
    assert all(0 < one["metrics"]["error"] < 1 for one in roles.values())
    assert call(["eval", "runs/sines", "--split", "dev", "--allow-import", "sines"]) == 0


def test_a_loss_and_a_scheme_in_one_file(folder: Path) -> None:
    [run] = commands("CONTRIBUTING.md", "run")
    assert call([*run, *QUICK]) == 0
    assert read_json(folder / "runs/sines/report.json")["scheme"]["name"] == "mine:Sharpened"
    [events] = (folder / "runs/sines/logs/student").iterdir()
    assert b"total_variation" in events.read_bytes(), "the term is logged by its name"
