"""Real frames for the tests of points: beside the project, or where XMODAL_KD_DATA points."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from once import once
from points_small import AHEAD, drive, run, save
from shared_data import shared

from xmodal_kd.modalities.points.data.config import View
from xmodal_kd.modalities.points.data.frame import Camera, Picture


@pytest.fixture(scope="session")
def kitti() -> Path:
    return shared("kitti")


@pytest.fixture(scope="session")
def kitti_raw() -> Path:
    return shared("kitti_raw")


@pytest.fixture(scope="session")
def nuscenes_frame() -> Path:
    return shared("nuscenes_frame")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the smoke recipe, made smaller: teacher, control, student and its twin."""

    def make(out: Path) -> None:
        assert run(out, export=True) == 0

    return once(tmp_path_factory, "points", make)


@pytest.fixture(scope="session")
def drives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two drives of four and three frames in SemanticKITTI's layout, with photographs."""
    folder = tmp_path_factory.mktemp("drives")
    return drive(drive(folder, 4, camera=True), 3, sequence=1, camera=True, index=1)


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student of 16 of 64 beams."""
    return save(tmp_path_factory.mktemp("sparse"), "range_unet", View(beams=16, columns=64), 5, width=4)


@pytest.fixture(scope="module")
def camera_student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("image"), "image_unet", View(sees="image"), 3, width=4, levels=3)


@pytest.fixture
def picture() -> Picture:
    rgb = np.random.default_rng(0).integers(0, 255, (64, 128, 3), dtype=np.uint8)
    return Picture(Camera(np.array([[64.0, 0, 64], [0, 64, 32], [0, 0, 1]]), AHEAD, 64, 128), rgb)
