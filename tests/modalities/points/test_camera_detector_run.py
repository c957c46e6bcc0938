"""Runs of detectors of photographs: what they leave, what a saved student does, a start from weights of others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detection_small import adapter, run
from once import once

from xmodal_kd.cli.main import call
from xmodal_kd.modalities.points.data.calibration import read_camera
from xmodal_kd.modalities.points.models.decoding import found as decoded
from xmodal_kd.modalities.points.tasks.detection import DetectionAdapter
from xmodal_kd.modalities.points.use.detect import Detector
from xmodal_kd.runtime.errors import UserError

Capture = pytest.CaptureFixture[str]


def camera(**more: Any) -> DetectionAdapter:
    seen = {"image": [32, 64], "student": {"sees": "image"}}
    return adapter(**{**seen, "augment": {"flip": True, "scale": [0.9, 1.1], "colour": 0.2}, **more})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the smoke recipe, made smaller."""

    def make(out: Path) -> None:
        sets = ("data.image=[32, 64]", "student.params={width: 4, picture: 4}")
        assert run(out, *sets, recipe="smoke/detection_camera") == 0

    return once(tmp_path_factory, "detection_camera", make)


def test_a_run_trains_measures_shows_and_exports(trained: Path) -> None:
    report = json.loads((trained / "report.json").read_text())
    boxes = {role: one["metrics"]["boxes"] for role, one in report["roles"].items()}
    assert set(boxes) == {"teacher", "control", "student"} and len(set(boxes.values())) == 1
    assert report["export"]["model.onnx"]["max_error"] < 1e-4
    card = (trained / "student/README.md").read_text()
    assert "It sees a photograph of 32 x 64 pixels, lifted to pillars of 0.4 m" in card and "image_2" in card


def test_a_saved_student_detects_in_photographs(trained: Path, kitti: Path, tmp_path: Path, capsys: Capture) -> None:
    folder, out = kitti / "training/image_2", tmp_path / "found"
    base = ["detect", "--model", str(trained / "student"), "--score", "0", "--json", "--out"]
    assert call([*base, str(out), str(folder)]) == 0
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(said) == len(list(folder.glob("*.png"))) and all(one["boxes"] and "points" not in one for one in said)
    assert not any("no calib beside" in note for note in said[0]["notes"])
    text = (out / "000000.txt").read_text().splitlines()
    assert text and all(len(line.split()) == 16 for line in text) and (out / "000000.png").is_file()
    intrinsics, moved = read_camera(kitti / "training/calib/000000.txt")
    told = tmp_path / "calib.json"
    told.write_text(json.dumps({"intrinsics": intrinsics.tolist(), "lidar_to_camera": moved.tolist()}))
    alone = tmp_path / "alone.png"
    alone.write_bytes((folder / "000000.png").read_bytes())
    assert call([*base, str(out), str(alone), "--calib", str(told)]) == 0
    assert json.loads(capsys.readouterr().out)["boxes"] == said[0]["boxes"]
    intrinsics[0, 0] *= 2
    told.write_text(json.dumps({"intrinsics": intrinsics.tolist(), "lidar_to_camera": moved.tolist()}))
    assert call([*base, str(out), str(alone), "--calib", str(told)]) == 0
    assert "the model learned 37: boxes will be too near" in capsys.readouterr().out
    for wrong, word in (((), "no calibration"), (("--calib", str(told), "--beams", "64"), "--beams is of scans")):
        assert call([*base, str(out), str(alone), *wrong]) == 2
        assert word in " ".join(capsys.readouterr().err.split())


def test_a_loaded_student_is_the_run_s_and_must_be_what_the_recipe_says(trained: Path) -> None:
    made = camera()
    folder = trained / "student"
    model, batch = made.load("student", folder), made.data("test").collate([made.data("test").clean(0)])
    frame, ground = made.data("test").frames[0][0], made.ground("student")
    with torch.no_grad():
        expected = decoded(made.answer("student", model, batch), ground, least=0.002)[0]
    found = Detector(folder).look(frame.pictures, least=0.002)
    assert not found.notes and len(found.found)
    np.testing.assert_allclose(found.found.scores, expected.scores, atol=1e-4)
    with pytest.raises(UserError, match=r"trained on photographs of \[32, 64\], data\.image says \[64, 64\]"):
        camera(image=[64, 64]).load("student", folder)
    with pytest.raises(UserError, match=r"trained with cell 0\.4, data\.student\.cell says 0\.8"):
        camera(student={"sees": "image", "cell": 0.8}).load("student", folder)
    with pytest.raises(UserError, match="sees 1 photographs of a moment"):
        Detector(folder).look([*frame.pictures] * 2)
    with pytest.raises(UserError, match="sees photographs, and this is a scan"):
        Detector(folder).detect(frame.scan)


@pytest.mark.full
def test_a_detector_starts_from_a_file_of_weights_and_is_built_without_it(tmp_path: Path) -> None:
    """The keys are those of segmenters of photographs (`test_pretrained`), below ``trunk``."""
    models = pytest.importorskip("torchvision.models", reason="of use to those who have torchvision: its encoders")
    torch.manual_seed(0)
    net = models.get_model("mobilenet_v3_small", weights=None)
    torch.save(net.state_dict(), tmp_path / "weights.pth")
    trunk = {"name": "mobilenet_v3_small", "weights": tmp_path / "weights.pth", "layers": ["features.1", "features.3"]}
    made = camera()
    student = made.build("student", "centerpoint_camera", {"width": 4, "stride": 8, "trunk": {**trunk, "width": 6}})
    held = student.get_parameter("picture.trunk.encoder.features.0.0.weight")
    assert torch.equal(held, net.state_dict()["features.0.0.weight"])
    made.begin("student", range(4))
    source = made.data("train")
    batch = source.collate([source.sample(i, 0) for i in range(2)])
    made.signals("student", student, batch).rows("logits").square().mean().backward()
    assert held.grad is not None and held.grad.abs().sum() > 0, "the encoder learns"
    made.save("student", student, tmp_path / "student")
    (tmp_path / "weights.pth").unlink()
    again = made.load("student", tmp_path / "student")
    with torch.no_grad():
        one, other = (made.answer("student", model.eval(), batch).heat for model in (student, again))
    assert torch.equal(one, other)
