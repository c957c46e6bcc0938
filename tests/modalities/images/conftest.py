"""A finished run of the smoke recipe, made smaller, for the tests of images."""

from __future__ import annotations

from pathlib import Path

import pytest
from once import once

from xmodal_kd.cli.main import call

SETS = (
    "teacher.params={width: 4}", "teacher.train.steps=4", "teacher.train.eval_every=4", "student.params.width=2",
    "train.steps=4", "train.eval_every=4", "data={sources: digits, dev: 40, test: 60}",
    "objective=[{loss: ce}, {loss: kd}, {loss: hint, on: stages.1}, {loss: rkd, on: embedding}, "
    "{loss: sdd, on: cells}]",
)  # fmt: skip


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(out: Path) -> None:
        sets = [word for one in SETS for word in ("--set", one)]
        assert call(["run", "smoke/images", "--out", str(out), "--quiet", *sets]) == 0

    return once(tmp_path_factory, "images", make)
