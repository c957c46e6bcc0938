"""Detectors: cells and boxes of cells, augmentation, signals on the student's cells, decoding, a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from detection_small import adapter, detection_data, run, smallest
from once import once
from points_small import adapter as segmenting

from xmodal_kd.cli.main import call
from xmodal_kd.modalities.points.data.frame import Camera
from xmodal_kd.modalities.points.data.kitti_labels import lines, rectangles
from xmodal_kd.modalities.points.data.readers.kitti import read_boxes, read_object_calibration
from xmodal_kd.modalities.points.evaluate.detection import DetectionTally
from xmodal_kd.modalities.points.methods import LabelKD, LabelKDParams, joined
from xmodal_kd.modalities.points.models.centre import Answer
from xmodal_kd.modalities.points.models.decoding import Found, found
from xmodal_kd.modalities.points.tasks.detection import DetectionAdapter
from xmodal_kd.modalities.points.use.detect import Detector, photographed
from xmodal_kd.modalities.points.views.augment import Motion, apply_points, turned
from xmodal_kd.modalities.points.views.detection_source import DetectionSource, as_rows
from xmodal_kd.modalities.points.views.ground import Ground, matched, pillars, shifts, targets
from xmodal_kd.modalities.points.views.overlap import corners
from xmodal_kd.objective.objective import Objective
from xmodal_kd.recipe.recipe import Term, Train
from xmodal_kd.runtime.distributed import Ranks
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.runtime.timing import StepTimer
from xmodal_kd.signals.signals import Signals
from xmodal_kd.training.method import Context, Stage

Capture = pytest.CaptureFixture[str]
GROUND = Ground((-4.0, -2.0), 1.0, (8, 4))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the smoke recipe, made smaller."""

    def make(out: Path) -> None:
        assert run(out) == 0

    return once(tmp_path_factory, "detection", make)


# Cells


def test_cells_of_places() -> None:
    xyz = np.array([[-4, -2, 0], [-3.01, -1.99, 5], [3.99, 1.99, 0], [4, 0, 0], [0, -2.01, 0], [np.nan, 0, 0]])
    assert GROUND.rows(xyz).tolist() == [0, 0, 31, -1, -1, -1]
    assert GROUND.rows(GROUND.centres()).tolist() == list(range(32))


def test_boxes_survive_being_said_by_cells() -> None:
    rng = np.random.default_rng(0)
    things = np.stack([[-3.2 + i, 0.3, 0.1 * i, 4 + i, 2, 1.5, rng.uniform(-3, 3)] for i in range(5)])
    boxes = [torch.from_numpy(things[:3]), torch.from_numpy(things[3:])]
    numbers = [torch.tensor([0, 1, 0]), torch.tensor([1, 1])]
    right = targets(boxes, numbers, GROUND, 2)
    assert right.centre.sum() == 5 and right.heat.amax(dim=1)[right.centre].eq(1).all()
    heat = torch.logit(right.heat, eps=1e-6).reshape(2, 8, 4, 2).permute(0, 3, 1, 2)
    answer = Answer(heat, right.code.reshape(2, 8, 4, 8).permute(0, 3, 1, 2))
    for item, some in enumerate(found(answer, GROUND, least=0.9, same=1.0)):
        order = np.argsort(some.boxes[:, 0])
        np.testing.assert_allclose(some.boxes[order], boxes[item].numpy(), atol=1e-5)
        assert some.numbers[order].tolist() == numbers[item].tolist()


def test_heat_is_a_bump_and_the_largest_of_several() -> None:
    """By hand: sigma is 5/6 cells, so the next cell has exp(-1 / (2 * 25/36)) and the one behind exp(-4 / ...)."""
    boxes = [torch.tensor([[-0.5, -0.5, 0, 4, 2, 1.5, 0], [0.5, -0.5, 0, 4, 2, 1.5, 0]], dtype=torch.float64)]
    heat = targets(boxes, [torch.tensor([0, 0])], GROUND, 1).heat.reshape(8, 4)
    beside = np.exp(-0.72)
    expected = [0, beside**4, beside, 1, 1, beside, beside**4, 0]
    np.testing.assert_allclose(heat[:, 1].numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(heat[3].numpy(), [beside, 1, beside, beside**4], atol=1e-6)


def test_of_two_centres_in_a_cell_the_later_one_stays() -> None:
    boxes = torch.tensor([[0.2, 0.2, 0, 4, 2, 1.5, 0], [0.4, 0.4, 0, 1, 1, 2, 0], [9, 9, 0, 4, 2, 1.5, 0]])
    right = targets([boxes], [torch.tensor([0, 1, 0])], GROUND, 2)
    assert right.centre.sum() == 1, "and one outside is nowhere"
    np.testing.assert_allclose(right.code[right.centre][0, 3:6].exp().numpy(), [1, 1, 2], rtol=1e-5)


def test_points_in_pillars() -> None:
    xyz = np.array([[0.2, 0.2, 1.0], [9.0, 0.0, 0.0], [0.6, 0.8, 3.0]])
    features, cell = pillars(xyz, GROUND)
    assert cell.tolist() == [4 * 4 + 2] * 2
    away = [np.hypot(0.2, 0.2) / 40, 1 / 40]
    expected = [[1, -0.2, -0.3, -1, -0.3, -0.3, away[0], np.log(2)], [3, 0.2, 0.3, 1, 0.1, 0.3, away[1], np.log(2)]]
    np.testing.assert_allclose(features.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(("fine", "coarse"), [(1.0, 2.0), (2.0, 1.0), (1.0, 1.0)])
def test_cells_of_two_grounds_meet_where_they_lie_in_each_other(fine: float, coarse: float) -> None:
    theirs, ours = (Ground((-4.0, -2.0), cell, (int(8 / cell), int(4 / cell))) for cell in (fine, coarse))
    match = matched(theirs, ours, 2)
    places = torch.from_numpy(np.tile(theirs.centres(), (2, 1))).float()
    mean, reached = match.gather(places)
    assert reached.all()
    middle = np.tile(ours.centres(), (2, 1))
    if fine <= coarse:
        np.testing.assert_allclose(mean.numpy(), middle, atol=1e-6)
    else:
        assert np.abs(mean.numpy() - middle).max() == 0.5
    away = torch.from_numpy(middle)[match.target] + shifts(theirs, ours, match)
    np.testing.assert_allclose(away.numpy(), places[match.source].numpy(), atol=1e-6)


@pytest.mark.parametrize("flipped", [False, True])
def test_boxes_turn_with_their_points(flipped: bool) -> None:
    source = DetectionSource(detection_data(), "train", Streams(1), 2)
    boxes = np.array([[3.0, 1.0, -0.5, 4.0, 2.0, 1.5, 0.4]])
    ring = np.pad(corners(boxes)[0], ((0, 0), (0, 1)))
    motion = Motion(0.7, flipped, 1.1)
    moved = apply_points(torch.from_numpy(ring), source.data.augment, np.random.default_rng(0), motion=motion).inputs
    mine, expected = corners(turned(boxes, motion))[0], moved.numpy()[:, :2]
    assert all(np.linalg.norm(expected - corner, axis=1).min() < 1e-9 for corner in mine)
    ahead = turned(boxes, motion)[0, 6] - 0.7
    assert np.isclose((ahead + np.pi) % (2 * np.pi) - np.pi, -0.4 if flipped else 0.4)


# Signals


def test_both_sides_see_one_augmented_frame() -> None:
    source = DetectionSource(detection_data(augment={"flip": True, "scale": [0.9, 1.1]}), "train", Streams(1), 2)
    first, again, later = source.sample(0, 0), source.sample(0, 0), source.sample(0, 1)
    assert torch.equal(first.boxes, again.boxes) and not torch.equal(first.boxes, later.boxes)
    assert len(first.seen["student"][0]) < len(first.seen["teacher"][0]) / 2
    heights = [set(first.seen[role][0][:, 0].tolist()) for role in ("student", "teacher")]
    assert heights[0] <= heights[1], "the student's points are the teacher's, moved alike"


def test_signals_lie_on_the_students_cells() -> None:
    made = adapter(teacher={"sees": "pillars", "columns": 64, "cell": 0.2})
    batch = made.data("train").collate([made.data("train").sample(i, 0) for i in (0, 1)])
    teacher, student = (smallest(made, role).eval() for role in ("teacher", "student"))
    with torch.no_grad():
        mine = made.signals("student", student, batch, ["features", "boxes", "pillars", "encoder.2"])
        theirs = made.signals("teacher", teacher, batch, ["features", "boxes"])
        own = made.signals("teacher", teacher.train(), batch)
    assert mine.layout("logits").grid == (32, 16) and own.layout("logits").grid == (64, 32)
    for name in ("logits", "features", "boxes"):
        assert theirs.layout(name).same_rows(mine.layout(name)) and theirs.rows(name).shape == mine.rows(name).shape
    answer = made.answer("teacher", teacher.eval(), batch)
    pooled = torch.nn.functional.avg_pool2d(answer.heat, 2).permute(0, 2, 3, 1).reshape(-1, 3)
    torch.testing.assert_close(theirs.rows("logits"), pooled, atol=1e-5, rtol=0)
    centre = mine.rows("centre") > 0
    assert torch.equal(mine.layout("box_labels").mask, centre) and 0 < centre.sum() <= sum(map(len, batch["boxes"]))
    assert torch.equal(mine.rows("foreground"), mine.rows("labels").amax(dim=1))


def test_boxes_of_frames_whose_labels_may_not_be_seen_say_nothing() -> None:
    made = adapter()
    batch = made.data("train").collate([made.data("train").sample(i, 0) for i in (0, 1)])
    model = smallest(made, "student")
    said = made.signals("student", model, {**batch, "labelled": torch.tensor([False, True])})
    assert said.rows("foreground")[: 32 * 16].max() == 0 < said.rows("foreground")[32 * 16 :].max()


def test_a_frame_is_seen_alike_alone_and_in_a_batch() -> None:
    made = adapter()
    source, model = made.data("test"), smallest(made, "student").eval()
    with torch.no_grad():
        both = made.answer("student", model, source.collate([source.clean(0), source.clean(1)]))
        alone = made.answer("student", model, source.collate([source.clean(1)]))
    torch.testing.assert_close(both.heat[1:], alone.heat, atol=1e-5, rtol=0)
    torch.testing.assert_close(both.boxes[1:], alone.boxes, atol=1e-5, rtol=0)


# What is found


def test_of_overlapping_boxes_of_a_class_the_surest_stays() -> None:
    heat, boxes = torch.full((1, 2, 8, 4), -9.0), torch.zeros(1, 8, 8, 4)
    boxes[:, 3] = np.log(4)
    for i, score in ((1, 2.0), (3, 1.0), (7, 0.5)):  # the first two overlap by 2 of 4 metres
        heat[0, 0, i, 1] = score
    heat[0, 1, 3, 1] = 0.7
    some = found(Answer(heat, boxes), GROUND, least=0.5)[0]
    assert some.numbers.tolist() == [0, 1, 0] and some.boxes[:, 0].tolist() == [-2.5, -0.5, 3.5]
    assert (np.diff(some.scores) < 0).all()
    assert len(found(Answer(heat, boxes), GROUND, least=0.7)[0]) == 1
    assert len(found(Answer(heat, boxes), GROUND, most=1)[0]) == 1


def test_a_tally_of_perfect_finds_is_one_and_of_none_is_zero() -> None:
    data = detection_data()
    source = DetectionSource(data, "test", Streams(1), 2)
    whole, empty = DetectionTally(data.detection), DetectionTally(data.detection)
    for index in range(2):
        moment = source.moment(index)
        perfect = Found(moment.boxes, moment.numbers, np.linspace(0.9, 0.5, len(moment.boxes)))
        whole.add(moment.things, perfect)
        empty.add(moment.things, perfect[:0])
    metrics = whole.metrics()
    assert metrics["map"] == pytest.approx(1.0) and empty.metrics()["map"] == 0
    assert set(metrics["ap_at"]) == {"0.5 m", "1 m", "2 m", "4 m"} and whole.errors(0) == pytest.approx(0)
    assert empty.errors(0) == 1 and metrics["boxes"] == sum(len(source.moment(i).boxes) for i in range(2))
    assert metrics["ap_r40"].keys() == metrics["ap_r40_loose"].keys() and "car bev easy" in metrics["ap_r40"]


# KITTI's text


def test_lines_say_what_the_benchmark_s_files_say(kitti: Path, tmp_path: Path) -> None:
    """Boxes that were read are written as they stood, but for the camera's tilt, which a `Box` leaves out."""
    for name in ("000000", "000001", "000004"):
        path = kitti / f"training/label_2/{name}.txt"
        calibration = read_object_calibration(kitti / f"training/calib/{name}.txt")
        boxes = read_boxes(path, calibration.lidar_to_rectified)
        camera = Camera(calibration.intrinsics, calibration.lidar_to_camera, 375, 1242)
        text = lines(
            as_rows(boxes), [box.name for box in boxes], np.ones(len(boxes)),
            rectified=calibration.lidar_to_rectified, camera=camera,
        )  # fmt: skip
        wanted = [line.split() for line in path.read_text().splitlines() if not line.startswith("DontCare")]
        assert len(text) == len(wanted)
        for line, words in zip(text, wanted, strict=True):
            mine = line.split()
            assert mine[0] == words[0] and len(mine) == 16
            found_, expected = (np.array(some[3:15], float) for some in (mine, words))
            np.testing.assert_allclose(found_[5:], expected[5:], atol=0.031)
            np.testing.assert_allclose(found_[0], expected[0], atol=0.02)
            assert np.abs(found_[1:5] - expected[1:5]).max() < 12
        again = tmp_path / f"{name}.txt"
        again.write_text("".join(f"{line}\n" for line in text))
        for a, b in zip(read_boxes(again, calibration.lidar_to_rectified), boxes, strict=True):
            np.testing.assert_allclose(as_rows([a]), as_rows([b]), atol=0.03)


def test_rectangles_behind_the_camera_are_empty() -> None:
    camera = Camera(np.array([[100.0, 0, 50], [0, 100, 50], [0, 0, 1]]), np.eye(4), 100, 100)
    boxes = np.array([[0, 0, -9, 1, 1, 1, 0], [0, 0, 10, 2, 2, 2, 0.0]])
    first, second = rectangles(boxes, camera)
    assert first.tolist() == [0] * 4
    np.testing.assert_allclose(second, [50 - 100 / 9, 50 - 100 / 9, 50 + 100 / 9, 50 + 100 / 9])


# Label distillation


def test_a_teacher_s_confident_boxes_stand_before_the_labels() -> None:
    boxes = [torch.tensor([[1.0, 0, 0, 4, 2, 1.5, 0]]), torch.tensor([[2.0, 0, 0, 4, 2, 1.5, 0]])]
    batch = {"boxes": boxes, "numbers": [torch.tensor([0]), torch.tensor([0])]}
    sure = np.array([[5.0, 0, 0, 1, 1, 2, 0], [6, 0, 0, 1, 1, 2, 0]])
    finds = [Found(sure, np.array([1, 1]), np.array([0.8, 0.5])), Found(sure[:0], np.zeros(0, int), np.zeros(0))]
    both = joined(batch, finds, 0.6)
    assert [b[:, 0].tolist() for b in both["boxes"]] == [[5, 1], [2]]
    assert [n.tolist() for n in both["numbers"]] == [[1, 0], [0]]


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_label_distillation_teaches_more_centres(score: float) -> None:
    made = adapter()
    batch = made.data("train").collate([made.data("train").sample(i, 0) for i in (0, 1)])
    roles = {role: smallest(made, role).eval() for role in ("teacher", "student")}
    terms = [Term(loss="gaussian_focal"), Term(loss="reg_l1", on="boxes", labels="box_labels")]
    method = LabelKD(made, Objective(terms), Train(steps=1), Streams(1), params=LabelKDParams(score=score))
    method.check(roles)
    stage = Stage("student", 1, frozenset({"student"}))
    parts = method.loss("student", roles, batch, Context(stage, 0, 0, Streams(1), StepTimer("cpu"), Ranks())).parts
    own = made.signals("student", roles["student"], batch).layout("box_labels").mask.sum()
    assert float(parts["reg_l1"].count) > own if score == 0 else float(parts["reg_l1"].count) == own


def test_label_distillation_needs_boxes_and_a_teacher() -> None:
    made = adapter()
    with pytest.raises(UserError, match="and there is no teacher: give one"):
        LabelKD(made, Objective([]), Train(steps=1), Streams(1)).check({"student": smallest(made, "student")})
    with pytest.raises(UserError, match=r"it needs data\.task detection"):
        LabelKD(segmenting(), Objective([]), Train(steps=1), Streams(1)).check({})


# A run


def test_a_run_trains_measures_shows_and_exports(trained: Path) -> None:
    report = json.loads((trained / "report.json").read_text())
    assert set(report["roles"]) == {"teacher", "control", "student"}
    for role in report["roles"].values():
        assert 0 <= role["metrics"]["map"] <= 1 and role["metrics"]["boxes"] > 0
    exported = report["export"]["model.onnx"]
    assert exported["max_error"] < 1e-4 and (trained / "student/model.onnx").is_file()
    page = (trained / "report.html").read_text()
    assert "Boxes from above" in page and "data:image/png;base64" in page


def test_a_saved_student_detects_files_and_folders(trained: Path, kitti: Path, tmp_path: Path, capsys: Capture) -> None:
    scans, out = kitti / "training/velodyne", tmp_path / "found"
    base = ["detect", str(scans / "000000.bin"), "--model", str(trained / "student"), "--out", str(out)]
    assert call([*base, "--score", "0", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["boxes"] and {"name", "score", "centre", "size", "yaw"} == said["boxes"][0].keys()
    text = (out / "000000.txt").read_text().splitlines()
    assert 0 < len(text) < len(said["boxes"]) and all(len(line.split()) == 16 for line in text)
    assert f"{len(said['boxes']) - len(text)} boxes outside the photograph" in " ".join(said["notes"])
    calibration = read_object_calibration(kitti / "training/calib/000000.txt")
    again = as_rows(read_boxes(out / "000000.txt", calibration.lidar_to_rectified))[:, :3]
    centres = np.array([box["centre"] for box in said["boxes"]])
    assert np.linalg.norm(again[:, None] - centres, axis=2).min(axis=1).max() < 0.04
    assert (out / "000000.png").is_file()
    assert call([*base, "--format", "json", "--score", "0.99"]) == 0
    assert json.loads((out / "000000.json").read_text())["boxes"] == []


def test_what_cannot_be_detected_is_named(trained: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "cut.bin").write_bytes(b"12345")
    np.savez(tmp_path / "far.npz", xyz=np.tile([90.0, 0, 0], (5, 1)))
    model = str(trained / "student")
    scans = [str(tmp_path / "cut.bin"), str(tmp_path / "far.npz")]
    assert call(["detect", *scans, "--model", model, "--out", str(tmp_path / "o"), "--beams", "16"]) == 2
    said = capsys.readouterr().err
    assert "cut.bin" in said and "far.npz" in said and "nothing" not in (tmp_path / "o").name
    assert call(["detect", scans[0], "--model", model, "--format", "xml"]) == 2
    assert "--format 'xml' is unknown: choose one of kitti, json" in capsys.readouterr().err


def test_segmenters_and_detectors_are_told_apart(trained: Path, capsys: Capture) -> None:
    teacher = "assets/teachers/points"
    assert call(["detect", "x.bin", "--model", teacher]) == 2
    assert "is a segmenter: call xmodal-kd segment" in capsys.readouterr().err.replace("\n", " ")
    assert call(["segment", str(trained / "student"), "x.bin"]) == 2
    assert "is a detector: call xmodal-kd detect" in capsys.readouterr().err.replace("\n", " ")


def test_a_saved_detector_must_be_what_the_recipe_says(trained: Path) -> None:
    folder = trained / "student"
    assert adapter().load("student", folder).card["model"] == "centerpoint_pillar"
    with pytest.raises(UserError, match=r"student was trained with beams 16, data\.student\.beams says 32"):
        adapter(student={"sees": "pillars", "beams": 32}).load("student", folder)
    with pytest.raises(UserError, match=r"trained with cell 0\.4, data\.student\.cell says 0\.8"):
        adapter(student={"sees": "pillars", "beams": 16, "cell": 0.8}).load("student", folder)
    with pytest.raises(UserError, match=r"model 'range_unet' sees range, and data\.task detection needs"):
        adapter().build("student", "range_unet", {})


def test_a_loaded_detector_finds_what_the_run_s_did(trained: Path) -> None:
    made, detector = adapter(), Detector(trained / "student")
    frame = made.data("test").frames[0][0]
    seen = detector.detect(frame.scan, least=0.02)
    batch = made.data("test").collate([made.data("test").clean(0)])
    expected = made.found("student", made.load("student", trained / "student"), batch)[0]
    np.testing.assert_allclose(seen.found.boxes, expected.boxes, atol=1e-4)


def test_names_of_scans_may_have_dots_and_no_result_lies_upon_a_scan(tmp_path: Path, capsys: Capture) -> None:
    stamped = [tmp_path / f"1616343533.{i}.pcd" for i in range(2)]
    assert call(["detect", *map(str, stamped), "--model", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert "would be written" not in " ".join(capsys.readouterr().err.split())
    text = tmp_path / "scan.txt"
    text.write_text("1 2 3 0.5\n")
    assert call(["detect", str(text), "--model", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert "a result would overwrite it: choose another folder" in " ".join(capsys.readouterr().err.split())
    assert text.read_text() == "1 2 3 0.5\n"


def test_a_photograph_that_links_to_itself_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.symlink_to(path)
    with pytest.raises(UserError, match="no calibration"):
        photographed(path, None)


def test_depth_that_points_do_not_say_lies_where_the_batch_does() -> None:
    out, nobody = Signals(torch.arange(2, device="meta")), cast(Any, None)
    DetectionAdapter._say_depth(nobody, out, torch.nn.Identity(), None, {"shape": (2, 4, 4)})
    assert all(out.rows(name).device.type == "meta" for name in ("depth", "depth_labels"))
