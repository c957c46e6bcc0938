"""Real frames for the tests of points: beside the project, or where XMODAL_KD_DATA points."""

from __future__ import annotations

from pathlib import Path

import pytest
from once import once
from points_small import drive, run
from shared_data import shared


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
        assert run(out) == 0

    return once(tmp_path_factory, "points", make)


@pytest.fixture(scope="session")
def drives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two drives of four and three frames in SemanticKITTI's layout, with photographs."""
    folder = tmp_path_factory.mktemp("drives")
    return drive(drive(folder, 4, camera=True), 3, sequence=1, camera=True, index=1)
