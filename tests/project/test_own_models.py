"""Models of one's own: the page's network trains, is measured and exported by its import path, if that is allowed."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from xmodal_kd.cli.main import call
from xmodal_kd.runtime import registry
from xmodal_kd.runtime.checkpoint import read_json

ROOT = Path(__file__).parents[2]
SMALL = ("compose={utterances: {train: 16, dev: 4, test: 4}, clips: [1, 2]}", f"path={ROOT / 'assets/digits'}")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the mynet.py of docs/own_models.md; what the command allows and finds is forgotten afterwards."""
    [code] = re.findall(r"```python\n(# mynet\.py\n.*?)```", (ROOT / "docs/own_models.md").read_text(), re.DOTALL)
    (tmp_path / "mynet.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(registry, "allowed_imports", set(), raising=True)
    return tmp_path


def test_a_network_by_its_import_path(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    own = ("student.model=mynet:Net", "student.params={width: 8}", "teacher=null", "objective=[{loss: ctc}]")
    sets = (*own, *(f"data.{key}" for key in SMALL), "train.steps=2", "train.batch_size=4")
    command = ["run", "smoke/speech", "--out", "run", "--quiet", "--json", *(x for s in sets for x in ("--set", s))]
    assert call(command) == 2
    assert "allow it with --allow-import mynet" in capfd.readouterr().err
    assert not (folder / "run").exists()
    assert call([*command, "--allow-import", "mynet"]) == 0
    card = read_json(folder / "run/student/card.json")
    assert card["model"] == "mynet:Net" and card["params"] == {"width": 8}
    exported = read_json(folder / "run/report.json")["export"]
    assert all(entry["bytes"] > 0 for name, entry in exported.items() if name.endswith(".onnx")) and len(exported) > 1
    assert call(["eval", "run", "--split", "dev", "--allow-import", "mynet"]) == 0
    misspelt = [*command, "--allow-import", "mynet", "--set", "student.params={widht: 8}", "--out", "other"]
    capfd.readouterr()
    assert call(misspelt) == 2 and "nearest: width" in capfd.readouterr().err
