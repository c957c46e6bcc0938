"""Figures and their joints: what is drawn, read, moved, said as signals, measured, saved and used."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from once import once
from PIL import Image
from pydantic import ValidationError

from xmodal_kd.adapter import moments, panels
from xmodal_kd.cli.main import call
from xmodal_kd.modalities.images.adapter import ImagesAdapter
from xmodal_kd.modalities.images.data.keypoints.figures import Skeleton
from xmodal_kd.modalities.images.data.keypoints.skeletons import NAMES, SKELETON, draw_skeletons
from xmodal_kd.modalities.images.data.keypoints.source import (
    FiguresSource,
    cells,
    heatmaps,
    load_figures,
    located,
    mirrored,
    moved,
)
from xmodal_kd.modalities.images.data.source import ImagesData
from xmodal_kd.modalities.images.evaluate.joints import distances, interval, metrics
from xmodal_kd.modalities.images.export.keypoints_folder import about, load_card, load_model
from xmodal_kd.modalities.images.export.onnx import FP32
from xmodal_kd.modalities.images.tasks.keypoints import KeypointsAdapter
from xmodal_kd.modalities.images.use.keypoints import KeypointFinder
from xmodal_kd.models import onnx
from xmodal_kd.objective.objective import Objective
from xmodal_kd.recipe.recipe import Term
from xmodal_kd.runtime.checkpoint import read_json
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams

SETS = (
    "teacher.params={width: 4, depth: 1, stacks: 2}", "teacher.train.steps=3", "student.params={width: 4, depth: 1}",
    "train.steps=3", "train.eval_every=3", "data.dev=8", "data.test=12", "data.keypoints.figures=24",
    "train.batch_size=8", "teacher.train.batch_size=8",
    "objective=[{loss: heatmap_mse, labels: heatmaps}, {loss: kd}, {loss: integral_pose, weight: 0.1}, "
    "{loss: hint, on: stem, weight: 0.001}]",
)  # fmt: skip


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(out: Path) -> None:
        sets = [word for one in SETS for word in ("--set", one)]
        assert call(["run", "smoke/keypoints", "--out", str(out), "--quiet", *sets]) == 0

    return once(tmp_path_factory, "keypoints", make)


def section(**changed: Any) -> ImagesData:
    """Of drawn figures, few and small."""
    keypoints = {"figures": 12, **changed.pop("keypoints", {})}
    given = {"task": "keypoints", "sources": "skeletons", "size": 32, "dev": 4, "test": 6, "keypoints": keypoints}
    return ImagesData(**{**given, **changed})


def source(config: ImagesData, split: str = "train", seed: int = 1) -> FiguresSource:
    return FiguresSource(config, split, load_figures(config, split), Streams(seed), 4)


# ---------------------------------------------------------------- drawn figures


def test_drawn_figures_are_functions_of_their_split_and_number() -> None:
    one, more = (draw_skeletons("train", count, 1, 32, 48, "RGB") for count in (2, 5))
    assert one.shape == (3, 32, 48) and len(one) == 2 and len(NAMES) == 14
    np.testing.assert_array_equal(one.x, more.x[:2])
    np.testing.assert_array_equal(one.joints, more.joints[:2])
    assert not np.array_equal(one.x, draw_skeletons("test", 2, 1, 32, 48, "RGB").x)
    assert draw_skeletons("train", 2, 1, 32, 48, "L").shape == (1, 32, 48)


def test_bones_keep_their_length_while_a_figure_moves() -> None:
    clip = draw_skeletons("train", 2, 6, 64, 64, "RGB")
    assert clip.clips.tolist() == [0] * 6 + [1] * 6
    bones = np.array([clip.joints[:, a] - clip.joints[:, b] for a, b in SKELETON.edges])
    lengths = np.linalg.norm(bones, axis=2)
    assert np.ptp(lengths[:, :6], axis=1).max() < 1e-3 and np.abs(np.diff(clip.joints[:6], axis=0)).max() > 0.3
    left, right = (NAMES.index(f"{side}_shoulder") for side in ("left", "right"))
    assert (clip.joints[:, left, 0] > clip.joints[:, right, 0]).all(), "it faces the viewer"


def test_a_joint_is_seen_hidden_or_out_of_sight() -> None:
    figures = draw_skeletons("train", 60, 1, 48, 48, "RGB")
    inside = ((figures.joints >= 0) & (figures.joints < 48)).all(axis=2)
    np.testing.assert_array_equal(figures.visible > 0, inside)
    assert {1, 2} <= set(np.unique(figures.visible).tolist())


def test_left_and_right_change_places_in_a_mirror() -> None:
    skeleton = Skeleton(("nose", "left_eye", "right_eye", "Lefty"), ((0, 1),))
    assert skeleton.mirrored == (0, 2, 1, 3)
    x, joints = torch.arange(8.0).reshape(1, 2, 4), torch.tensor([[0.5, 1.0], [3.0, 0.0], [1.0, 2.0], [4.0, 1.0]])
    flipped, there, visible = mirrored(x, joints, torch.tensor([2, 0, 1, 2]), skeleton)
    assert flipped[0, 0].tolist() == [3, 2, 1, 0] and visible.tolist() == [2, 1, 0, 2]
    assert there.tolist() == [[3.5, 1], [3, 2], [1, 0], [0, 1]]
    back = mirrored(flipped, there, visible, skeleton)
    torch.testing.assert_close(back[1], joints)


def test_joints_go_with_what_they_show() -> None:
    """A bright dot, moved: it is where its joint says."""
    x = torch.zeros(1, 33, 33)
    x[0, 10, 20] = 1.0
    at = torch.tensor([[20.5, 10.5]])
    for angle, scale, shift in ((0.0, 1.0, (3.0, -2.0)), (np.pi / 2, 1.0, (0.0, 0.0)), (0.4, 1.2, (2.0, 1.0))):
        new, there = moved(x, at, angle, scale, shift)
        weight = new[0] / new.sum()
        grid = torch.arange(33) + 0.5
        middle = torch.stack([(weight.sum(0) * grid).sum(), (weight.sum(1) * grid).sum()])
        torch.testing.assert_close(middle, there[0], atol=0.15, rtol=0)


def test_heat_maps_show_where_joints_are() -> None:
    places = torch.rand(3, 5, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([7.0, 5.0])
    maps = heatmaps(places, (5, 7), 1.0)
    x, y = torch.tensor(2.5), torch.tensor(1.5)
    expected = torch.exp(-((x - places[1, 2, 0]) ** 2 + (y - places[1, 2, 1]) ** 2) / 2)
    torch.testing.assert_close(maps[1, 2, 1, 2], expected)
    torch.testing.assert_close(maps.flatten(2).argmax(dim=2), cells(places, (5, 7)))
    found, score = located(maps, 4)
    assert (found - 4 * places).abs().max() <= 2.0 and score.min() > 0.7
    exact = located(heatmaps(torch.tensor([[[2.5, 3.5], [0.5, 0.5]]]), (5, 7), 1.0), 4)[0]
    assert exact.tolist() == [[[10, 14], [2, 2]]], "in the middle of a position nothing leans"


def test_training_images_are_moved_by_address_and_others_are_not() -> None:
    config = section(flip=True, shift=3, keypoints={"rotate": 30, "scale": 0.2})
    one, other = source(config), source(config)
    first, again, later = one.sample(3, 0), other.sample(3, 0), one.sample(3, 1)
    torch.testing.assert_close(first.x, again.x)
    assert not torch.equal(first.x, later.x) and not torch.equal(first.joints, later.joints)
    test = source(config, "test")
    torch.testing.assert_close(test.sample(1, 0).joints, torch.from_numpy(test.figures.joints[1]))
    batch = one.collate([one.sample(i, 0) for i in range(4)])
    assert batch["heatmaps"].shape == (4, 14, 8, 8) and batch["cells"].max() < 64
    outside = ~((batch["joints"] >= 0) & (batch["joints"] < 32)).all(dim=2)
    assert not bool((outside & batch["visible"]).any())


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (
            {"sources": "digits", "size": None},
            "sources: digits is of the task classes: set task to that, or sources to",
        ),
        ({"task": "classes"}, "sources: skeletons is of the task keypoints"),
        ({"keypoints": {"margin": 2}}, "keypoints.margin: only sources: coco reads it: leave it out"),
        (
            {"sources": "coco", "path": "x", "keypoints": {"figures": 1000, "frames": 4}},
            "keypoints.frames: only sources: skeletons reads it",
        ),
        ({"task": "classes", "sources": "folder", "path": "x"}, "keypoints: the task is classes"),
        ({"size": 30}, r"size: \[30, 30\] are no multiples of keypoints.stride, which is 4"),
        ({"path": "x"}, "the skeletons are made here: leave both out"),
        ({"sources": "coco"}, "sources: coco needs the path"),
        ({"keypoints": {"stride": 3}}, "stride"),
    ],
)
def test_a_section_that_does_not_fit_is_refused(changed: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        section(**changed)


# ---------------------------------------------------------------- signals


def adapter(**changed: Any) -> KeypointsAdapter:
    made = ImagesAdapter.of(config := section(**changed))
    assert made is KeypointsAdapter and ImagesAdapter.metric_of({"task": "keypoints"}) == KeypointsAdapter.metric
    return KeypointsAdapter(config, Streams(1), 4)


def test_rows_are_joints() -> None:
    made = adapter()
    data = made.data("train")
    batch = data.collate([data.sample(i, 0) for i in range(4)])
    batch["visible"][1, 2] = False
    torch.manual_seed(0)
    model = made.build("student", "hourglass", {"width": 4, "depth": 1, "stacks": 2})
    said = made.signals("student", model, batch, ["heads.0", "stem"])
    maps = model(batch["x"])
    assert maps.shape == (4, 14, 8, 8) and said.rows("logits").shape == (4 * 14, 64)
    torch.testing.assert_close(said.rows("logits")[1 * 14 + 3], maps[1, 3].flatten())
    assert said.layout("logits").grid == (14,) and said.maps("stem").shape == (4, 4, 8, 8)
    assert said["heads.0"].layout is said.layout("logits") and not torch.equal(
        said.rows("heads.0"), said.rows("logits")
    )
    for name in ("logits", "labels", "heatmaps"):
        torch.testing.assert_close(said.layout(name).mask, batch["visible"].flatten())
    torch.testing.assert_close(said.rows("heatmaps").argmax(dim=1), said.rows("labels"))
    assert len(made.class_names("student")) == 64 and made.class_names("student")[9] == "1,1"
    batch["labelled"] = torch.tensor([True, False, True, True])
    unlabelled = made.signals("student", model, batch).layout("logits").mask.reshape(4, 14)
    assert unlabelled[1].all() and torch.equal(unlabelled[0], batch["visible"][0])


def test_losses_of_the_core_compare_them() -> None:
    """Positions as classes, joints as rows of an item, maps on the way; each reaches the student."""
    made = adapter()
    data = made.data("train")
    batch = data.collate([data.sample(i, 0) for i in range(4)])
    batch["visible"][0, 1] = batch["visible"][2] = False
    models = [made.build("student", "hourglass", {"width": width, "depth": 1, "stacks": 2}) for width in (3, 6)]
    says = [made.signals("student", model, batch, ["heads.0", "stem"]) for model in models]
    terms = [
        *(Term(loss=name) for name in ("ce", "kd", "dkd", "dist", "logit_mse", "rkd", "sp", "cwd", "integral_pose")),
        Term(loss="hint", on="stem"), Term(loss="at", on="stem"), Term(loss="heatmap_mse", labels="heatmaps"),
        Term(loss="heatmap_mse", name="first", on="heads.0", labels="heatmaps"),
        Term(loss="kd", name="taught", on={"student": "heads.0", "teacher": "logits"}),
    ]  # fmt: skip
    objective = Objective(terms).build(*says, Streams(1))
    parts = objective(*says).parts
    seen = int(batch["visible"].sum())
    assert float(parts["kd"].count) == float(parts["heatmap_mse"].count) == seen < 4 * 14
    for name, part in parts.items():
        [slope] = torch.autograd.grad(part.total, [next(models[0].parameters())], retain_graph=True)
        assert bool(part.total.isfinite()) and bool(slope.isfinite().all()) and bool(slope.any()), name


def test_moves_are_named_where_views_must_agree() -> None:
    assert adapter().views_differ() is None
    assert adapter(flip=True).views_differ() == "data.flip moves what a heat map shows: leave it out"
    assert "data.keypoints.rotate" in str(adapter(keypoints={"rotate": 5}).views_differ())


@pytest.mark.parametrize(
    ("model", "params"),
    [
        ("hourglass", {"width": 4, "depth": 2, "blocks": 2}),
        ("hourglass", {"width": 4, "depth": 1, "stacks": 3, "norm": "batch"}),
        ("pose_resnet", {"width": 4, "depth": 3, "up": 6}),
        ("pose_resnet", {"width": 2, "depth": 4, "blocks": 2}),
    ],
)
@pytest.mark.parametrize("stride", [1, 2, 4])
def test_heat_maps_have_their_stride(model: str, params: dict[str, Any], stride: int) -> None:
    made = adapter(size=[32, 48], keypoints={"stride": stride})
    built = made.build("student", model, params)
    maps = built(torch.randn(3, 3, 32, 48))
    assert maps.shape == (3, 14, 32 // stride, 48 // stride)
    maps.sum().backward()
    assert all(p.grad is not None for p in built.parameters())


def test_models_that_do_not_fit_are_refused(trained: Path) -> None:
    made = adapter(size=[24, 32])
    with pytest.raises(UserError, match="student: model 'cnn' tells classes apart: the task keypoints needs hourglass"):
        made.build("student", "cnn", {})
    with pytest.raises(UserError, match=r"to steps of 16 pixels, of which 24x32 are no multiples: set data.size"):
        made.build("student", "hourglass", {"depth": 2})
    with pytest.raises(UserError, match="stride is 4: give a depth of at least 3"):
        made.build("student", "pose_resnet", {"depth": 2})
    with pytest.raises(UserError, match=r"this teacher sees images of \(3, 32, 32\), the data \(3, 24, 32\)"):
        made.load("teacher", trained / "teacher")
    with pytest.raises(UserError, match=r"has heat maps of stride 4, the data 2"):
        adapter(keypoints={"stride": 2}).load("teacher", trained / "teacher")
    with pytest.raises(UserError, match=r"is of another task: set data.task to keypoints"):
        ImagesAdapter(ImagesData(sources="digits"), Streams(1), 4).build("student", "hourglass", {})


# ---------------------------------------------------------------- metrics


def test_pck_counts_what_is_near() -> None:
    right = torch.zeros(2, 3, 2)
    found = torch.tensor([[[0.0, 3.0], [4.0, 0.0], [0.0, 9.0]], [[0.0, 0.0], [0.0, 0.0], [9.0, 9.0]]])
    off = distances(found, right, torch.tensor([20.0, 40.0]))
    torch.testing.assert_close(off[0], torch.tensor([0.15, 0.2, 0.45], dtype=torch.float64))
    visible = torch.tensor([[True, True, True], [True, True, False]])
    hidden = torch.tensor([[False, False, True], [False, False, True]])
    said = metrics(off, visible, hidden, ["a", "b", "c"])
    assert said["pck"] == pytest.approx(4 / 5) and said["pck_01"] == pytest.approx(2 / 5) and said["joints"] == 5
    assert said["pck_hidden"] == 0 and said["pck_by_joint"] == pytest.approx({"a": 1.0, "b": 1.0, "c": 0.0})
    assert said["error"] == pytest.approx((0.15 + 0.2 + 0.45) / 5)
    low, high = said["pck_interval"]
    assert low <= said["pck"] <= high
    assert interval(torch.ones(1), torch.ones(1)) is None
    nothing = metrics(off, torch.zeros_like(visible), hidden, ["a", "b", "c"])
    assert nothing["pck"] is None and nothing["pck_interval"] is None and nothing["pck_by_joint"] == {}


# ---------------------------------------------------------------- a run and its student


def test_a_run_leaves_metrics_panels_and_onnx(trained: Path) -> None:
    report = read_json(trained / "report.json")
    for role in ("teacher", "control", "student"):
        said = report["roles"][role]["metrics"]
        assert 0 <= said["pck_005"] <= said["pck_01"] <= said["pck"] <= 1 and said["images"] == 12
    session = onnx.session(trained / "student" / FP32, extra="images")
    x = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert onnx.prove(load_model(trained / "student"), partial(onnx.run, session), x) <= 1e-4
    [panel] = panels.read(trained)
    assert panel.kind == "gallery" and panel.content["columns"] == ["known", "teacher", "control", "student"]
    [now] = moments.read(trained, "student")
    assert now.step == 3
    told = about(load_card(trained / "student"))
    assert "14 joints" in told.what and "`heatmaps` (batch, 14, 8, 8)" in told.use


def test_keypoints_writes_joints_of_what_it_can_read(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = trained / "student"
    Image.new("L", (64, 96), 90).save(tmp_path / "a.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    assert call(["keypoints", str(student), str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    [line] = out.splitlines()
    said = json.loads(line)
    assert said["path"] == str(tmp_path / "a.png") and list(said["joints"]) == list(NAMES) and said["figure"] == 0
    assert "bad.png: not an image" in err.replace("\n", "")
    assert all({"x", "y", "score"} == set(one) for one in said["joints"].values())
    boxes = tmp_path / "boxes.json"
    two = [{"id": 7, "image_id": 1, "bbox": [0, 0, 40, 60]}, {"id": 8, "image_id": 1, "bbox": [10, 20, 30, 40]}]
    boxes.write_text(json.dumps({"images": [{"id": 1, "file_name": "a.png"}], "annotations": two}))
    assert call(["keypoints", str(student), str(tmp_path / "a.png"), "--boxes", str(boxes)]) == 0
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["figure"] for one in said] == [7, 8] and said[1]["box"] == [10, 20, 30, 40]
    assert call(["keypoints", str(student), str(tmp_path / "bad.png"), "--boxes", str(boxes)]) == 2
    assert "--boxes has no image of that name" in capsys.readouterr().err.replace("\n", " ")
    assert call(["classify", str(student), str(tmp_path / "a.png")]) == 2
    assert "it is a model of the task keypoints" in capsys.readouterr().err.replace("\n", " ")


def test_joints_are_where_they_are_in_the_image(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose heat is how bright a position is finds a bright spot, in whatever cut of whatever image."""
    finder = KeypointFinder.from_pretrained(trained / "student")

    def bright(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(x.mean(dim=1, keepdim=True), 4).expand(-1, 14, -1, -1)

    monkeypatch.setattr(finder, "model", bright)
    image = Image.new("RGB", (96, 64))
    image.paste((255, 255, 255), (70, 20, 78, 28))
    image.save(tmp_path / "a.png")
    for boxes, least in ((None, 12.0), ({"one": (60.0, 10.0, 20.0, 30.0)}, 5.0)):
        [figure] = finder.find(tmp_path / "a.png", boxes)
        x, y, score = figure.joints["head"]
        assert abs(x - 74) < least and abs(y - 24) < least and 0 < score + 1 <= 2
