"""Batches: which row of the teacher stands beside which of the student, and what of a frame repeats."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from points_small import COLUMNS, VIEWS, batch_of, equal, points_data

from xmodal_kd.modalities.points.data.classes import EIGHT
from xmodal_kd.modalities.points.data.frame import CLASSES
from xmodal_kd.modalities.points.data.frames import Joined, Recorded
from xmodal_kd.modalities.points.data.simulator.sensors import SENSORS
from xmodal_kd.modalities.points.views.correspondence import Correspondence
from xmodal_kd.modalities.points.views.regions import VOXELS, minor
from xmodal_kd.modalities.points.views.source import PointsSource, Sample
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.training.label_budget import LabelBudget
from xmodal_kd.training.loader import steps

PAIRS = [
    ("scan", "sparse"), ("scan", "image"), ("image", "sparse"), ("scan", "points"), ("points", "sparse"),
    ("fused", "sparse"), ("image", "points"),
]  # fmt: skip


def source_of(
    teacher: str | dict[str, Any] = "scan", student: str = "sparse", split: str = "train", **more: Any
) -> PointsSource:
    return PointsSource(points_data(teacher, student, **more), split, Streams(1), 2)


def expected(sample: Sample, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Point by point: the mean of the teacher's values at a student's row over the points that both show there."""
    total, count = np.zeros(sample.student.rows), np.zeros(sample.student.rows)
    for ours, theirs in zip(sample.student.element, sample.teacher.element, strict=True):
        if ours >= 0 and theirs >= 0:
            total[ours] += values[theirs]
            count[ours] += 1
    return total / np.maximum(count, 1), count > 0


@pytest.mark.parametrize(("teacher", "student"), PAIRS)
@pytest.mark.parametrize("seen", ["clean", "augmented"])
def test_row_i_of_the_teacher_is_row_i_of_the_student(teacher: str, student: str, seen: str) -> None:
    augment = {"rotate": True, "flip": True, "drop": 0.1, "shuffle": True, "crop": 0.8}
    source = source_of(teacher, student, teacher_view=seen, augment=augment)
    samples = [source.sample(i, epoch=1) for i in (0, 3)]
    batch = source.collate(samples)
    match: Correspondence = batch["match"]
    values = [np.random.default_rng(i).random(s.teacher.rows) for i, s in enumerate(samples)]
    rows, reached = match.gather(torch.from_numpy(np.concatenate(values))[:, None])
    want = [expected(s, v) for s, v in zip(samples, values, strict=True)]
    assert (reached.numpy() == np.concatenate([mask for _, mask in want])).all()
    np.testing.assert_allclose(rows[:, 0].numpy(), np.concatenate([mean for mean, _ in want]), atol=1e-9)
    assert reached.sum() > 20, "enough to learn from"
    assert batch["student"]["valid"][reached].all() and batch["repeats"] is (seen == "clean")


def test_what_reaches_a_turned_cell_is_what_the_teacher_knew_of_that_place() -> None:
    """By content and not by index: distance from the axis, height and label survive turning and mirroring."""
    source = source_of()
    batch = batch_of(source, (0, 1, 2), epoch=4)
    match, ours = batch["match"], batch["student"]
    clean = [source.moment(i).teacher for i in (0, 1, 2)]
    place = np.nan_to_num(np.concatenate([s.xyz for s in clean]))
    told = np.stack([np.hypot(*place[:, :2].T), place[:, 2], np.concatenate([s.labels for s in clean])], axis=1)
    rows, reached = match.gather(torch.from_numpy(told))
    x, y, z = ours["xyz"][reached].double().T
    mine = torch.stack([torch.hypot(x, y), z, ours["labels"][reached].double()], dim=1)
    torch.testing.assert_close(rows[reached], mine, rtol=1e-4, atol=1e-4)
    assert not torch.equal(ours["inputs"], source.collate([source.clean(i) for i in (0, 1, 2)])["student"]["inputs"])


def test_a_clean_teacher_view_repeats_and_a_learning_teacher_sees_the_augmented_one() -> None:
    source = source_of()
    first, second = (batch_of(source, epoch=e) for e in (0, 1))
    assert equal(first["teacher"], second["teacher"]) and not equal(first["student"], second["student"])
    source.learns = "teacher"
    one, other = (batch_of(source, epoch=e) for e in (0, 1))
    assert not one["repeats"] and not equal(one["teacher"], other["teacher"])
    assert equal(one["student"], first["student"]), "who learns is nothing to the student"


@pytest.mark.parametrize("student", ["sparse", "points", "image"])
def test_a_sample_is_a_function_of_epoch_and_index(student: str) -> None:
    source, again = source_of(student=student), source_of(student=student)
    second = batch_of(source, (0, 1), epoch=1)
    batch_of(again, (2, 0), epoch=0)
    assert equal(batch_of(again, (0, 1), epoch=1), second)
    assert not equal(batch_of(again, (0, 1), epoch=2), second)


def test_dev_is_as_it_is_in_every_epoch() -> None:
    source = source_of(split="dev")
    assert equal(batch_of(source, epoch=0), batch_of(source, epoch=5))
    assert source.plan(0) == source.plan(1) == [[0, 1]] and not source.repeats
    train = source_of()
    assert sorted(i for b in train.plan(0) for i in b) == list(range(6)) and train.plan(0) != train.plan(1)


@pytest.mark.parametrize("student", ["sparse", "points"])
def test_workers_give_the_same_batches(student: str) -> None:
    alone, apart = (steps(source_of(student=student), workers=n) for n in (0, 2))
    try:
        for _ in range(4):  # into the second epoch
            [one], [other] = next(alone), next(apart)
            assert equal(one, other)
    finally:
        alone.close()  # type: ignore[attr-defined]
        apart.close()  # type: ignore[attr-defined]
    for process in multiprocessing.active_children():
        process.join(timeout=10)


def test_micro_batches_together_are_the_batch() -> None:
    [whole] = next(steps(source_of()))
    parts = next(steps(source_of(), accumulate=2))
    assert torch.equal(whole["ids"], torch.cat([p["ids"] for p in parts]))
    for key in ("inputs", "labels", "xyz"):
        both = torch.cat([p["student"][key] for p in parts])
        assert torch.equal(whole["student"][key].nan_to_num(), both.nan_to_num())


# ---------------------------------------------------------------- regions


def test_regions_are_numbered_through_the_batch() -> None:
    source = source_of()
    side = batch_of(source, (0, 1))["student"]
    item = torch.arange(2).repeat_interleave(side["lengths"])
    voxels = int(np.prod(VOXELS))
    known = side["voxels"] >= 0
    assert (side["voxels"][known] // voxels == item[known]).all()
    assert known[side["valid"]].float().mean() > 0.8 and not known[~side["valid"]].any()
    drawn = side["supervoxels"] >= 0
    assert (side["supervoxels"][drawn] // 3 == item[drawn]).all() and drawn.sum() > 10
    assert side["supervoxels"].max() <= 5 and not drawn[~side["valid"]].any()


def test_supervoxels_are_drawn_anew_in_every_epoch_and_not_without_training() -> None:
    source = source_of()
    assert (source.sample(0, 0).supervoxel != source.sample(0, 1).supervoxel).any()
    assert (source.clean(0).supervoxel == -1).all()


def test_supervoxels_do_not_look_at_labels_that_nobody_may_look_at() -> None:
    """Which ones are drawn follows the classes of the labelled frames, and of no other."""
    source, blind, forged = source_of(), source_of(), source_of()
    for one in (source, blind, forged):
        one.known = frozenset({0})
    blind.known = frozenset()
    for index in (0, 1, 2):
        seen = forged.moment(index).student
        seen.labels[seen.valid] = minor(EIGHT)[0]  # the remembered view itself
    drawn = [[s.sample(i, e).supervoxel for i in (1, 2) for e in range(3)] for s in (source, blind, forged)]
    for a, b, c in zip(*drawn, strict=True):
        assert (a == b).all() and (a == c).all()
    epochs = range(8)
    assert any((source.sample(0, e).supervoxel != forged.sample(0, e).supervoxel).any() for e in epochs)


# ---------------------------------------------------------------- classes


def test_classes_are_counted_in_the_labelled_frames_only(monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_of()
    by_frame = [
        np.bincount(s[s >= 0], minlength=len(CLASSES)) for i in range(6) for s in [source.moment(i).student.labels]
    ]
    assert (source.count([1, 4]) == by_frame[1] + by_frame[4]).all()
    assert (source.count() == sum(by_frame)).all() and (source.count([]) == 0).all()
    monkeypatch.setattr("xmodal_kd.modalities.points.views.source.COUNTED", 3)
    assert (source.count() == by_frame[0] + by_frame[2] + by_frame[5]).all(), "of many, evenly among them"


# ---------------------------------------------------------------- recorded frames, and frames without labels


def recorded(folder: Path, **more: Any) -> dict[str, Any]:
    spans = {"train": {"last": 4}, "dev": {"first": 4, "last": 5}, "test": {"first": 5, "last": 7}}
    return {"sources": "semantickitti", "path": folder, "scenes": {}} | spans | more


def test_recorded_frames_are_what_was_simulated(drives: Path) -> None:
    source = source_of(**recorded(drives))
    assert (len(source), list(source.labelled)) == (4, [0, 1, 2, 3])
    made = source_of(scenes={"train": 1, "dev": 1, "test": 1})
    newest, simulated = source.moment(3), made.moment(0)  # the last one written is the moment itself
    assert newest.key == "00/000003"
    torch.testing.assert_close(newest.student.inputs, simulated.student.inputs)
    assert (newest.student.labels == simulated.student.labels).all()
    assert [source_of(split=s, **recorded(drives)).moment(0).key for s in ("dev", "test")] == ["01/000000", "01/000001"]


def test_sweeps_come_from_the_same_drive_and_are_not_repeated(drives: Path) -> None:
    teacher = {"sees": "points", "sweeps": 3}
    content = recorded(drives, teacher=teacher, dev={"first": 4, "last": 6}, test={"first": 6, "last": 7})
    train, dev, test = (source_of(split=s, **content).frames for s in ("train", "dev", "test"))
    keys = [[[f.key for f in frames[i]] for i in range(len(frames))] for frames in (train, dev, test)]
    assert keys[0][:3] == [["00/000000"], ["00/000001", "00/000000"], ["00/000002", "00/000001", "00/000000"]]
    assert keys[1] == [["01/000000"], ["01/000001", "01/000000"]]
    assert len(keys[2][0]) == 3
    first = source_of(split="dev", **content).moment(0)
    assert first.teacher.rows == len(dev[0][0].scan)


def test_frames_without_labels_join_the_training_frames(drives: Path) -> None:
    unlabelled = {"sources": "semantickitti", "path": drives, "frames": {"first": 4}, "repeat": 3}
    source = source_of(unlabelled=unlabelled)
    assert isinstance(source.frames, Joined)
    assert (len(source), list(source.labelled)) == (6 + 3 * 3, list(range(6)))
    assert [source.moment(i).key for i in (5, 6, 8, 9, 14)] == [
        "train-000005", "01/000000", "01/000002", "01/000000", "01/000002"
    ]  # fmt: skip
    batch = batch_of(source, (0, 6))
    assert batch["student"]["inputs"].shape == (2, 5, 16, COLUMNS) and batch["match"].reached.sum() > 200
    assert 6 not in source.known, "the labels that it has are nobody's"
    facts = source.describe()
    assert (facts["labelled"], facts["frames"]) == (6, 15)
    assert (facts["unlabelled"]["repeat"], facts["unlabelled"]["first"], facts["unlabelled"]["last"]) == (3, 4, 6)
    assert len(source_of(split="dev", unlabelled=unlabelled)) == 2, "they are of the training split only"


def test_batches_of_scarce_labels_hold_frames_of_both_kinds(drives: Path) -> None:
    unlabelled = {"sources": "semantickitti", "path": drives, "repeat": 2}
    source = source_of(unlabelled=unlabelled)
    scarce = LabelBudget(source, [0, 2], 4, Streams(1), pool=True)
    [batch] = next(steps(scarce))
    assert batch["labelled"].sum() >= 2 and batch["repeats"]
    assert set(batch["ids"][:4:2].tolist()) <= {0, 2}


def test_frames_of_two_sensors_do_not_make_a_batch(nuscenes_frame: Path) -> None:
    """32 beams beside 64: fine where both are thinned to 16, and said in words where they are not."""
    unlabelled = {"sources": "nuscenes", "path": nuscenes_frame}
    source = source_of("sparse", "sparse", unlabelled=unlabelled)
    assert batch_of(source, (0, 6))["student"]["inputs"].shape == (2, 5, 16, COLUMNS)
    with pytest.raises(UserError, match=r"of 64 and of 32 beams: .* data\.sensor"):
        batch_of(source_of(unlabelled=unlabelled), (0, 6))


def test_frames_out_of_range(drives: Path) -> None:
    for frames in ({"first": 7}, {"first": 2, "last": 8}):
        with pytest.raises(UserError, match=r"frames \d to .* of 7: first and last count from 0"):
            source_of(unlabelled={"sources": "semantickitti", "path": drives, "frames": frames})


def test_recordings_without_labels_cannot_be_measured_on(kitti: Path) -> None:
    content = {"sources": "kitti", "path": kitti, "train": {"last": 1}, "dev": {"first": 1, "last": 2}}
    frames = len(Recorded(points_data(unlabelled={"sources": "kitti", "path": kitti}).unlabelled, SENSORS["hdl64e"]))  # type: ignore[arg-type]
    assert frames >= 2
    with pytest.raises(UserError, match="kitti has no labels by point, so nothing can be measured on dev"):
        source_of(split="dev", **content, test={"first": frames})


def test_views_of_all_kinds_fit_into_batches() -> None:
    for student in VIEWS:
        side = batch_of(source_of(student=student))["student"]
        rows = int(side["lengths"].sum())
        assert all(len(side[k]) == rows for k in ("labels", "valid", "xyz", "distance", "voxels", "supervoxels"))
        assert torch.isinf(side["distance"][torch.isnan(side["xyz"]).any(dim=1)]).all()
