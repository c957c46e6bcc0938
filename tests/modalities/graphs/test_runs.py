"""Whole runs: what they leave, a cached teacher, students that see neighbours, models of other data."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from graphs_small import run
from safetensors.torch import load_file

from xmodal_kd.adapter import panels
from xmodal_kd.modalities.graphs.adapter import GraphsAdapter
from xmodal_kd.modalities.graphs.data.section import GraphsData
from xmodal_kd.modalities.graphs.export.saved_folder import FP32, load_model
from xmodal_kd.models import onnx
from xmodal_kd.runtime.checkpoint import read_json
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams


def test_a_run_leaves_metrics_panels_and_onnx(trained: Path) -> None:
    report = read_json(trained / "report.json")
    assert list(report["roles"]) == ["teacher", "control", "self_training", "student"]
    for role in report["roles"].values():
        assert {"accuracy", "accuracy_interval", "nll"} <= role["metrics"].keys() and role["metrics"]["nodes"] == 30
    assert report["labels"]["teacher"]["labelled"] == 12 and report["labels"]["student"]["unlabelled"]
    session = onnx.session(trained / "student" / FP32, extra="graphs")
    x = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
    assert onnx.prove(load_model(trained / "student"), partial(onnx.run, session), x) <= 1e-4
    [panel] = panels.read(trained)
    assert panel.content["columns"] == ["neighbours", "teacher", "control", "student", "self_training"]
    assert all("neighbours" in row["cells"]["neighbours"][1] for row in panel.content["rows"])
    card = (trained / "student/README.md").read_text()
    assert "by its own features alone" in card and "model(torch.zeros(3, 5))" in card


def test_a_cached_teacher_says_the_same(trained: Path, tmp_path: Path) -> None:
    """To fp16. What a graph network says of a node hangs on more than the node, and no batch is the first one's."""
    assert run(tmp_path / "run", f"teacher={{path: {trained / 'teacher'}}}", "control=false", "cache={}") == 0
    live, cached = (load_file(folder / "student/model.safetensors") for folder in (trained, tmp_path / "run"))
    for name in live:
        torch.testing.assert_close(cached[name], live[name], rtol=1e-2, atol=1e-3)


def test_a_student_that_sees_its_peers(trained: Path, tmp_path: Path) -> None:
    sets = ("student={model: peer_aware, params: {width: 4, dropout: 0.5}}", "control=false", "data.inductive=true",
            f"teacher={{path: {trained / 'teacher'}}}")  # fmt: skip
    assert run(tmp_path / "run", *sets) == 0
    report = read_json(tmp_path / "run/report.json")
    assert list(report["export"]) == ["model.safetensors"] and report["labels"]["student"]["samples"] == 90
    assert "degree=torch.tensor" in (tmp_path / "run/student/README.md").read_text()


def test_models_of_other_data_are_refused(trained: Path, data: GraphsData) -> None:
    for change, says in (({"features": 6}, "sees 5 features of a node, the data has 6"),
                         ({"classes": 4}, "knows 3 classes, the data 4")):  # fmt: skip
        simulator = data.simulator.model_copy(update=change)
        made = GraphsAdapter(data.model_copy(update={"simulator": simulator}), Streams(1), 8)
        with pytest.raises(UserError, match=says):
            made.load("teacher", trained / "teacher")
    made = GraphsAdapter(data.model_copy(update={"hops": 1}), Streams(1), 8)
    with pytest.raises(UserError, match=r"data.hops: the teacher reads neighbours 2 edges away"):
        made.load("teacher", trained / "teacher")
