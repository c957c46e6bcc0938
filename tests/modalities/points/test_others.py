"""Networks of other projects as teachers: the wrappers of docs/own_models.md, around what answers as theirs do."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from points_small import points_data, run
from torch import Tensor, nn

from xmodal_kd.cli.main import call
from xmodal_kd.modalities.points.adapter import PointsAdapter
from xmodal_kd.modalities.points.data.classes import classes_of
from xmodal_kd.modalities.points.data.config import PointsData
from xmodal_kd.modalities.points.models.boxes_model import BoxesModel
from xmodal_kd.modalities.points.models.decoding import found
from xmodal_kd.modalities.points.tasks.detection import DetectionAdapter
from xmodal_kd.modalities.points.use.detect import Detector
from xmodal_kd.modalities.points.views.ground import pillars
from xmodal_kd.runtime import registry
from xmodal_kd.runtime.checkpoint import read_json
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams

PAGE = Path(__file__).parents[3] / "docs/own_models.md"
SENSED = {"sees": "points", "points": 200_000, "intensity": True}
PILLARS: dict[str, Any] = {"sees": "pillars", "intensity": True, "columns": 64}
THINGS = {"car": ["car"], "person": ["person"], "cyclist": ["truck"]}


class Pointcepts(nn.Module):
    """What Pointcept's segmenters are from outside: a point a voxel in, ``seg_logits`` by point out."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 19)
        self.calls: list[dict[str, Tensor]] = []

    def forward(self, given: dict[str, Tensor]) -> dict[str, Tensor]:
        assert len(torch.unique(torch.cat([given["grid_coord"], self.scan(given)[:, None]], 1), dim=0)) == len(
            given["coord"]
        )
        assert int(given["offset"][-1]) == len(given["coord"])
        self.calls.append(given)
        return {"seg_logits": self.head(given["feat"])}

    @staticmethod
    def scan(given: dict[str, Tensor]) -> Tensor:
        return torch.searchsorted(given["offset"], torch.arange(len(given["coord"])), right=True)


class Pcdets(nn.Module):
    """What OpenPCDet's detectors are from outside: a collated batch in, ``pred_dicts`` out. It finds `wanted`."""

    wanted: ClassVar[list[dict[str, np.ndarray]]] = []

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def load_params_from_file(self, filename: str, logger: Any, to_cpu: bool) -> None:
        self.load_state_dict(torch.load(filename, weights_only=True))

    def forward(self, batch: dict[str, Any]) -> tuple[list[dict[str, Tensor]], dict[str, Any]]:
        assert batch["points"].shape[1] == 5, "scan, x, y, z, intensity"
        said = [self.wanted[i % len(self.wanted)] for i in range(batch["batch_size"])]
        return [{f"pred_{name}": torch.from_numpy(value) for name, value in one.items()} for one in said], {}


class Template:
    """The part of OpenPCDet's data set that makes batches of points."""

    def __init__(self, dataset_cfg: Any, class_names: Any, training: bool, root_path: Path) -> None: ...

    def prepare_data(self, scan: dict[str, Any]) -> dict[str, Any]:
        return scan

    def collate_batch(self, scans: list[dict[str, Any]]) -> dict[str, Any]:
        rows = [np.pad(one["points"], ((0, 0), (1, 0)), constant_values=i) for i, one in enumerate(scans)]
        return {"points": np.concatenate(rows), "batch_size": len(scans)}


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the two wrappers of the page, and stand-ins for the packages that they import."""
    for name in ("theirs", "boxes"):
        [code] = re.findall(rf"```python\n(# {name}\.py\n.*?)```", PAGE.read_text(), re.DOTALL)
        (tmp_path / f"{name}.py").write_text(code)
        monkeypatch.delitem(sys.modules, name, raising=False)
    given = SimpleNamespace(DATA_CONFIG={}, CLASS_NAMES=["Car", "Pedestrian", "Cyclist"], MODEL={})
    modules: dict[str, dict[str, Any]] = {
        "pointcept": {}, "pointcept.utils": {}, "pcdet": {},
        "pointcept.models": {"build_model": lambda config: Pointcepts()},
        "pointcept.utils.config": {"Config": SimpleNamespace(fromfile=lambda file: SimpleNamespace(model={}))},
        "pcdet.config": {"cfg": None, "cfg_from_yaml_file": lambda file, cfg: given},
        "pcdet.datasets": {"DatasetTemplate": Template},
        "pcdet.models": {"build_network": lambda *_, **__: Pcdets(), "load_data_to_gpu": lambda batch: None},
    }  # fmt: skip
    for name, content in modules.items():
        made = ModuleType(name)
        vars(made).update(content)
        monkeypatch.setitem(sys.modules, name, made)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(registry, "allowed_imports", {"theirs", "boxes"})
    return tmp_path


def saved(folder: Path, name: str, weights: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the page's wrapper writes of these weights."""
    torch.save(weights, folder / "weights.pth")
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "config.py", str(folder / "weights.pth"), str(folder / "teacher")])
    runpy.run_path(str(folder / f"{name}.py"), run_name="__main__")
    return folder / "teacher"


def segmenter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Pointcepts]:
    torch.manual_seed(0)
    net = Pointcepts()
    held = {f"module.{name}": value for name, value in net.state_dict().items()}
    return saved(folder, "theirs", {"state_dict": held, "best": 1.0}, monkeypatch), net


def test_a_segmenter_by_import_path_says_of_a_point_what_its_voxel_says(
    theirs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, net = segmenter(theirs, monkeypatch)
    card = read_json(folder / "card.json")
    assert card["model"] == "theirs:Segmenter" and card["classes"] == list(classes_of("semantickitti").names)
    data = PointsData.model_validate({**points_data().model_dump(), "teacher": SENSED, "scenes": {"train": 2}})
    made = PointsAdapter(data, Streams(1), 2)
    made.classes = classes_of("semantickitti").names  # type: ignore[assignment]
    model = made.load("teacher", folder)
    batch = made.data("train").collate([made.data("train").sample(i, 0) for i in (0, 1)])
    points, lengths = batch["teacher"]["inputs"], batch["teacher"]["lengths"]
    assert points.shape[1] == 5 and 0 <= points[:, 4].min() < points[:, 4].max() <= 1
    with torch.no_grad():
        said = model(points, lengths)
    # a slow oracle: of each scan's voxels the first point speaks for all
    start, cells = 0, ((points[:, :3] - points[:, :3].amin(dim=0)) / 0.05).floor().long().tolist()
    speaks = []
    for length in lengths.tolist():
        first: dict[tuple[int, ...], int] = {}
        speaks += [first.setdefault(tuple(cells[at]), at) for at in range(start, start + length)]
        start += length
    chosen = points[speaks]
    wanted = net.head(torch.cat([chosen[:, :3], chosen[:, 4:]], dim=1)).detach()
    torch.testing.assert_close(said, wanted, rtol=1e-5, atol=1e-5)
    assert len(set(speaks)) < len(points), "some voxels hold several"


def test_what_differs_is_refused_by_name(theirs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = segmenter(theirs, monkeypatch)
    made = PointsAdapter(points_data({**SENSED, "intensity": False}), Streams(1), 2)
    with pytest.raises(UserError, match="its class 0 is 'car', here it is 'ground'"):
        made.load("teacher", folder)
    made.classes = classes_of("semantickitti").names  # type: ignore[assignment]
    with pytest.raises(UserError, match=r"trained with intensity True, data\.teacher\.intensity says False"):
        made.load("teacher", folder)
    monkeypatch.setattr(registry, "allowed_imports", set())
    with pytest.raises(UserError, match="allow it with --allow-import theirs"):
        made.load("teacher", folder)
    monkeypatch.setattr(registry, "allowed_imports", {"torch"})
    with pytest.raises(UserError, match=r"torch\.nn:Linear is no points model: it has no Config"):
        made.build("teacher", "torch.nn:Linear", {})


BOXES = np.array([[10.0, 3, -1, 4, 1.8, 1.5, 0.3], [-6.2, -8, -0.8, 0.8, 0.7, 1.7, -2], [3.1, 9.4, -1, 4.2, 2, 1.6, 3]])
FINDS = {"boxes": BOXES, "scores": np.array([0.9, 0.55, 0.3]), "labels": np.array([1, 2, 1])}
NONE = {"boxes": np.zeros((0, 7)), "scores": np.zeros(0), "labels": np.zeros(0, np.int64)}


def detection(**more: Any) -> DetectionAdapter:
    content = {
        "task": "detection", "scenes": {"train": 2, "dev": 1, "test": 1}, "teacher": PILLARS,
        "student": {"sees": "pillars", "beams": 16, "columns": 64}, "detection": {"classes": THINGS},
    }  # fmt: skip
    return DetectionAdapter(PointsData.model_validate(content | more), Streams(1), 2)


def test_a_detector_by_import_path_gives_its_boxes_back(theirs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Heat and boxes by cell are decoded to what it said; every scan's points are what they were."""
    folder = saved(theirs, "boxes", Pcdets().state_dict(), monkeypatch)
    made = detection()
    model = made.load("teacher", folder)
    monkeypatch.setattr(Pcdets, "wanted", [FINDS, NONE])
    source = made.data("train")
    batch = source.collate([source.sample(i, 0) for i in (0, 1)])
    given: list[Tensor] = []
    inner = model.detect
    monkeypatch.setattr(model, "detect", lambda points: given.extend(points) or inner(points))
    finds = made.found("teacher", model, batch)
    np.testing.assert_allclose(finds[0].boxes[np.argsort(-finds[0].scores)], BOXES, atol=2e-5)
    np.testing.assert_allclose(finds[0].scores, FINDS["scores"], atol=1e-5)
    assert finds[0].numbers.tolist() == [0, 1, 0] and len(finds[1]) == 0
    for index, points in enumerate(given):
        wanted = source.moment(index).seen["teacher"]
        inside = made.ground("teacher").rows(wanted) >= 0
        np.testing.assert_allclose(points.numpy(), wanted[inside], atol=1e-4)

    said = made.signals("teacher", model, batch, ("boxes",))
    mask, cells = said.layout("boxes").mask, made.ground("student")
    code = said.rows("boxes")
    assert 3 * 9 < mask.sum() <= 3 * 25 and mask[: cells.cells].sum() == mask.sum(), "of the first scan, near centres"
    assert code[mask].isfinite().all() and said.layout("logits").mask.all()


def test_cells_of_another_size_are_brought_to_the_student_s(theirs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(theirs, "boxes", Pcdets().state_dict(), monkeypatch)
    card = read_json(folder / "card.json")
    made = detection(student={"sees": "pillars", "beams": 16, "columns": 64, "cell": 0.8})
    assert card["view"]["cell"] == 0.4
    monkeypatch.setattr(Pcdets, "wanted", [FINDS])
    model, source = made.load("teacher", folder), made.data("train")
    said = made.signals("teacher", model, source.collate([source.sample(0, 0)]), ("boxes",))
    rows, mask = said.rows("boxes"), said.layout("boxes").mask
    centres = torch.from_numpy(made.ground("student").centres()).float()
    places = (centres + rows[:, :2])[mask]
    near = (places[:, None] - torch.from_numpy(BOXES[:, :2]).float()).norm(dim=2).amin(dim=1)
    assert mask.sum() >= 3 and near.max() < 1e-4, "cells say the centres, from wherever they lie"


@pytest.mark.parametrize(("said", "reason"), [
    ({**FINDS, "labels": np.array([0, 2, 1])}, r"Detector.detect: labels from -1 to 1: classes 0 to 2"),
    ({**FINDS, "scores": np.array([0.9, np.nan, 0.1])}, r"scores of shape \(3,\): \(3,\) finite numbers"),
    ({**FINDS, "boxes": BOXES[:2]}, r"boxes of shape \(2, 7\): \(3, 7\) finite numbers are expected"),
])  # fmt: skip
def test_an_answer_that_is_none_is_one_line(
    theirs: Path, monkeypatch: pytest.MonkeyPatch, said: dict[str, np.ndarray], reason: str
) -> None:
    folder = saved(theirs, "boxes", Pcdets().state_dict(), monkeypatch)
    made = detection()
    model, ground = made.load("teacher", folder), made.ground("teacher")
    monkeypatch.setattr(Pcdets, "wanted", [said])
    points, cell = pillars(np.array([[5.0, 1, 0, 0.5]]), model.ground)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=reason):
        model(points, cell, (1, *model.ground.shape))  # type: ignore[union-attr]
    assert isinstance(model, BoxesModel) and ground == model.cells
    with pytest.raises(UserError, match="says boxes, which nothing here can train"):
        made.build("teacher", "boxes:Detector", {"file": "x"})


def test_near_boxes_keep_their_own_centres(theirs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sure box beside an unsure one of another class, closer than the heat reaches: both are found as they are."""
    folder = saved(theirs, "boxes", Pcdets().state_dict(), monkeypatch)
    boxes = np.array([[6.0, 2, -1, 0.8, 0.8, 1.7, 0.1], [7.0, 2, -1, 1.8, 0.6, 1.7, 1.5]])
    monkeypatch.setattr(
        Pcdets, "wanted", [{"boxes": boxes, "scores": np.array([0.9, 0.4]), "labels": np.array([2, 3])}]
    )
    detector = Detector(folder)
    points, cell = pillars(np.array([[5.0, 1, 0, 0.5]]), detector.ground)
    one = found(detector.model(points, cell, (1, *detector.ground.shape)), detector.cells)[0]
    np.testing.assert_allclose(one.boxes, boxes, atol=2e-5)
    assert one.numbers.tolist() == [1, 2]


@pytest.mark.full
def test_whole_runs(theirs: Path, monkeypatch: pytest.MonkeyPatch, drives: Path) -> None:
    """Both teach: a segmenter on drives with SemanticKITTI's classes, a detector in simulated streets."""
    monkeypatch.setattr("xmodal_kd.run.runner.LATENCY", 0.01)
    folder, _ = segmenter(theirs, monkeypatch)
    sets = (
        f"teacher={{path: {folder}}}", "data.teacher={sees: points, points: 200000, intensity: true}",
        f"data.path={drives}", "data.train={first: 0, last: 4}", "data.dev={first: 4, last: 5}", "data.test={first: 5}",
    )  # fmt: skip
    assert run(theirs / "run", *sets, recipe="points/semantickitti", more=["--allow-import", "theirs"]) == 0
    measured = read_json(theirs / "run/report.json")["roles"]
    assert all(0 <= measured[role]["metrics"]["miou_official"] < 0.3 for role in ("teacher", "student"))
    boxes = saved(theirs, "boxes", Pcdets().state_dict(), monkeypatch)
    monkeypatch.setattr(Pcdets, "wanted", [FINDS])
    objective = (
        "[{loss: gaussian_focal}, {loss: reg_l1, on: boxes, labels: box_labels}, {loss: sparsekd, weight: 7.0}, "
        "{loss: sparsekd_reg, on: boxes, weights: centre, weight: 0.2}]"
    )
    more = (
        f"teacher={{path: {boxes}}}", "data.scenes={train: 4, dev: 1, test: 1}", f"data.detection.classes={THINGS}",
        "data.teacher={sees: pillars, intensity: true, columns: 128}", f"objective={objective}", "train.steps=4",
    )  # fmt: skip
    words = ["run", "smoke/detection", "--out", "detected", "--quiet", "--allow-import", "boxes"]
    assert call([*words, *(word for item in more for word in ("--set", item))]) == 0
    assert (theirs / "detected/student/card.json").is_file()
