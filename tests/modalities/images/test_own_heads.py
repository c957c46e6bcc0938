"""Two tasks of images with a head each on one network: whole runs, what is left, what is measured again."""

from __future__ import annotations

from pathlib import Path

import pytest

from xmodal_kd.cli.main import call
from xmodal_kd.modalities.images.use.classify import ImageClassifier
from xmodal_kd.runtime.checkpoint import read_json

SHORT = ("train.steps=6", "teacher.train.steps=4", "train.batch_size=32", "teacher.train.batch_size=32")


@pytest.mark.parametrize("name", ["lwf", "pdr"])
def test_both_classifiers_are_left(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out, sets = tmp_path / "run", [word for one in (f"scheme.name={name}", *SHORT) for word in ("--set", one)]
    assert call(["run", "smoke/own_heads", "--out", str(out), "--quiet", *sets]) == 0
    new, old = (ImageClassifier.from_pretrained(str(out / at)) for at in ("student", "student/old"))
    assert (new.card.classes, old.card.classes) == (tuple("56789"), tuple("01234"))
    report = read_json(out / "report.json")
    assert report["roles"]["teacher"]["metrics"] == {"accuracy": None}
    assert set(report["facts"]["accuracy on the old task"]) == set(report["roles"])
    capfd.readouterr()
    assert call(["eval", str(out), "--json"]) == 0
    assert '"teacher"' in capfd.readouterr().out
