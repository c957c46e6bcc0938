"""Splits as lists of sequences: each frame in one split, labels looked for before training."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from points_small import points_data
from pydantic import ValidationError

from xmodal_kd.modalities.points.data.config import Frames, PointsData
from xmodal_kd.modalities.points.data.frames import frames_of
from xmodal_kd.modalities.points.data.simulator.cast import simulate
from xmodal_kd.modalities.points.data.simulator.sensors import sensor
from xmodal_kd.runtime.errors import UserError


def data(folder: Path, **splits: object):
    return points_data(sources="semantickitti", path=str(folder), **splits)


@pytest.fixture
def three(drives: Path, tmp_path: Path) -> Path:
    """Sequences 00 (four frames), 01 and 08 (three each)."""
    folder = shutil.copytree(drives, tmp_path / "set")
    shutil.copytree(folder / "sequences/01", folder / "sequences/08")
    return folder


def test_a_list_of_sequences_is_read_as_it_is_written() -> None:
    """YAML takes 00 and 10 for numbers, 08 for a word."""
    written = yaml.safe_load("[00, 07, 08, 10]")
    assert Frames.model_validate(written).sequences == ("00", "07", "08", "10")
    assert Frames.model_validate({"sequences": ["a", 3]}).sequences == ("a", "03")


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"train": [0, 1], "dev": ["08"], "test": [1]}, "train, dev and test overlap"),
        ({"train": [0], "dev": {"first": 3}, "test": [1]}, "all as lists of sequences"),
        ({"train": [], "dev": [1], "test": [2]}, "name at least one"),
        ({"train": [0, 0], "dev": [1], "test": [2]}, "each once"),
        ({"train": {"sequences": [0], "last": 3}, "dev": [1], "test": [2]}, "leave first and last out"),
        (
            {
                "train": [0],
                "dev": [1],
                "test": [2],
                "unlabelled": {"sources": "semantickitti", "path": "d", "frames": [2]},
            },
            "unlabelled and test overlap",
        ),
    ],
)
def test_lists_that_cannot_be(splits: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        data(Path("d"), **splits)


def test_each_split_has_the_frames_of_its_sequences(three: Path) -> None:
    splits = data(three, train=[0], dev=[1], test=["08"])
    for split, sequence, count in (("train", "00", 4), ("dev", "01", 3), ("test", "08", 3)):
        frames = frames_of(splits, split)
        assert len(frames) == count == len(frames.labelled) and frames.describe()["sequences"] == [sequence]
        assert all(frames[i][0].key.startswith(f"{sequence}/") for i in range(count))
    assert len(frames_of(data(three, train=[0, "08"], dev=[1], test=[1 + 98]), "train")) == 7


def test_sequences_without_labels_are_named_before_training(three: Path) -> None:
    splits = data(three, train=[0, 1], dev=["08"], test=["09"])
    with pytest.raises(UserError, match=r"no sequence '09' \(there are 00, 01, 08\)"):
        frames_of(splits, "test")
    gone = three / "sequences/01/labels/000001.label"
    gone.unlink()
    with pytest.raises(UserError, match=rf"{gone}: no such file"):
        frames_of(splits, "train")
    shutil.rmtree(three / "sequences/01/labels")
    with pytest.raises(UserError, match=r"sequence '01' of data\.train has no labels"):
        frames_of(splits, "train")
    more = {"sources": "semantickitti", "path": str(three), "frames": [1]}
    joined = data(three, train=[0], dev=["08"], test=[99], unlabelled=more)
    assert len(frames_of(joined, "train")) == 7 and len(frames_of(joined, "train").labelled) == 4


def test_a_drive_is_its_worlds_moments_from_the_oldest_to_the_last() -> None:
    data = PointsData.model_validate({"sensor": "vlp16", "scenes": {"train": 2, "drive": 3, "first": 6, "test": 4},
                                      "teacher": {"columns": 32}, "student": {"columns": 32}})  # fmt: skip
    frames = frames_of(data, "train")
    assert len(frames) == 6 and len(frames_of(data, "test")) == 4
    ages = ("-2", "-1", "")
    assert [key for key, _ in frames.named] == [f"train-00000{world}{age}" for world in (6, 7) for age in ages]
    [middle], (last, *before) = frames[4], simulate("train", 7, sensor("vlp16", 32), sweeps=3)
    assert [middle.key, frames[5][0].key] == [before[0].key, last.key]
    for one, other in ((middle, before[0]), (frames[5][0], last)):
        assert np.array_equal(one.scan.xyz, other.scan.xyz) and np.array_equal(one.scan.labels, other.scan.labels)
    with pytest.raises(ValueError, match="ask for 41 frames of a world, which has 40"):
        PointsData.model_validate({"scenes": {"drive": 40}, "teacher": {"sweeps": 2}})
