"""A saved student labels scans from files: every point, by the model's own answer where it sees the point."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from points_small import save, street
from torch import nn
from typer.testing import CliRunner

from xmodal_kd.adapter.adapter import Strict
from xmodal_kd.modalities.points.data.calibration import read_camera, read_picture
from xmodal_kd.modalities.points.data.config import PointsData, View
from xmodal_kd.modalities.points.data.files import read_points
from xmodal_kd.modalities.points.data.frame import CLASSES, UNLABELLED, Camera, Frame, Picture, Scan
from xmodal_kd.modalities.points.data.ply_pcd import read_ply
from xmodal_kd.modalities.points.data.suffixes import IN_FOLDERS, SUFFIXES
from xmodal_kd.modalities.points.export.ply import write_ply
from xmodal_kd.modalities.points.models import MODELS
from xmodal_kd.modalities.points.show.palette import COLOURS
from xmodal_kd.modalities.points.use.commands import COMMANDS
from xmodal_kd.modalities.points.use.output import shares, stem
from xmodal_kd.modalities.points.use.segment import Segmenter, uncalibrated
from xmodal_kd.modalities.points.views.views import see
from xmodal_kd.runtime.errors import UserError

#: From the LiDAR's axes to those of a camera at its place.
AHEAD = np.array([[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]], dtype=float)


class PerPoint(nn.Module):
    """A model of point sets: says where along x a point is, and remembers how many it was given."""

    view = "points"

    class Config(Strict):
        pass

    def __init__(self, config: Any, *, channels: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.classes, self.given = classes, list[int]()

    def forward(self, points: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        assert points.shape == (int(lengths.sum()), 4)
        self.given.append(len(points))
        ahead = (points[:, 0] > 0).long()
        return nn.functional.one_hot(ahead, self.classes).float() + self.weight


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


# --- range images


def test_every_point_has_the_models_answer_or_its_nearest_neighbours(sparse: Path) -> None:
    scan, segmenter = street(), Segmenter(sparse)
    found = segmenter.segment(scan)
    seen = see([Frame("x", scan)], segmenter.view, PointsData(student=segmenter.view))
    with torch.no_grad():
        best = segmenter.model(seen.inputs[None]).softmax(1).max(1)
    own, hidden = np.flatnonzero(seen.element >= 0), np.flatnonzero(seen.element < 0)
    assert (found.seen == (seen.element >= 0)).all() and 0.1 < found.seen.mean() < 0.3
    assert (found.labels[own] == best.indices.flatten().numpy()[seen.element[own]]).all()
    np.testing.assert_allclose(found.confidence[own], best.values.flatten().numpy()[seen.element[own]], rtol=1e-6)
    for i in hidden[::97]:
        nearest = own[np.linalg.norm(scan.xyz[own] - scan.xyz[i], axis=1).argmin()]
        assert found.labels[i] == found.labels[nearest] and found.confidence[i] == found.confidence[nearest]
    assert len(np.unique(found.labels)) > 2
    assert found.notes == ("16 of 64 beams are shown to the model, other points take the nearest's class",)


def test_a_file_without_rings_gives_what_one_with_rings_gives(sparse: Path) -> None:
    scan, segmenter = street(), Segmenter(sparse)
    found = segmenter.segment(Scan(scan.xyz, scan.intensity))
    assert (found.labels == segmenter.segment(scan).labels).mean() > 0.99
    assert "64 were looked for" in found.notes[0]


@pytest.mark.parametrize(
    ("sensor", "beams", "note"),
    [("vlp16", None, None), ("nuscenes32", None, "16 of 32 beams"), ("vlp16", 16, "16 were looked for")],
)
def test_scans_of_other_sensors(sparse: Path, sensor: str, beams: int | None, note: str | None) -> None:
    scan = street(sensor)
    scan = scan if beams is None else Scan(scan.xyz, scan.intensity)
    found = Segmenter(sparse).segment(scan, beams=beams)
    assert found.labels.min() >= 0 and (note is None) == (found.notes == ())
    assert note is None or note in found.notes[0]


def test_beams_that_cannot_be_thinned_become_bands_of_elevation(tmp_path: Path) -> None:
    folder = save(tmp_path, "range_unet", View(columns=64), 5, width=4)
    found = Segmenter(folder).segment(street("nuscenes32"))
    assert "the scan has 32 beams, the model knows 64" in found.notes[0] and found.labels.min() >= 0
    assert found.seen.mean() > 0.5


def test_returns_from_the_vehicle_have_no_label_and_hide_nothing(sparse: Path) -> None:
    scan, segmenter = street(), Segmenter(sparse)
    near = Scan(scan.xyz[:40] * (0.5 / scan.distance[:40, None]), scan.intensity[:40], scan.ring[:40], 64)
    both = Scan(*(np.concatenate([getattr(near, k), getattr(scan, k)]) for k in ("xyz", "intensity", "ring")), 64)
    found, alone = segmenter.segment(both), segmenter.segment(scan)
    assert (found.labels[:40] == UNLABELLED).all() and not found.seen[:40].any() and (found.confidence[:40] == 0).all()
    assert (found.labels[40:] == alone.labels).all() and "40 points within 1 m" in found.notes[-1]
    with pytest.raises(UserError, match="all 40 points lie within 1 m"):
        segmenter.segment(near)


def test_points_beyond_the_sensors_reach(sparse: Path) -> None:
    scan = street()
    far = Scan(scan.xyz * (200 / scan.distance[:, None]), scan.intensity, scan.ring, 64)
    with pytest.raises(UserError, match="1 to 100 m are needed"):
        Segmenter(sparse).segment(far)


def test_a_model_of_fused_sweeps_is_given_one(tmp_path: Path) -> None:
    folder = save(tmp_path, "range_unet", View(columns=64, sweeps=3), 5, width=4)
    found = Segmenter(folder).segment(street())
    assert found.notes == ("the model was trained on 3 fused sweeps and is given one",) and found.labels.min() >= 0


# --- points and photographs


def test_sets_of_points_have_the_size_of_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS._items, "per_point", PerPoint)
    scan = street()
    segmenter = Segmenter(save(tmp_path, "per_point", View(sees="points", points=1000), 4))
    found = segmenter.segment(scan)
    given = segmenter.model.given
    assert sum(given) == len(scan) and 900 <= min(given) <= max(given) <= 1000
    assert (found.labels == (scan.xyz[:, 0] > 0)).all() and found.seen.all() and found.notes == ()


@pytest.mark.parametrize(
    ("model", "params"),
    [("point_transformer", {"width": 16, "blocks": 2, "heads": 2}), ("voxel_unet", {"width": 4, "cell": 0.5})],
)
def test_a_model_of_points_labels_every_point(tmp_path: Path, model: str, params: dict[str, float]) -> None:
    view = View(sees="points", beams=16, points=1024)
    folder = save(tmp_path, model, view, 4, **params)
    found = Segmenter(folder).segment(street())
    assert found.labels.min() >= 0 and ((found.confidence > 1 / 8) & (found.confidence <= 1)).all()
    assert 0.2 < found.seen.mean() < 0.3 and "16 of 64 beams" in found.notes[0]


def test_photographs_are_labelled_and_the_points_that_they_show(camera_student: Path, picture: Picture) -> None:
    scan, segmenter = street(), Segmenter(camera_student)
    found = segmenter.segment(scan, picture=picture)
    uv, depth = picture.camera.project(scan.xyz)
    assert found.pixels is not None and found.pixels.shape == (64, 128) and len(np.unique(found.pixels)) > 2
    assert (found.seen == (found.labels >= 0)).all() and 100 < found.seen.sum() < (depth > 0).sum()
    u, v = np.floor(uv[found.seen]).astype(int).T
    assert (depth[found.seen] >= 1).all()
    assert (found.labels[found.seen] == found.pixels[v, u]).all(), "a point has its pixel's class"


def test_a_photograph_without_calibration_labels_pixels_only(camera_student: Path, picture: Picture) -> None:
    scan, segmenter = street(), Segmenter(camera_student)
    found, known = segmenter.segment(scan, picture=uncalibrated(picture.rgb)), segmenter.segment(scan, picture=picture)
    assert not found.seen.any() and (found.labels == UNLABELLED).all()
    assert found.pixels is not None and known.pixels is not None and (found.pixels == known.pixels).all()
    with pytest.raises(UserError, match="--image"):
        segmenter.segment(scan)


# --- files


def test_a_written_ply_is_read_back(tmp_path: Path) -> None:
    scan, labels = street(), np.tile([2, -1], 10**5)[: len(street())]
    confidence = np.linspace(0, 1, len(scan))
    path = write_ply(tmp_path / "deep" / "a.ply", scan.xyz, labels, confidence, CLASSES)
    found = read_ply(path)
    assert (np.stack([found[k] for k in "xyz"], axis=1) == scan.xyz).all() and (found["label"] == labels).all()
    assert tuple(found[k][0] for k in ("red", "green", "blue")) == COLOURS[2]
    np.testing.assert_allclose(found["confidence"], confidence, rtol=1e-6)
    assert b"comment labels ground pavement car" in path.read_bytes()[:200]
    assert (read_points(path).xyz == scan.xyz).all(), "our own reader takes it as a scan"


def test_names_and_shares() -> None:
    assert [stem(Path(f"d/{name}")) for name in ("a.bin", "b.PCD.bin", "c.d.npz", "e")] == ["a", "b", "c.d", "e"]
    assert [stem(Path("a" + end)) for end in SUFFIXES] == ["a"] * len(SUFFIXES) and set(IN_FOLDERS) <= set(SUFFIXES)
    assert list(shares(np.array([2, 2, 0, 2]), CLASSES).items()) == [("car", 0.75), ("ground", 0.25)]


def write_calibration(path: Path, **changes: object) -> Path:
    matrices = {"intrinsics": [[64, 0, 64], [0, 64, 32], [0, 0, 1]], "lidar_to_camera": AHEAD.tolist()}
    path.write_text(json.dumps(matrices | changes))
    return path


def test_calibration_as_json(tmp_path: Path, picture: Picture) -> None:
    intrinsics, moved = read_camera(write_calibration(tmp_path / "c.json"))
    assert (intrinsics == picture.camera.intrinsics).all() and (moved == AHEAD).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"intrinsics": [[1, 2], [3, 4]]}, "'intrinsics' must be 3 rows of 3"),
        ({"lidar_to_camera": None}, "'lidar_to_camera' must be 4 rows of 4"),
        ({"intrinsics": [[0, 0, 64], [0, 64, 32], [0, 0, 1]]}, "no camera's projection"),
        ({"lidar_to_camera": (2 * AHEAD).tolist()}, "not a rotation"),
    ],
)
def test_impossible_calibrations(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    path = write_calibration(tmp_path / "c.json", **changes)
    with pytest.raises(UserError, match=message) as caught:
        read_camera(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_kitti_calibration_puts_the_camera_where_the_reader_puts_it(kitti: Path, kitti_raw: Path) -> None:
    from xmodal_kd.modalities.points.data.readers import READERS

    part = kitti / "training"
    frame = READERS["kitti"](part).frame(2)
    found = read_picture(part / "image_2/000002.png", part / "calib/000002.txt", frame.scan)
    assert (found.camera.lidar_to_camera == frame.pictures[0].camera.lidar_to_camera).all()
    drive = kitti_raw / "2011_09_26/2011_09_26_drive_0000_sync"
    frame = READERS["kitti_raw"](drive).frame(0)
    assert (read_camera(drive)[1] == frame.pictures[0].camera.lidar_to_camera).all()


# --- the command

app = typer.Typer()
for _name, _command in COMMANDS.items():
    app.command(_name)(_command)


def run(*args: object) -> tuple[int, list[str], str]:
    result = CliRunner().invoke(app, ["segment", *(str(a) for a in args)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout.splitlines(), result.stderr


@pytest.fixture
def scan_file(tmp_path: Path) -> Callable[..., Path]:
    def write(name: str = "a.bin") -> Path:
        scan, path = street(), tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".npz":
            np.savez(path, xyz=scan.xyz, intensity=scan.intensity)
        else:
            np.column_stack([scan.xyz, scan.intensity]).astype("<f4").tofile(path)
        return path

    return write


def test_command_writes_a_cloud_and_a_picture(sparse: Path, scan_file: Callable[..., Path], tmp_path: Path) -> None:
    scan, out = scan_file(), tmp_path / "out"
    status, lines, _ = run(sparse, scan, "--out", out)
    assert status == 0 and lines[0].startswith(f"{scan}\t") and "%" in lines[0] and "looked for" in lines[1]
    labels = read_ply(out / "a.ply")["label"]
    assert (labels == Segmenter(sparse).segment(read_points(scan)).labels).all()
    with Image.open(out / "a.png") as image:
        assert image.format == "PNG" and image.width > 1000
    assert sorted(p.name for p in out.iterdir()) == ["a.ply", "a.png"]


def test_command_prints_json(
    camera_student: Path, scan_file: Callable[..., Path], tmp_path: Path, picture: Picture
) -> None:
    Image.fromarray(picture.rgb).save(tmp_path / "p.png")
    given = (camera_student, scan_file("s.npz"), "--image", tmp_path / "p.png", "--out", tmp_path / "out", "--json")
    status, [line], _ = run(*given, "--calib", write_calibration(tmp_path / "c.json"))
    found = json.loads(line)
    assert status == 0 and set(found) == {
        "path", "points", "shares", "confidence", "labelled", "seen", "ply", "png", "notes",
    }  # fmt: skip
    assert sum(found["shares"].values()) == pytest.approx(1) and 0 < found["labelled"] == found["seen"] < 0.5
    _, [line], _ = run(*given)
    without = json.loads(line)
    assert without["labelled"] == 0 and without["confidence"] is None and sum(without["shares"].values()) > 0.99


def test_a_folder_is_searched(sparse: Path, scan_file: Callable[..., Path], tmp_path: Path) -> None:
    a, b = scan_file("x/a.npz"), scan_file("x/deep/b.BIN")
    status, lines, _ = run(sparse, tmp_path / "x", "--out", tmp_path / "out", "--json")
    assert status == 0 and [json.loads(line)["path"] for line in lines] == [str(a), str(b)]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no scans in this folder"):
        run(sparse, tmp_path / "empty")


def broken(folder: Path) -> dict[str, str]:
    """Files that are no scans, and what is said of each."""
    table = np.ones((10, 4), "<f4")
    (folder / "cut.bin").write_bytes(table.tobytes()[:-3])
    (folder / "empty.bin").write_bytes(b"")
    table[3, 1] = np.nan
    table[4, 2] = np.inf
    table.tofile(folder / "nan.bin")
    np.savez(folder / "label.npz", xyz=np.ones((3, 3)), labels=np.array([0, 1, 99]))
    (folder / "text.md").write_text("1 2 3")
    np.savez(folder / "few.npz", xyz=np.ones((3, 3)))
    np.savez(folder / "rows.npz", xyz=np.ones((2, 5, 3)))
    (folder / "loop.ply").symlink_to(folder / "loop.ply")
    return {
        "cut.bin": "no multiple of a record", "empty.bin": "the scan is empty",
        "nan.bin": "2 of 10 points are NaN or infinite", "label.npz": "label 99 is out of range",
        "text.md": "unknown kind of point cloud", "few.npz": "no 64 rings", "missing.bin": "no such file",
        "loop.ply": "no such file", "rows.npz": "a row a point",
    }  # fmt: skip


def test_broken_scans_are_named_in_a_line_each_and_the_rest_go_on(
    sparse: Path, scan_file: Callable[..., Path], tmp_path: Path
) -> None:
    good, said = scan_file(), broken(tmp_path)
    status, lines, errors = run(sparse, *(tmp_path / name for name in said), good, "--out", tmp_path / "out", "--json")
    assert status == 2 and [json.loads(line)["path"] for line in lines] == [str(good)]
    for line, (name, message) in zip(errors.splitlines(), said.items(), strict=True):
        assert line.count(str(tmp_path / name)) == 1 and message in line


def test_a_link_to_nothing_in_a_folder_is_named(sparse: Path, scan_file: Callable[..., Path], tmp_path: Path) -> None:
    scan_file("x/a.npz")
    (tmp_path / "x/b.bin").symlink_to(tmp_path / "unmounted/b.bin")
    status, lines, errors = run(sparse, tmp_path / "x", "--out", tmp_path / "out", "--json")
    assert (status, len(lines)) == (2, 1) and "b.bin: no such file" in errors


def test_a_place_that_cannot_be_written_is_said_once(sparse: Path, scan_file: Callable[..., Path]) -> None:
    place = scan_file("x/a.npz") / "out"
    with pytest.raises(UserError, match=r"--out: .*/a.npz/out cannot be written: .*/a.npz is no folder"):
        run(sparse, place.parents[1], "--out", place)


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        ({"lidar_to_camera": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, -500], [0, 0, 0, 1]]}, "camera sees none"),
        ({"lidar_to_camera": np.zeros((4, 4)).tolist()}, "not a rotation"),
        (None, "no such file"),
    ],
)
def test_calibrations_that_cannot_be(
    camera_student: Path, scan_file: Callable[..., Path], tmp_path: Path, picture: Picture,
    calibration: dict[str, object] | None, message: str,
) -> None:  # fmt: skip
    Image.fromarray(picture.rgb).save(tmp_path / "p.png")
    path = tmp_path / "calib.txt"
    if calibration is not None:
        path = write_calibration(tmp_path / "c.json", **calibration)
    given = (camera_student, scan_file(), "--image", tmp_path / "p.png", "--calib", path, "--out", tmp_path / "out")
    status, lines, errors = run(*given)
    assert status == 2 and lines == [] and message in errors and len(errors.splitlines()) == 1


def test_what_the_options_cannot_mean(sparse: Path, scan_file: Callable[..., Path], tmp_path: Path) -> None:
    a, b = scan_file("x/a.bin"), scan_file("y/a.npz")
    for given, message in (
        ((a, "--calib", a), "--calib says where"),
        ((a, b, "--image", a), "photograph of one scan, and 2 are given"),
        ((a, b), "would both be written"),
        ((a, "--device", "tpu"), "choose one of"),
    ):
        with pytest.raises(UserError, match=message):
            run(sparse, *given, "--out", tmp_path / "out")
    c = write_ply(tmp_path / "c.ply", street().xyz, np.zeros(len(street()), int), np.ones(len(street())), CLASSES)
    with pytest.raises(UserError, match="would overwrite it"):
        run(sparse, c, "--out", tmp_path)
    with pytest.raises(UserError, match=r"card\.json"):
        run(tmp_path, a)


def test_a_photograph_that_is_none(camera_student: Path, scan_file: Callable[..., Path], tmp_path: Path) -> None:
    status, _, errors = run(camera_student, scan_file(), "--out", tmp_path / "out")
    assert status == 2 and "--image" in errors and "a.bin" in errors
    (tmp_path / "p.png").write_bytes(b"nothing")
    status, _, errors = run(camera_student, scan_file(), "--image", tmp_path / "p.png", "--out", tmp_path / "out")
    assert status == 2 and "p.png" in errors and len(errors.splitlines()) == 1


def test_a_real_scan_with_its_photograph(sparse: Path, kitti: Path, tmp_path: Path) -> None:
    part = kitti / "training"
    status, [line], _ = run(
        sparse, part / "velodyne/000001.bin", "--image", part / "image_2/000001.png", "--calib",
        part / "calib/000001.txt", "--out", tmp_path, "--json",
    )  # fmt: skip
    found = json.loads(line)
    assert status == 0 and found["points"] == 120268 and found["labelled"] == 1 and 0.1 < found["seen"] < 0.26
    with Image.open(found["png"]) as image:
        assert image.width > 1242, "the photograph is in it"


# --- folders and formats


def test_folders_are_kept_apart_and_one_bad_file_stops_none(
    sparse: Path, scan_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from xmodal_kd.modalities.points.use import output

    good = [scan_file("one/0.npz"), scan_file("one/deep/0.npz"), scan_file("two/0.npz")]
    (tmp_path / "one/cut.bin").write_bytes(b"\0" * 17)
    odd = scan_file("two/odd.npz")
    (tmp_path / "empty").mkdir()
    real = output.read_points

    def read(path: Path, classes: int) -> Scan:
        if path == odd:
            raise ValueError("nobody thought\nof this")
        return real(path, classes)

    monkeypatch.setattr(output, "read_points", read)
    out, folders = tmp_path / "out", [tmp_path / name for name in ("one", "empty", "two")]
    status, lines, errors = run(sparse, *folders, "--out", out, "--json")
    assert status == 2 and [json.loads(line)["path"] for line in lines] == [str(path) for path in good]
    assert [json.loads(line)["ply"] for line in lines] == [
        str(out / name) for name in ("one/0.ply", "one/deep/0.ply", "two/0.ply")
    ]
    assert all((out / name).is_file() for name in ("one/0.png", "one/deep/0.png", "two/0.png"))
    said = ("no scans in this folder", "cut.bin", "odd.npz: cannot be segmented (ValueError: nobody thought): leave")
    for line, words in zip(errors.splitlines(), said, strict=True):
        assert words in line


def test_labels_in_semantickittis_layout_are_those_that_its_reader_reads(
    sparse: Path, scan_file: Callable[..., Path], tmp_path: Path
) -> None:
    from xmodal_kd.modalities.points.data.readers.semantickitti import with_labels

    scan, out = scan_file("set/sequences/08/velodyne/000007.bin"), tmp_path / "out"
    loose = scan_file("loose.bin")
    status, [line], errors = run(sparse, tmp_path / "set", loose, "--out", out, "--format", "semantickitti", "--json")
    label = out / "sequences/08/predictions/000007.label"
    assert status == 2 and json.loads(line)["label"] == str(label) and "sequences/NN/velodyne/NAME.bin" in errors
    assert [path for path in out.rglob("*") if path.is_file()] == [label]
    points = read_points(scan)
    assert label.stat().st_size == 4 * len(points)
    assert (with_labels(points, label).labels == Segmenter(sparse).segment(points).labels).all()
    with pytest.raises(UserError, match="--format 'las' is unknown: choose one of ply, semantickitti"):
        run(sparse, scan, "--format", "las")


def test_points_without_a_class_are_written_as_none(tmp_path: Path) -> None:
    from xmodal_kd.modalities.points.export.label import write_label

    path = write_label(tmp_path / "a.label", np.array([-1, 2, 3, 0]), CLASSES)
    assert np.fromfile(path, "<u4").tolist() == [0, 10, 18, 40]
    with pytest.raises(UserError, match="class 'sofa' has no id"):
        write_label(tmp_path / "b.label", np.array([0]), ("sofa",))
