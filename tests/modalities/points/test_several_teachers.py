"""Further teachers with views and classes of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from points_small import VIEWS, adapter, batch_of, equal, run, smallest

from xmodal_kd.modalities.points.adapter import PointsAdapter
from xmodal_kd.modalities.points.data.config import PointsData
from xmodal_kd.modalities.points.data.frame import CLASSES
from xmodal_kd.runtime.checkpoint import read_json
from xmodal_kd.runtime.errors import UserError

CAMERA = {"teachers": {"camera": VIEWS["image"]}}
FEW = ("tree", "car", "ground")


def ready(made: PointsAdapter, role: str = "student") -> PointsAdapter:
    made.begin(role, range(len(made.data("train"))))
    return made


@pytest.mark.parametrize("epoch", [0, 3])
def test_a_camera_beside_a_scan_says_what_it_would_say_alone(epoch: int) -> None:
    """Row by row on the student's rows, whatever the student's augmentation."""
    alone, beside = ready(adapter("image")), ready(adapter("scan", **CAMERA))
    model = smallest(alone, "teacher").eval()
    batches = [batch_of(made.data("train"), (0, 1), epoch) for made in (alone, beside)]
    assert equal(batches[0]["student"], batches[1]["student"])
    one = alone.signals("teacher", model, batches[0])
    two = beside.signals("teacher-camera", model, batches[1])
    for name in ("logits", "class_weight"):
        mask = one.layout(name).mask
        assert torch.equal(mask, two.layout(name).mask) and mask.any() and not mask.all()
        torch.testing.assert_close(one.rows(name)[mask], two.rows(name)[mask])
    with pytest.raises(UserError, match=r"teacher-camera: model 'range_unet' sees range, data\.teachers\.camera\.sees"):
        beside.build("teacher-camera", "range_unet", {"width": 4, "levels": 2})


def test_a_teacher_without_a_view_of_its_own_sees_what_the_teacher_sees() -> None:
    made = ready(adapter("scan", **CAMERA))
    assert made.view("teacher-second") == made.view("teacher") and made.view("teacher-camera").sees == "image"
    model, batch = smallest(made, "teacher").eval(), batch_of(made.data("train"))
    first, second = (made.signals(role, model, batch).rows("logits") for role in ("teacher", "teacher-second"))
    assert torch.equal(first, second)


def test_a_teacher_that_learns_sees_its_own_view_augmented() -> None:
    made = ready(adapter("scan", **CAMERA), "teacher-camera")
    model, batch = smallest(made, "teacher-camera").train(), batch_of(made.data("train"), epoch=2)
    said = made.signals("teacher-camera", model, batch)
    assert len(said.rows("logits")) == 2 * 24 * 64, "pixels of two photographs"
    assert not batch["repeats"]


def test_a_teacher_of_some_classes_answers_in_all_of_them(tmp_path: Path) -> None:
    made = ready(adapter({**VIEWS["scan"], "classes": FEW}), "teacher")
    model, batch = smallest(made, "teacher"), batch_of(made.data("train"))
    known = torch.tensor([name in FEW for name in CLASSES])
    said = made.signals("teacher", model.train(), batch)
    rows, (labels, layout) = said.rows("logits"), said["labels"]
    assert rows[:, known].isfinite().all() and (rows[:, ~known] == -torch.inf).all()
    assert sorted({CLASSES[i] for i in labels[layout.mask].tolist()}) == sorted(FEW), "it learns no other label"

    taught = made.signals("teacher", model.eval(), batch)
    mask = taught.layout("logits").mask
    assert (taught.rows("logits")[mask][:, ~known] == -torch.inf).all()
    assert set(taught.rows("logits")[mask].argmax(dim=1).tolist()) <= {CLASSES.index(name) for name in FEW}
    made.save("teacher", model, tmp_path)
    assert read_json(tmp_path / "card.json")["classes"] == list(FEW)
    again = made.load("teacher", tmp_path).eval()
    torch.testing.assert_close(made.signals("teacher", again, batch).rows("logits"), taught.rows("logits"))
    with pytest.raises(UserError, match="its class 0 is 'tree', here it is 'ground'"):
        adapter("scan").load("teacher", tmp_path)


@pytest.mark.parametrize(("more", "reason"), [
    ({"teacher": {"sees": "range", "classes": ["ground", "cat"]}}, "no class is called 'cat'"),
    ({"teacher": {"sees": "range", "classes": ["car"]}}, "give at least two, each once"),
    ({"student": {"sees": "range", "classes": ["car", "tree"]}}, "a student tells all classes apart"),
])  # fmt: skip
def test_what_cannot_be_is_refused(more: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        PointsData.model_validate(more)


@pytest.mark.full
def test_a_scan_and_a_camera_teach_a_sparse_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole run: every teacher is trained on its own view, scored, and weighs as the mean says."""
    monkeypatch.setattr("xmodal_kd.run.runner.LATENCY", 0.01)
    camera = "{camera: {model: image_unet, params: {width: 4, levels: 2}, train: {steps: 2, batch_size: 4}}}"
    sets = [
        "scheme=average", f"teachers={camera}", "data.teachers={camera: {sees: image, columns: 64}}",
        "data.image=[24, 64]", "self_training=false",
    ]  # fmt: skip
    assert run(tmp_path / "run", *sets) == 0
    found = read_json(tmp_path / "run" / "report.json")
    assert list(found["roles"]) == ["teacher", "teacher-camera", "control", "student"]
    weights = found["taught"]["student"]["weights"]
    assert weights["teacher"] > 0.5 > weights["camera"] > 0, "where no pixel shows a point the scan teaches alone"
