"""A segmenter that ran elsewhere: by its logits of every point it teaches what it would teach itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from points_small import adapter, batch_of, points_data, run
from safetensors.numpy import load_file, save_file

from xmodal_kd.modalities.points.adapter import PointsAdapter
from xmodal_kd.modalities.points.data.config import PointsData
from xmodal_kd.modalities.points.data.frame import CLASSES
from xmodal_kd.modalities.points.data.frames import frames_of
from xmodal_kd.modalities.points.tasks.detection import DetectionAdapter
from xmodal_kd.recipe.recipe import Teacher
from xmodal_kd.runtime.checkpoint import read_json
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams

FEW = {"train": 3, "dev": 1, "test": 1}
#: The folder's own order, with one class that nobody here knows and without "person".
THEIRS = ("car", "fence", "ground", "pavement", "truck", "building", "pole", "tree")


def write(folder: Path, name: str, logits: np.ndarray) -> None:
    folder.mkdir(exist_ok=True)
    if name.endswith(".npy"):
        np.save(folder / name, logits)
    elif name.endswith(".npz"):
        np.savez(folder / name, logits=logits)
    else:
        save_file({"logits": logits}, folder / name)


@pytest.fixture(scope="module")
def logits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of all frames, in three formats by turns."""
    folder, rng = tmp_path_factory.mktemp("logits"), np.random.default_rng(0)
    for split in FEW:
        frames = frames_of(points_data(scenes=FEW), split)
        for i, (key, _) in enumerate(frames.named):
            rows = rng.standard_normal((len(frames[i][0].scan), len(CLASSES))).astype(np.float16)
            write(folder, key + (".npz", ".npy", ".safetensors")[i % 3], rows)
    return folder


def taught(folder: Path, student: str = "sparse", on_missing: Any = "error", **more: Any) -> PointsAdapter:
    made = adapter("scan", student, scenes=FEW, **more)
    made.teachers = {"teacher": Teacher(signals=folder, on_missing=on_missing)}
    return made


def held(folder: Path, key: str) -> np.ndarray:
    [path] = folder.glob(f"{key}.*")
    if path.suffix == ".safetensors":
        return load_file(path)["logits"].astype(np.float64)
    found = np.load(path)
    return np.asarray(found if path.suffix == ".npy" else found["logits"], dtype=np.float64)


@pytest.mark.parametrize("student", ["sparse", "points", "image"])
def test_what_was_said_of_the_points_of_a_row_is_what_teaches_it(logits: Path, student: str) -> None:
    """Point by point: the mean of those that the student's row shows, after its augmentation."""
    made = taught(logits, student, augment={"rotate": student != "image", "flip": True, "drop": 0.1})
    model = made.load("teacher", logits).eval()
    made.begin("student", range(3))
    source = made.data("train")
    batch = batch_of(source, (0, 1, 2), epoch=1)
    said = made.signals("teacher", model, batch)
    rows, layout = said["logits"]
    sums, counts = np.zeros((len(rows), len(CLASSES))), np.zeros(len(rows))
    start = 0
    for index in (0, 1, 2):
        sample = source.sample(index, 1)
        stored = held(logits, sample.key)
        for point, row in enumerate(sample.student.element.tolist()):
            if row >= 0:
                sums[start + row] += stored[point]
                counts[start + row] += 1
        start += sample.student.rows
    seen = counts > 0
    np.testing.assert_array_equal(layout.mask.numpy(), seen & batch["student"]["valid"].numpy())
    mask = layout.mask.numpy()
    assert mask.sum() > 50
    np.testing.assert_allclose(rows.numpy()[mask], sums[mask] / counts[mask][:, None], rtol=1e-4, atol=1e-4)


def test_classes_go_by_their_names(logits: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for path in logits.iterdir():
        count = len(held(logits, path.stem))
        write(tmp_path / "mine", f"{path.stem}.npz", rng.standard_normal((count, len(THEIRS))).astype(np.float32))
    (tmp_path / "mine" / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(THEIRS)}))
    made = taught(tmp_path / "mine")
    model = made.load("teacher", tmp_path / "mine")
    frame = made.data("train").frames[0][0]
    said, stored = frame.scan.said["teacher"], held(tmp_path / "mine", frame.key)
    for i, name in enumerate(CLASSES):
        if name == "person":
            assert np.isneginf(said[:, i]).all()
        else:
            np.testing.assert_allclose(said[:, i], stored[:, THEIRS.index(name)], rtol=1e-6)
    assert torch.isfinite(model.anchor).all()
    found = made.evaluate("teacher", model.eval(), "dev").metrics
    assert 0 <= found["miou"] < 0.4, "what is said at random is no better than chance"


def test_of_a_scan_without_a_file_nothing_is_learned(logits: Path, tmp_path: Path) -> None:
    for path in logits.iterdir():
        if path.stem != "train-000001":
            (tmp_path / path.name).hardlink_to(path)
    with pytest.raises(
        UserError, match=r"no logits of 'train-000001' of train: add .*, or say teacher.on_missing=skip"
    ):
        taught(tmp_path).load("teacher", tmp_path)
    made = taught(tmp_path, on_missing="skip")
    model = made.load("teacher", tmp_path).eval()
    made.begin("student", range(3))
    layout = made.signals("teacher", model, batch_of(made.data("train"))).layout("logits")
    assert layout.mask[layout.item == 0].any() and not layout.mask[layout.item == 1].any()
    assert made.evaluate("teacher", model, "dev").metrics["miou"] > 0
    assert (made.answer("teacher", model, batch_of(made.data("train"), (1,))) == 0).all()


def bad(rows: int, what: str) -> np.ndarray:
    return {
        "points": np.zeros((rows - 1, 8)), "classes": np.zeros((rows, 19)), "axes": np.zeros((rows, 4, 2)),
        "probabilities": np.full((rows, 8), 0.125), "nan": np.full((rows, 8), np.nan),
    }[what].astype(np.float32)  # fmt: skip


@pytest.mark.parametrize(("what", "reason"), [
    ("points", r"train-000000.npy: logits of \d+ points, and its scan 'train-000000' has \d+"),
    ("classes", r"of 19 classes, and the data have 8: name the columns in vocab.json"),
    ("axes", r"of shape \(\d+, 4, 2\): \(points, classes\) is expected"),
    ("probabilities", "these are probabilities, not logits"),
    ("nan", "logits hold NaN or Inf"),
])  # fmt: skip
def test_what_does_not_fit_the_first_scan_is_refused_before_anything_is_trained(
    logits: Path, tmp_path: Path, what: str, reason: str
) -> None:
    for path in logits.iterdir():
        if path.stem != "train-000000":
            (tmp_path / path.name).hardlink_to(path)
    write(tmp_path, "train-000000.npy", bad(len(held(logits, "train-000000")), what))
    with pytest.raises(UserError, match=reason):
        taught(tmp_path).load("teacher", tmp_path)


def test_detectors_do_not_learn_from_points(tmp_path: Path) -> None:
    data = {"task": "detection", "teacher": {"sees": "pillars"}, "student": {"sees": "pillars", "beams": 16}}
    made = DetectionAdapter(PointsData.model_validate(data), Streams(1), 2)
    made.teachers = {"teacher": Teacher(signals=tmp_path)}
    with pytest.raises(UserError, match="logits by point are of segmentation"):
        made.load("teacher", tmp_path)


@pytest.mark.full
def test_a_whole_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """The labels as logits: a teacher that is always right, and what is missing is one line."""
    monkeypatch.setattr("xmodal_kd.run.runner.LATENCY", 0.01)
    folder = tmp_path / "logits"
    for split in FEW:
        frames = frames_of(points_data(scenes=FEW), split)
        for i, (key, _) in enumerate(frames.named):
            labels = frames[i][0].scan.labels
            assert labels is not None
            write(folder, f"{key}.npz", 9 * np.eye(len(CLASSES), dtype=np.float16)[labels])
    sets = [
        f"teacher={{signals: {folder}}}", "self_training=false", "data.measure=points", f"data.scenes={FEW}",
        "labels=2", "train.batch_size=2", "train.steps=2",
    ]  # fmt: skip
    assert run(tmp_path / "run", *sets) == 0
    report = read_json(tmp_path / "run" / "report.json")
    test = report["roles"]["teacher"]["metrics"]
    assert test["miou_points"] == 1 and test["miou"] > 0.9, "cells that show several points are their mean"
    (folder / "dev-000000.npz").unlink()
    capfd.readouterr()
    assert run(tmp_path / "other", *sets) == 2
    assert "no logits of 'dev-000000' of dev" in capfd.readouterr().err
