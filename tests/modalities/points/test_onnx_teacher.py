"""Teachers in ONNX files: one exported here says what its folder says; others by ``onnx.json`` or the recipe."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from detection_small import adapter as detecting
from detection_small import smallest as smallest_detector
from points_small import COLUMNS, adapter, batch_of, run, smallest
from torch import Tensor, nn

from xmodal_kd.adapter.sketch import SIZES, Given
from xmodal_kd.cli.main import call
from xmodal_kd.modalities.points.adapter import PointsAdapter
from xmodal_kd.modalities.points.data.classes import classes_of
from xmodal_kd.modalities.points.export.onnx_teacher import Network
from xmodal_kd.modalities.points.use.sketch import sketch
from xmodal_kd.models.onnx import export
from xmodal_kd.recipe.recipe import Teacher
from xmodal_kd.runtime.checkpoint import read_json
from xmodal_kd.runtime.errors import UserError

#: Outputs of somebody else's: another order than ours, one that nobody asks for, one that the data have not.
THEIRS = ("road", "car", None, "person", "tree", "pole", "building", "truck", "pavement", "ground")
CHANNELS = ["range", "x", "y", "z", "intensity"]
MEAN, STD = [9.0, 1.0, -0.5, -1.0, 0.25], [12.0, 8.0, 4.0, 0.5, 0.2]
ABOUT = {"classes": THEIRS, "channels": CHANNELS, "mean": MEAN, "std": STD, "probabilities": True}
POINTS = {"classes": THEIRS, "channels": ["x", "y", "z"]}
SEEN = {"sees": "range", "columns": COLUMNS, "intensity": True}


class OfImages(nn.Module):
    """As range networks are exported: five channels to probabilities."""

    def __init__(self, soft: bool = True) -> None:
        super().__init__()
        self.convolution, self.soft = nn.Conv2d(len(CHANNELS), len(THEIRS), 3, padding=1), soft

    def forward(self, x: Tensor) -> Tensor:
        found = self.convolution(x)
        return found.softmax(dim=1) if self.soft else found


class OfPoints(nn.Module):
    """As PointNet: a score a point beside the largest of all, points before or behind their channels."""

    def __init__(self, *, first: bool, batched: bool) -> None:
        super().__init__()
        self.first, self.batched = first, batched
        self.own, self.all = nn.Linear(3, len(THEIRS)), nn.Linear(3, len(THEIRS))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.transpose(1, 2) if self.first else x
        return self.own(rows) + self.all(rows).amax(dim=-2, keepdim=True)


def written(model: nn.Module, path: Path, x: Tensor, free: dict[int, Any], about: dict[str, Any] | None = None) -> Path:
    export(model.eval(), path, {"x": x}, ["scores"], {"x": free}, lambda _: None, extra="points")
    if about is not None:
        (path.parent / "onnx.json").write_text(json.dumps(about))
    return path


@pytest.fixture(scope="module")
def of_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph of one image of one size, without a description."""
    torch.manual_seed(0)
    return written(OfImages(), tmp_path_factory.mktemp("images") / "net.onnx", torch.zeros(1, 5, 64, COLUMNS), {})


def of_points(folder: Path, fixed: int | None = None, *, first: bool = False, batched: bool = False) -> Path:
    torch.manual_seed(0)
    n = fixed or 64
    x = torch.zeros((1, 3, n) if first else (1, n, 3) if batched else (n, 3))
    free = {} if fixed else {2 if first else 1 if batched else 0: "n"}
    return written(OfPoints(first=first, batched=batched), folder / "model.onnx", x, free, POINTS)


def taught(path: Path, teacher: Any, student: str = "sparse", params: Any = None, **more: Any) -> PointsAdapter:
    made = adapter(teacher, student, **more)
    made.teachers = {"teacher": Teacher(path=path, params=params or {})}
    return made


def own_rows(made: PointsAdapter, path: Path, batch: Any) -> Tensor:
    """Of the teacher, as it says them of what it sees, in our classes."""
    with torch.no_grad():
        return made.answer("teacher", made.load("teacher", path), batch)


def ours(scores: Tensor) -> Tensor:
    names = adapter().classes
    return scores[:, [THEIRS.index(name) for name in names]]


# What this project exported


@pytest.mark.parametrize(
    "sees", ["scan", pytest.param("image", marks=pytest.mark.full), pytest.param("fused", marks=pytest.mark.full)]
)
def test_a_student_exported_here_teaches_as_its_folder_does(tmp_path: Path, sees: str) -> None:
    made = adapter(sees, "sparse")
    model = smallest(made, "teacher").eval()
    made.save("teacher", model, tmp_path)
    made.export(model, tmp_path)
    made.begin("student", range(6))
    source = made.data("train")
    folder, file = made.load("teacher", tmp_path), made.load("teacher", tmp_path / "model.onnx")
    for batch in (batch_of(source, (0, 1, 2)), batch_of(made.data("dev"))):
        with torch.no_grad():
            expected, found = (made.signals("teacher", one, batch) for one in (folder, file))
        for name in ("logits", "class_weight", "labels"):
            torch.testing.assert_close(found.rows(name), expected.rows(name), rtol=0, atol=1e-4)
            assert torch.equal(found.layout(name).mask, expected.layout(name).mask)
    with torch.no_grad():
        one, other = (made.evaluate("teacher", model, "dev").metrics["miou"] for model in (folder, file))
    assert one == pytest.approx(other, abs=1e-3)
    assert made.declared(tmp_path / "model.onnx") == made.declared(tmp_path)
    made_of = sketch(Given(tmp_path / "model.onnx", Path("simulator"), SIZES["small"]))
    assert sees != "scan" or made_of.sections["teacher"]["path"].value == str(tmp_path / "model.onnx")
    other = {"sees": "range", "columns": 128, "beams": 32}
    with pytest.raises(UserError, match=r"this teacher was trained with .*, data.teacher.* says .*: make them agree"):
        adapter(other).load("teacher", tmp_path / "model.onnx")


@pytest.mark.full
def test_a_detector_exported_here_teaches_as_its_folder_does(tmp_path: Path) -> None:
    made = detecting()
    model = smallest_detector(made, "teacher").eval()
    made.save("teacher", model, tmp_path)
    made.export(model, tmp_path)
    made.begin("student", range(4))
    source = made.data("train")
    batch = source.collate([source.sample(i, 0) for i in range(2)])
    folder, file = made.load("teacher", tmp_path), made.load("teacher", tmp_path / "model.onnx")
    with torch.no_grad():
        expected, found = (made.signals("teacher", one, batch, ["boxes"]) for one in (folder, file))
    for name in ("logits", "boxes"):
        torch.testing.assert_close(found.rows(name), expected.rows(name), rtol=0, atol=1e-4)
    (tmp_path / "card.json").unlink()
    with pytest.raises(UserError, match=r"teaches where it was exported here, beside its card.json"):
        made.load("teacher", tmp_path / "model.onnx")


# Somebody else's, of range images


def test_channels_and_classes_are_brought_to_its_own(of_images: Path) -> None:
    """In metres from the file's own columns, less the mean over the spread, 0 where nothing is shown."""
    made = taught(of_images, SEEN, params=ABOUT)
    batch = batch_of(made.data("train"), (0, 1))
    source = made.data("train")
    x = batch["teacher"]["inputs"]
    metres = torch.stack([20 * x[:, 0], 20 * x[:, 1], 20 * x[:, 2], 2 * x[:, 3], x[:, 5]], dim=1)
    shown = source.clean(0).teacher
    torch.testing.assert_close(
        metres[0, 1:4].flatten(1).T[torch.from_numpy(shown.valid)], torch.from_numpy(shown.xyz[shown.valid])
    )
    mean, std = (torch.tensor(one)[:, None, None] for one in (MEAN, STD))
    torch.manual_seed(0)
    with torch.no_grad():
        expected = OfImages(soft=False)((metres - mean) / std * x[:, 4:5])
    found = own_rows(made, of_images, batch)
    torch.testing.assert_close(
        found.softmax(dim=1), ours(expected.softmax(dim=1)) / ours(expected.softmax(1)).sum(1, True)
    )
    model = made.load("teacher", of_images)
    made.begin("student", range(6))
    said = made.signals("teacher", model.eval(), batch)
    student = made.signals("student", smallest(made, "student"), batch)
    assert said.layout("logits").same_rows(student.layout("logits"))
    assert model.saved_parameters == 5 * 10 * 9 + 10


def test_a_description_beside_it_and_one_in_the_recipe_are_the_same(of_images: Path, tmp_path: Path) -> None:
    file = tmp_path / "net.onnx"
    file.write_bytes(of_images.read_bytes())
    (tmp_path / "onnx.json").write_text(json.dumps({**ABOUT, "model": "net.onnx", "mean": None}))
    beside, told = taught(tmp_path, SEEN, params={"mean": MEAN}), taught(of_images, SEEN, params=ABOUT)
    batch = batch_of(told.data("train"))
    assert torch.equal(own_rows(beside, tmp_path, batch), own_rows(told, of_images, batch))
    assert torch.equal(own_rows(beside, file, batch), own_rows(told, of_images, batch))
    other = taught(of_images, SEEN, params={**ABOUT, "mean": [0, 0, 0, 0, 0]}).load("teacher", of_images)
    origin = told.load("teacher", of_images).state_dict()["origin"]
    assert not torch.equal(origin, other.state_dict()["origin"]), "a cache must not take one for the other"


def test_of_some_classes(of_images: Path) -> None:
    known = ["car", "person", "ground"]
    about = {**ABOUT, "classes": ["car", "person", "ground", *[None] * 7]}
    made = taught(of_images, SEEN | {"classes": known}, params=about)
    found = own_rows(made, of_images, batch_of(made.data("train")))
    there = [name in known for name in made.classes]
    assert found[:, there].isfinite().all() and found[:, [not one for one in there]].isinf().all()
    with pytest.raises(UserError, match=r"none of its outputs is 'pavement': name it among its classes, or set"):
        taught(of_images, SEEN, params=about).load("teacher", of_images)


# Somebody else's, of points


@pytest.mark.parametrize(
    ("fixed", "first", "batched"),
    [
        (400, False, True),
        (None, True, True),
        pytest.param(None, False, False, marks=pytest.mark.full),
        pytest.param(400, False, False, marks=pytest.mark.full),
    ],
)
def test_points_go_in_as_it_takes_them(tmp_path: Path, fixed: int | None, first: bool, batched: bool) -> None:
    path = of_points(tmp_path, fixed, first=first, batched=batched)
    made = taught(path, "points", "points")
    batch = batch_of(made.data("train"), (0, 1, 2))
    torch.manual_seed(0)
    network = OfPoints(first=False, batched=False)
    sets = batch["teacher"]["inputs"][:, :3].split(batch["teacher"]["lengths"].tolist())
    with torch.no_grad():
        expected = ours(torch.cat([network(one) for one in sets]))
    torch.testing.assert_close(own_rows(made, path, batch), expected, rtol=1e-4, atol=1e-4)
    assert made.evaluate("teacher", made.load("teacher", path), "dev").metrics["miou"] >= 0


def test_the_description_in_the_documentation_is_one() -> None:
    text = (Path(__file__).parents[3] / "docs/own_models.md").read_text()
    [block] = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    about = Network.model_validate_json(block)
    assert about.classes is not None and set(about.classes) == {None, *classes_of("semantickitti").names}


# What does not fit


@pytest.mark.parametrize(
    ("params", "view", "said"),
    [
        ({"channels": None, "mean": None, "std": None}, {}, "what is it given.* in order, of range, x, y, z"),
        ({"channels": [*CHANNELS[:4], "remission"]}, {}, "has no channel 'remission'.*: name in channels of"),
        ({}, {"intensity": False}, "no channel 'intensity'.*: set intensity of its view to true"),
        ({"channels": CHANNELS[:4], "mean": None, "std": None}, {}, "takes 5 channels, and is given 4 .range, x, y"),
        ({"mean": MEAN[:4]}, {}, "teacher.params: mean has 4 numbers, and channels 5"),
        ({"std": [1, 1, 1, 1, 0]}, {}, "std is above 0"),
        ({"chanels": CHANNELS}, {}, "teacher.params: chanels: Extra inputs"),
        ({"classes": (*THEIRS[1:], None, None)}, {}, r"answers \(1, 10, 64, 64\), and \(11, 64, 64\) is expected"),
        ({"classes": None}, {}, r"answers .*, with 8 classes: name each output in classes of onnx.json, null for"),
        ({"classes": ["car", "car"]}, {}, "classes has 'car' twice"),
        ({}, {"columns": 128}, "takes views of 64 x 64, and is given 64 x 128: set beams and columns"),
        ({}, {"beams": 16}, "takes views of 64 x 64, and is given 16 x 64: set beams and columns"),
        ({"probabilities": False}, {}, "its answers are probabilities, not logits: say probabilities: true"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line(of_images: Path, params: Any, view: Any, said: str) -> None:
    made = taught(of_images, SEEN | view, params=ABOUT | params)
    with pytest.raises(UserError, match=said) as found:
        made.load("teacher", of_images)
    assert "\n" not in str(found.value)


def test_files_that_are_none(of_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = taught(of_images, SEEN, params=ABOUT)
    (tmp_path / "text.onnx").write_text("no graph")
    with pytest.raises(UserError, match=r"text.onnx: not a model that ONNX Runtime can read"):
        made.load("teacher", tmp_path / "text.onnx")
    with pytest.raises(UserError, match=r"none.onnx: no such file: name it as model in onnx.json, or as teacher.path"):
        made.load("teacher", tmp_path / "none.onnx")
    (tmp_path / "onnx.json").write_text('{"model": "other.onnx"}')
    refused = sketch(Given(tmp_path / "text.onnx", Path("simulator"), SIZES["small"])).problems
    assert "without the card.json of its export does not say what it sees" in refused[0]
    with pytest.raises(UserError, match=r"it describes other.onnx: name text.onnx there as model, or no model"):
        made.load("teacher", tmp_path / "text.onnx")
    hard = written(OfImages(soft=False), tmp_path / "hard.onnx", torch.zeros(1, 5, 64, COLUMNS), {}, ABOUT)
    with pytest.raises(UserError, match=r"its answers are no probabilities, which sum to 1: leave probabilities out"):
        taught(hard, SEEN).load("teacher", hard)
    of_sets = of_points(tmp_path, 200)
    with pytest.raises(UserError, match=r"it takes 200 points, and is given 300: set points of the teacher's view to"):
        taught(of_sets, "points", "points").load("teacher", of_sets)
    with pytest.raises(UserError, match=r"its inputs are x float \(200, 3\): \(b, c, h, w\) alone is expected"):
        taught(of_sets, SEEN).load("teacher", of_sets)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"onnxruntime .* cannot be loaded .*: pip install"):
        made.load("teacher", of_images)


def test_only_its_answers_teach(of_images: Path) -> None:
    made = taught(of_images, SEEN, params=ABOUT)
    model = made.load("teacher", of_images)
    with pytest.raises(UserError, match=r"no module 'encoder\.0' in OnnxSegmenter"):
        made.signals("teacher", model, batch_of(made.data("train")), ["encoder.0"])


# Runs


def test_a_run_from_a_cache_and_its_check(
    of_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("xmodal_kd.run.runner.LATENCY", 0.01)
    monkeypatch.setattr(PointsAdapter, "export", lambda *_: {})
    file = tmp_path / "net.onnx"
    file.write_bytes(of_images.read_bytes())
    (tmp_path / "onnx.json").write_text(json.dumps(ABOUT))
    sets = [
        f"teacher={{path: {file}}}", "self_training=false", f"data.teacher={json.dumps(SEEN)}", "cache={view: replay}",
        "train.steps=2", "train.eval_every=2", "labels=4",
    ]  # fmt: skip
    assert run(tmp_path / "run", *sets) == 0
    report = read_json(tmp_path / "run/report.json")
    assert report["roles"]["teacher"]["parameters"] == 460 and report["roles"]["teacher"]["metrics"]["miou"] >= 0
    assert read_json(tmp_path / "run/made_from.json")["loaded"]["teacher"].keys() == {"net.onnx", "onnx.json"}
    words = [word for one in [*sets, "data.teacher.columns=128"] for word in ("--set", one)]
    capfd.readouterr()
    assert call(["check", "smoke/points", "--json", *words]) == 1
    assert "takes views of 64 x 64, and is given 64 x 128" in capfd.readouterr().out
