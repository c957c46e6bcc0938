"""Signals of the roles: rows that stand beside each other, a teacher that stays as it is, weights of classes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from points_small import COLUMNS, IMAGE, SMALLEST, VIEWS, adapter, batch_of, smallest
from torch import Tensor, nn

from xmodal_kd.modalities.points.adapter import PointsAdapter, batches
from xmodal_kd.modalities.points.data.frame import CLASSES
from xmodal_kd.modalities.points.evaluate.metrics import Tally, confusion, miou
from xmodal_kd.objective.objective import Objective
from xmodal_kd.recipe.recipe import Optimizer, Term, Train
from xmodal_kd.runtime.checkpoint import digest, read_json, write_json
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.training.engine import Engine
from xmodal_kd.training.method import Distil

CPU = torch.device("cpu")


class Tells(nn.Module):
    """A teacher that says what it sees: its logits are its input's channels, padded to the classes."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))
        self.calls = 0

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        self.calls += 1
        shape = list(x.shape)
        shape[1] = len(CLASSES) - shape[1]
        return self.gain * torch.cat([x, x.new_zeros(shape)], dim=1)


def ready(made: PointsAdapter, role: str = "student") -> PointsAdapter:
    made.begin(role, range(len(made.data("train"))))
    return made


# ---------------------------------------------------------------- the teacher's rows


def test_what_a_scan_teacher_says_of_a_cell_is_of_the_place_that_the_student_sees_there() -> None:
    made = ready(adapter())
    batch = batch_of(made.data("train"), (0, 1), epoch=3)
    said = made.signals("teacher", Tells().eval(), batch)
    rows, layout = said["logits"]
    assert layout.kind == "pixel" and layout.grid == (16, COLUMNS) and (layout.mask == batch["student"]["valid"]).all()
    own = batch["student"]["inputs"].movedim(1, -1).reshape(-1, 5)
    torch.testing.assert_close(rows[layout.mask][:, [0, 3]], own[layout.mask][:, [0, 3]], rtol=1e-4, atol=1e-4)
    assert (rows[layout.mask][:, 1] - own[layout.mask][:, 1]).abs().max() > 0.1, "it saw the scan unturned"
    assert (rows[~layout.mask] == 0).all()


def test_what_a_scan_teacher_says_of_a_pixel_is_of_the_points_that_the_pixel_shows() -> None:
    made = ready(adapter("scan", "image", augment={"flip": True, "crop": 0.75}))
    source = made.data("train")
    rows, layout = made.signals("teacher", Tells().eval(), batch_of(source, (0, 1), epoch=1))["logits"]
    pixels = 18 * 48
    assert layout.grid == (18, 48) and 50 < layout.mask.sum() < 0.5 * len(layout.mask)
    for i in range(2):
        scan, seen = source.frames[i][0].scan, source.sample(i, 1).student
        shown = seen.element >= 0
        count = np.bincount(seen.element[shown], minlength=pixels)
        mean = np.bincount(seen.element[shown], scan.distance[shown], minlength=pixels) / np.maximum(count, 1)
        mask = layout.mask[i * pixels :][:pixels].numpy()
        assert (mask == (count > 0)).all() and count.max() > 1
        np.testing.assert_allclose(rows[i * pixels :][:pixels, 0].numpy()[mask] * 20, mean[mask], rtol=1e-4)


def test_an_image_teachers_answer_at_a_cell_is_of_the_pixel_that_shows_it() -> None:
    made = ready(adapter("image", "sparse"))
    source = made.data("train")
    batch = batch_of(source, (0, 1), epoch=1)
    rows, layout = made.signals("teacher", Tells().eval(), batch)["logits"]
    checked = 0
    for i in range(2):
        frame, seen = source.frames[i][0], source.sample(i, 1).student
        picture = frame.pictures[0]
        uv, _ = picture.camera.project(frame.scan.xyz)
        mask = layout.mask[i * 16 * COLUMNS :][: 16 * COLUMNS].numpy()
        for point in np.flatnonzero((seen.element >= 0) & mask[seen.element]):
            u, v = uv[point].astype(int)
            said = rows[i * 16 * COLUMNS + seen.element[point], :3].numpy()
            np.testing.assert_allclose(said, picture.rgb[v, u] / 255, atol=1e-6)
            checked += 1
    assert checked == layout.mask.sum() > 60


def test_points_that_the_teacher_sees_are_told_by_it_exactly() -> None:
    made = ready(adapter("scan", "points"))
    batch = batch_of(made.data("train"), (0, 1), epoch=2)
    rows, layout = made.signals("teacher", Tells().eval(), batch)["logits"]
    assert layout.kind == "point" and layout.grid is None and layout.mask.all()
    torch.testing.assert_close(rows[:, 0] * 20, batch["student"]["inputs"][:, 3], rtol=1e-4, atol=1e-3)


# ---------------------------------------------------------------- the teacher is frozen, and remembered


@pytest.mark.parametrize("teacher", ["scan", "image"])
def test_remembered_rows_are_those_of_a_fresh_pass(teacher: str) -> None:
    made = ready(adapter(teacher, "sparse"))
    model, tells = smallest(made, "teacher").eval(), Tells().eval()
    batch = batch_of(made.data("train"))
    with torch.no_grad():
        first = made.signals("teacher", model, batch, ["features"])
        again = made.signals("teacher", model, batch, ["features"])
        fresh = ready(adapter(teacher, "sparse")).signals("teacher", model, batch, ["features"])
    for name in ("logits", "features", "class_weight", "labels"):
        assert torch.equal(first.rows(name), again.rows(name)) and torch.equal(first.rows(name), fresh.rows(name))
    for epoch in (0, 1, 2):
        made.signals("teacher", tells, batch_of(made.data("train"), (1, 0, 3), epoch))
    assert tells.calls == 1, "the frames come in another order and turned, and the teacher is not asked again"


def test_remembered_rows_mix_with_new_ones_and_follow_their_frames() -> None:
    made, model = ready(adapter()), Tells().eval()
    for indexes in ((0, 1), (1, 2), (2, 0)):
        batch = batch_of(made.data("train"), indexes)
        plain = made.data("train").collate([made.data("train").sample(i, 0) for i in indexes])
        fresh = ready(adapter()).signals("teacher", model, plain)
        assert torch.equal(made.signals("teacher", model, batch).rows("logits"), fresh.rows("logits"))
    assert model.calls == 2 + 3


def test_rows_are_made_anew_when_the_teachers_weights_change_in_place() -> None:
    made, model = ready(adapter()), Tells().eval()
    batch = batch_of(made.data("train"))
    before = made.signals("teacher", model, batch).rows("logits")
    with torch.no_grad():
        model.gain.mul_(2)
    torch.testing.assert_close(made.signals("teacher", model, batch).rows("logits"), 2 * before)
    model.load_state_dict({"gain": torch.tensor(3.0)})
    torch.testing.assert_close(made.signals("teacher", model, batch).rows("logits"), 3 * before)
    assert model.calls == 3


def test_nothing_is_remembered_of_what_changes() -> None:
    """An augmented teacher view, the measured splits, a model that learns."""
    model = Tells().eval()
    made = ready(adapter(teacher_view="augmented"))
    for epoch in (0, 0, 1):
        made.signals("teacher", model, batch_of(made.data("train"), epoch=epoch))
    made = ready(adapter())
    for _ in range(2):
        made.signals("teacher", model, batch_of(made.data("dev")))
    assert model.calls == 5


def test_remembered_rows_hold_no_graph() -> None:
    made, model = ready(adapter()), smallest(ready(adapter()), "teacher").eval()
    batch = batch_of(made.data("train"))
    for _ in range(2):
        assert not made.signals("teacher", model, batch).rows("logits").requires_grad


# ---------------------------------------------------------------- classes


def test_class_weights_come_from_the_labelled_frames_alone() -> None:
    made = adapter(balance=0.5)
    source = made.data("train")
    lacking = next(i for i in range(6) if (source.count([i]) == 0).any())
    made.begin("student", [lacking])
    batch = batch_of(source)
    said = made.signals("student", smallest(made, "student"), batch)
    count = source.count([lacking]).astype(float)
    there = count > 0
    want = np.where(there, np.sqrt(count.max() / np.maximum(count, 1)), 1.0)
    known = said.layout("class_weight").mask
    labels = batch["student"]["labels"]
    assert (known == (labels >= 0)).all()
    assert (want[~there] == 1).all(), "a class that they lack"
    torch.testing.assert_close(said.rows("class_weight")[known], torch.tensor(want).float()[labels[known]])
    made.begin("student", range(6))
    again = made.signals("student", smallest(made, "student"), batch).rows("class_weight")
    assert not torch.equal(again, said.rows("class_weight"))


def test_without_balance_all_classes_weigh_the_same() -> None:
    made = ready(adapter(balance=0.0))
    said = made.signals("student", smallest(made, "student"), batch_of(made.data("train")))
    assert (said.rows("class_weight") == 1).all()


def test_the_teachers_class_weight_is_that_of_its_answer() -> None:
    made, model = ready(adapter()), Tells().eval()
    said = made.signals("teacher", model, batch_of(made.data("train")))
    answers = said.rows("logits").argmax(dim=1)
    weights = {int(a): float(w) for a, w in zip(answers, said.rows("class_weight"), strict=True)}
    assert len(weights) > 1 and len(set(weights.values())) > 1
    assert all(said.rows("class_weight")[answers == a].unique().numel() == 1 for a in weights)


# ---------------------------------------------------------------- a step with every model and view

TERMS = {
    "ce": Term(loss="ce", weights="class_weight"),
    "kd": Term(loss="kd", params={"temperature": 2.0}),
    "hint": Term(loss="hint", on="features"),
    "dn": Term(loss="dn", on="features"),
    "affinity": Term(loss="affinity", on="features", regions="supervoxels"),
}
MEETINGS = [
    ("scan", "sparse"), ("image", "sparse"), ("scan", "image"), ("scan", "points"), ("points", "sparse"),
    ("points", "points"), ("fused", "sparse"), ("image", "points"), ("points", "image"), ("image", "image"),
]  # fmt: skip


@pytest.mark.parametrize(("teacher", "student"), MEETINGS)
def test_every_model_learns_from_every_view(teacher: str, student: str, tmp_path: Path) -> None:
    """Two steps with terms of answers, features and regions; the teacher stays what it was to the bit."""
    made = ready(adapter(teacher, student, augment={"rotate": True, "flip": True, "shuffle": True}))
    roles = {"teacher": smallest(made, "teacher"), "student": smallest(made, "student")}
    before = {role: digest(model.state_dict().items()) for role, model in roles.items()}
    train = Train(steps=2, batch_size=2, optimizer=Optimizer(lr=1e-2))
    method = Distil(made, Objective(list(TERMS.values()), steps=2), train, Streams(1))
    engine = Engine(
        method, made.data("train"), roles, train, streams=Streams(1), accelerator=Accelerator(cpu=True),
        folder=tmp_path, quiet=True,
    )  # fmt: skip
    engine.fit()
    assert digest(roles["teacher"].state_dict().items()) == before["teacher"]
    assert not roles["teacher"].training and all(p.grad is None for p in roles["teacher"].parameters())
    assert digest(roles["student"].state_dict().items()) != before["student"]
    losses = [read for read in map(_numbers, engine.log.path.read_text().splitlines()) if read]
    assert losses and all(np.isfinite(v) for line in losses for v in line.values())


def _numbers(line: str) -> dict[str, float]:
    return {k: v for k, v in json.loads(line).items() if isinstance(v, float)}


# ---------------------------------------------------------------- measured


def test_roles_are_measured_on_the_rows_that_all_of_them_see() -> None:
    made = ready(adapter("image", "sparse"))
    models = {role: smallest(made, role).eval() for role in ("teacher", "student")}
    with torch.no_grad():
        found = {role: made.evaluate(role, model, "dev") for role, model in models.items()}
    rows = {role: f.metrics["rows"] for role, f in found.items()}
    assert rows["teacher"] == rows["student"] > 0
    assert [s.item for s in found["teacher"].scores] == [s.item for s in found["student"].scores]
    assert "miou_own" in found["student"].metrics and "miou_own" not in found["teacher"].metrics
    # by hand, from the logits of each frame
    [batch] = batches(made.data("dev"), CPU)
    shared, own = Tally(CLASSES), np.zeros((8, 8), int)
    with torch.no_grad():
        answer = models["student"](batch["student"]["inputs"]).movedim(1, -1).reshape(-1, 8).argmax(1).numpy()
    labels, reached = batch["student"]["labels"].numpy(), batch["match"].reached.numpy()
    labels = np.where(batch["student"]["valid"].numpy(), labels, -1)
    shared.add(answer[reached], np.ones(reached.sum()), labels[reached], np.ones(reached.sum()))
    own += confusion(answer, labels, 8)
    assert found["student"].metrics["miou"] == pytest.approx(miou(shared.matrix))
    assert found["student"].metrics["miou_own"] == pytest.approx(miou(own))
    assert own.sum() > 2 * shared.matrix.sum(), "a camera sees less than a turn"


def test_measuring_does_not_depend_on_the_batch_size() -> None:
    one, two = ready(adapter(size=1)), ready(adapter(size=2))
    model = smallest(one, "student").eval()
    with torch.no_grad():
        alone, together = (made.evaluate("student", model, "dev").metrics for made in (one, two))
    assert alone.pop("iou") == pytest.approx(together.pop("iou"))
    for several in ("miou_by_range", "miou_interval"):
        assert alone.pop(several) == pytest.approx(together.pop(several))
    assert alone == pytest.approx(together)


# ---------------------------------------------------------------- saved and loaded


@pytest.mark.parametrize("kind", ["sparse", "image", "points"])
def test_a_saved_model_is_loaded_alike(kind: str, tmp_path: Path) -> None:
    made = ready(adapter("scan", kind))
    model = smallest(made, "student").eval()
    made.save("student", model, tmp_path / "student")
    loaded = made.load("student", tmp_path / "student")
    assert digest(loaded.state_dict().items()) == digest(model.state_dict().items())
    assert loaded.card == {"model": SMALLEST[made.view("student").sees][0], "params": model.card["params"]}
    made.save("student", loaded, tmp_path / "again")
    assert read_json(tmp_path / "again/card.json") == read_json(tmp_path / "student/card.json")


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"teacher": "sparse"}, "trained with beams 64, data.teacher.beams says 16"),
        ({"sensor": "nuscenes32"}, "trained with beams 64, data.teacher.beams says 32"),
        ({"teacher": "fused"}, "trained with sweeps 1, data.teacher.sweeps says 2"),
        ({"teacher": "image"}, "trained with sees range, data.teacher.sees says image"),
        ({"teacher": {"sees": "range", "columns": 128}}, "trained with columns 64"),
    ],
)
def test_a_teacher_of_another_view_is_refused(tmp_path: Path, other: dict[str, Any], words: str) -> None:
    made = adapter()
    made.save("teacher", smallest(made, "teacher"), tmp_path / "teacher")
    with pytest.raises(UserError, match=words):
        adapter(**other).load("teacher", tmp_path / "teacher")


def test_views_that_mean_the_same_are_the_same(tmp_path: Path) -> None:
    made = adapter()
    made.save("teacher", smallest(made, "teacher"), tmp_path / "teacher")
    adapter(VIEWS["scan"] | {"beams": 64, "points": 7}).load("teacher", tmp_path / "teacher")
    made = adapter("image")
    made.save("teacher", smallest(made, "teacher"), tmp_path / "image")
    adapter({"sees": "image", "columns": 512}).load("teacher", tmp_path / "image")


def test_a_teacher_with_other_classes_is_refused(tmp_path: Path) -> None:
    made = adapter()
    made.save("teacher", smallest(made, "teacher"), tmp_path / "teacher")
    path = tmp_path / "teacher/card.json"
    card = read_json(path)
    write_json(path, card | {"classes": [*card["classes"][1::-1], *card["classes"][2:]]})
    with pytest.raises(UserError, match="its class 0 is 'pavement', here it is 'ground': map its outputs first"):
        made.load("teacher", tmp_path / "teacher")


def test_a_model_of_another_view_is_refused() -> None:
    made = adapter("scan", "image")
    with pytest.raises(UserError, match=r"student: model 'range_unet' sees range, data.student.sees says image"):
        made.build("student", "range_unet", {})
    with pytest.raises(UserError, match=r"model 'centerpoint_camera' is of data\.task detection"):
        adapter("scan", "image").build("student", "centerpoint_camera", {})


def test_a_feature_that_is_no_map_is_named() -> None:
    made = ready(adapter())
    model = smallest(made, "student")
    model.extra = nn.Flatten(1)
    model.features.register_forward_hook(lambda module, args, out: (model.extra(out), None)[1])
    with pytest.raises(UserError, match=r"module 'extra' gives \(2, \d+\): a feature here is \(b, c, h, w\)"):
        made.signals("student", model, batch_of(made.data("train")), ["extra"])


# ---------------------------------------------------------------- what must come out before the training


def test_recorded_splits_and_folders_are_opened_at_once(drives: Path, tmp_path: Path) -> None:
    content = {"sources": "semantickitti", "path": drives, "train": {"last": 4}, "dev": {"first": 4, "last": 6}}
    adapter(**content, test={"first": 6})
    with pytest.raises(UserError, match="frames 6 to 9 of 7"):
        adapter(**content, test={"first": 6, "last": 9})
    with pytest.raises(UserError, match="frames 8 to the end of 7"):
        adapter(unlabelled={"sources": "semantickitti", "path": drives, "frames": {"first": 8}})
    with pytest.raises(UserError, match="sequences/NN/velodyne is expected"):
        adapter(real=[{"sources": "semantickitti", "path": tmp_path}])


def test_recorded_frames_without_photographs_are_no_use_to_a_camera(drives: Path, tmp_path: Path) -> None:
    real = [{"sources": "semantickitti", "path": tmp_path / "drives"}]
    shutil.copytree(drives, tmp_path / "drives")
    adapter("scan", "image", real=real)
    for number in ("00", "01"):
        shutil.rmtree(tmp_path / f"drives/sequences/{number}/image_2")
    adapter(real=real)
    with pytest.raises(UserError, match="00/000000: it has no picture"):
        adapter("scan", "image", real=real)


def test_the_picture_has_the_size_that_the_recipe_says() -> None:
    side = batch_of(adapter("scan", "image", augment={}).data("train"))["student"]
    assert side["inputs"].shape == (2, 3, *IMAGE)
