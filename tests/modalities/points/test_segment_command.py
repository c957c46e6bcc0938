"""The command segment: files and folders, what it writes, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from points_small import street, write_calibration
from typer.testing import CliRunner

from xmodal_kd.modalities.points.data.files import read_points
from xmodal_kd.modalities.points.data.frame import CLASSES, Picture, Scan
from xmodal_kd.modalities.points.data.ply_pcd import read_ply
from xmodal_kd.modalities.points.export.ply import write_ply
from xmodal_kd.modalities.points.use.commands import COMMANDS
from xmodal_kd.modalities.points.use.segment import Segmenter
from xmodal_kd.runtime.errors import UserError

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
        "loop.ply": "no such file", "rows.npz": "it has no array 'intensity'",
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
