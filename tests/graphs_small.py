"""The smoke recipe of graphs, made smaller."""

from __future__ import annotations

from pathlib import Path

from xmodal_kd.cli.main import call

DATA = {
    "sources": "simulator", "simulator": {"nodes": 120, "classes": 3, "degree": 4.0, "features": 5},
    "split": {"per_class": 4, "dev": 20, "test": 30},
}  # fmt: skip
SETS = (
    f"data={DATA}", "teacher.params={width: 8, dropout: 0.5}", "teacher.train.steps=4", "teacher.train.eval_every=4",
    "student.params.width=4", "train.steps=4", "train.eval_every=4", "trackers=[]",
    "objective=[{loss: ce}, {loss: kd, params: {temperature: 1.0}}, {loss: hint, on: layers.0}]",
)  # fmt: skip


def run(out: Path, *more: str, command: str = "run") -> int:
    sets = [word for one in (*SETS, *more) for word in ("--set", one)]
    return call([command, "smoke/graphs", "--out", str(out), "--quiet", "--device", "cpu", *sets])
