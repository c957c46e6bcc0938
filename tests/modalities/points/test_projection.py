"""What `check` says of points and their pictures: each trap is set, and found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from xmodal_kd.check import data
from xmodal_kd.check.subject import Finding, Subject, prepare
from xmodal_kd.modalities.points.data.frame import Camera, Frame
from xmodal_kd.modalities.points.views.projection import projected, warned
from xmodal_kd.recipe.recipe import load

SMALL = (
    "data.scenes={train: 2, dev: 2, test: 2}", "data.student={sees: image}", "data.image=[32, 96]",
    "student={model: image_unet, params: {width: 4}}", "train.batch_size=2", "labels=null",
)  # fmt: skip
PLAIN = (SMALL[0], "labels=null", "train.batch_size=2", "teacher.train.batch_size=2")


@pytest.fixture(scope="module")
def subject() -> Subject:
    return prepare(load("smoke/points", SMALL), "cpu")


def found(subject: Subject) -> list[Finding]:
    return list(data.traps(subject))


def with_camera(subject: Subject, monkeypatch: pytest.MonkeyPatch, change: Any) -> list[Finding]:
    """What is found after the camera of the first frame has been changed."""
    assert subject.batch["keys"], "made with the camera as it is"
    frames = [list(subject.adapter.data("train").frames[i]) for i in range(2)]
    picture = frames[0][0].pictures[0]
    frames[0][0] = replace(frames[0][0], pictures=(replace(picture, camera=change(picture.camera)),))
    source = subject.adapter.data("train")
    monkeypatch.setattr(
        source, "frames", type("Changed", (list,), {"describe": source.frames.describe, "labelled": range(2)})(frames)
    )
    return found(subject)


def test_a_sound_camera_passes(subject: Subject) -> None:
    [one] = found(subject)
    assert (one.check, one.status) == ("data", "pass")
    assert "% of the points of 2 frames fall into the picture, at least" in one.found


def test_without_pictures_there_is_nothing_to_say() -> None:
    assert found(prepare(load("smoke/points", PLAIN), "cpu")) == []


def test_a_camera_that_sees_nothing_fails(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    def up(camera: Camera) -> Camera:
        turned = camera.lidar_to_camera.copy()
        turned[:3] = turned[[0, 2, 1]] * [[1.0], [1.0], [-1.0]]  # its axis points to the sky
        return replace(camera, lidar_to_camera=turned)

    first, *rest = with_camera(subject, monkeypatch, up)
    assert first.status == "fail" and "the camera sees none of the scan's points (1 of 2 frames)" in first.found
    assert "is this its calibration" in first.advice and rest == []


def test_a_picture_resized_after_its_calibration_is_warned_of(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    def small(camera: Camera) -> Camera:
        return replace(camera, height=camera.height // 3, width=camera.width // 3)

    findings = with_camera(subject, monkeypatch, small)
    assert "warn" in {f.status for f in findings}
    assert any("the optical axis meets a picture of 32 x 10 at (48, 16)" in f.found for f in findings)


def test_a_telescope_is_warned_of() -> None:
    scan = prepare(load("smoke/points", PLAIN), "cpu").adapter.data("train").frames[0][0].scan
    intrinsics = np.array([[400.0, 0, 48], [0, 400, 16], [0, 0, 1]])
    ahead = np.array([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
    camera = Camera(intrinsics, ahead, 32, 96)
    picture: Any = type("Taken", (), {"camera": camera})()
    [(status, what, advice)] = projected([Frame("far", scan, pictures=(picture,))])
    assert status == "warn" and "of far" in what and "calibration" in advice


def test_frames_on_which_the_teacher_is_silent(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    match = subject.batch["match"]
    mine = match.item == 0
    halved = replace(match, **{name: getattr(match, name)[mine] for name in ("source", "target", "weight", "item")})
    monkeypatch.setitem(subject.batch, "match", halved)
    _, silent = found(subject)
    assert silent.status == "warn" and "both sides see no point (1 of 2 frames)" in silent.found


def test_a_missing_baseline_comes_out_of_the_reader(tmp_path: Path) -> None:
    """KITTI's camera 2 with camera 0's projection: every point lies a little too far left."""
    for name in ("0", "1"):
        for kind in ("velodyne", "image_2", "calib"):
            (tmp_path / kind).mkdir(exist_ok=True)
        rng = np.random.default_rng(int(name))
        table = rng.uniform((5, -4, -2, 0), (45, 4, 1, 1), (400, 4))
        (tmp_path / f"velodyne/{name}.bin").write_bytes(table.astype("<f4").tobytes())
        Image.new("RGB", (1242, 375)).save(tmp_path / f"image_2/{name}.png")
        (tmp_path / f"calib/{name}.txt").write_text(
            "P2: 721.5 0 609.6 0 0 721.5 172.9 0 0 0 1 0\nR0_rect: 1 0 0 0 1 0 0 0 1\n"
            "Tr_velo_to_cam: 0 -1 0 0 0 0 -1 -0.08 1 0 0 -0.27\n"
        )
    one = f"data.unlabelled={{sources: kitti, path: {tmp_path}}}"
    findings = found(prepare(load("smoke/points", [*SMALL, one]), "cpu"))
    assert [f.status for f in findings] == ["pass", "warn"]
    assert "has no baseline term" in findings[1].found and findings[1].advice


def test_warnings_are_found_at_any_depth_and_once() -> None:
    said = {"train": {"warnings": ["a", "b"], "unlabelled": {"warnings": ["b", "c"]}}, "dev": {"warnings": ["a"]}}
    assert list(warned(said)) == ["a", "b", "c"]
