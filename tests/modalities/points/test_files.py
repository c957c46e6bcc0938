from __future__ import annotations

import struct

import numpy as np
import pytest

from xmodal_kd.modalities.points.data.files import read_points
from xmodal_kd.runtime.errors import UserError

RNG = np.random.default_rng(0)
XYZ = RNG.normal(0, 10, (50, 3)).astype(np.float32)
INTENSITY = RNG.random(50, dtype=np.float32)


def refused(path, *words):
    with pytest.raises(UserError) as caught:
        read_points(path)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    assert all(word in message for word in words), message


def kitti_file(path, table=None):
    (np.column_stack([XYZ, INTENSITY]) if table is None else table).astype("<f4").tofile(path)
    return path


# Records


def test_kitti_records(tmp_path):
    scan = read_points(kitti_file(tmp_path / "a.bin"))
    assert np.array_equal(scan.xyz, XYZ) and np.array_equal(scan.intensity, INTENSITY)
    assert scan.xyz.dtype == scan.intensity.dtype == np.float32 and scan.ring is None and scan.labels is None


def test_nuscenes_records_are_turned_to_our_axes_with_the_highest_ring_first(tmp_path):
    ring = np.arange(50) % 32
    np.column_stack([XYZ, 255 * INTENSITY, ring]).astype("<f4").tofile(tmp_path / "a.pcd.bin")
    scan = read_points(tmp_path / "a.pcd.bin")
    assert np.array_equal(scan.xyz, XYZ[:, [1, 0, 2]] * np.float32([1, -1, 1]))
    assert np.allclose(scan.intensity, INTENSITY) and np.array_equal(scan.ring, 31 - ring) and scan.beams == 32


def test_the_one_real_nuscenes_scan(nuscenes_frame):
    scan = read_points(nuscenes_frame / "lidar_top.pcd.bin")
    assert len(scan) == 34688 and (np.bincount(scan.ring) == 1084).all() and (scan.distance < 1).sum() == 8029
    far = scan[scan.distance > 3]
    elevation = np.degrees(np.arcsin(far.xyz[:, 2] / far.distance))
    medians = [np.median(elevation[far.ring == i]) for i in range(32)]
    assert (np.diff(medians) < 0).all() and medians[0] == pytest.approx(10.7, abs=0.2)
    assert 0 < scan.intensity.max() <= 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_points_that_are_not_finite_are_counted(tmp_path, value):
    table = np.column_stack([XYZ, INTENSITY])
    table[[3, 4, 4, 9], [0, 1, 3, 2]] = value
    refused(kitti_file(tmp_path / "a.bin", table), "3 of 50 points are NaN or infinite")


def test_files_that_are_no_records(tmp_path):
    (tmp_path / "cut.bin").write_bytes(b"\0" * 30)
    refused(tmp_path / "cut.bin", "30 bytes", "no multiple", "16")
    (tmp_path / "cut.pcd.bin").write_bytes(b"\0" * 32)
    refused(tmp_path / "cut.pcd.bin", "32 bytes", "no multiple", "20")
    (tmp_path / "empty.bin").write_bytes(b"")
    refused(tmp_path / "empty.bin", "empty")
    refused(tmp_path / "none.bin", "no such file")
    (tmp_path / "folder.bin").mkdir()
    refused(tmp_path / "folder.bin", "is a folder")
    (tmp_path / "a.e57").write_bytes(b"x")
    refused(tmp_path / "a.e57", "'.e57'", ".ply", ".npz")
    np.full((4, 5), 77, "<f4").tofile(tmp_path / "ring.pcd.bin")
    refused(tmp_path / "ring.pcd.bin", "no ring of 0 to 31")


# Columns: PLY and PCD

KINDS = {"x": "f4", "y": "f4", "z": "f4", "intensity": "f4", "ring": "u1"}
PLY_NAMES = {"f4": "float", "u1": "uchar"}


def table():
    """Rings counted from below, intensities to 255, as ROS drivers write them."""
    found = np.zeros(50, dtype=list(KINDS.items()))
    found["x"], found["y"], found["z"] = XYZ.T
    found["intensity"] = np.round(255 * INTENSITY)
    elevation = np.arctan2(XYZ[:, 2], np.hypot(XYZ[:, 0], XYZ[:, 1]))
    found["ring"] = np.argsort(np.argsort(elevation)) * 16 // 50
    return found


def rows(found):
    return "".join(" ".join(str(value) for value in row) + "\n" for row in found.tolist()).encode()


def ply(found, order, end=b"\n"):
    lines = ["ply", f"format {order} 1.0", "comment made here", f"element vertex {len(found)}"]
    lines += [f"property {PLY_NAMES[KINDS[name]]} {name}" for name in found.dtype.names]
    lines += ["element face 0", "property list uchar int vertex_indices", "end_header"]
    if order == "ascii":
        return end.join(line.encode() for line in lines) + end + rows(found)
    big = order == "binary_big_endian"
    body = found.astype(found.dtype.newbyteorder(">" if big else "<")).tobytes()
    return end.join(line.encode() for line in lines) + end + body


def lzf_literals(raw):
    """LZF without any compression."""
    return b"".join(bytes([len(part) - 1]) + part for part in (raw[i : i + 32] for i in range(0, len(raw), 32)))


def pcd(found, data):
    lines = ["# .PCD v0.7", "VERSION 0.7", "FIELDS x y z _ intensity ring", "SIZE 4 4 4 1 4 1", "TYPE F F F U F U"]
    lines += ["COUNT 1 1 1 4 1 1", f"WIDTH {len(found)}", "HEIGHT 1", f"POINTS {len(found)}", f"DATA {data}", ""]
    padded = np.zeros(len(found), dtype=[*list(KINDS.items())[:3], ("_", "u1", 4), *list(KINDS.items())[3:]])
    for name in found.dtype.names:
        padded[name] = found[name]
    if data == "ascii":
        body = rows(np.array([(*r[:3], 0, 0, 0, 0, *r[3:]) for r in found.tolist()]))
    elif data == "binary":
        body = padded.tobytes()
    else:
        columns = [np.ascontiguousarray(padded[name].T).tobytes() for name in padded.dtype.names]
        raw = b"".join(columns)
        packed = lzf_literals(raw)
        body = struct.pack("<II", len(packed), len(raw)) + packed
    return "\n".join(lines).encode() + body


FILES = {
    **{f"{order}.ply": ply(table(), order) for order in ("ascii", "binary_little_endian", "binary_big_endian")},
    "windows.ply": ply(table(), "binary_little_endian", b"\r\n"),
    **{f"{data}.pcd": pcd(table(), data) for data in ("ascii", "binary", "binary_compressed")},
}


@pytest.mark.parametrize("name", FILES)
def test_columns_of_every_encoding(tmp_path, name):
    (tmp_path / name).write_bytes(FILES[name])
    scan = read_points(tmp_path / name)
    found = table()
    assert np.allclose(scan.xyz, XYZ, rtol=1e-6) and scan.beams == 16
    assert np.allclose(scan.intensity, found["intensity"] / 255)
    assert np.array_equal(scan.ring, 15 - found["ring"].astype(int)), "ring 0 must be the highest"


def test_open3d_writes_what_is_read(tmp_path):
    o3d = pytest.importorskip("open3d")
    cloud = o3d.t.geometry.PointCloud(o3d.core.Tensor(XYZ))
    cloud.point.intensity = o3d.core.Tensor(INTENSITY[:, None])
    for name, options in (
        ("a.ply", {}),
        ("b.pcd", {}),
        ("c.pcd", {"compressed": True}),
        ("d.ply", {"write_ascii": True}),
    ):
        o3d.t.io.write_point_cloud(str(tmp_path / name), cloud, **options)
        scan = read_points(tmp_path / name)
        assert np.allclose(scan.xyz, XYZ, atol=1e-4) and np.allclose(scan.intensity, INTENSITY, atol=1e-4), name


@pytest.mark.parametrize("name", FILES)
def test_a_cut_cloud_is_refused_and_never_invented(tmp_path, name):
    (tmp_path / name).write_bytes(FILES[name][:-150])
    refused(tmp_path / name)


def test_clouds_that_are_none(tmp_path):
    cases = {
        "a.ply": (b"solid", "not a PLY"),
        "b.ply": (b"ply\nformat ascii 1.0\n", "end_header"),
        "c.ply": (b"ply\nformat odd 1.0\nelement vertex 1\nend_header\n1", "'odd'"),
        "d.ply": (b"ply\nformat ascii 1.0\nelement face 1\nend_header\n1", "'vertex'"),
        "e.ply": (b"ply\nformat ascii 1.0\nelement vertex 1\nproperty list uchar int x\nend_header\n1", "not a scalar"),
        "f.ply": (
            b"ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nproperty float y\nend_header\n1 2",
            "'z'",
        ),
        "g.ply": (ply(table()[:0], "binary_little_endian"), "empty"),
        "h.ply": (ply(table()[:0], "ascii"), "empty"),
        "i.ply": (ply(table()[:2], "ascii").replace(b"vertex 2", b"vertex many"), "how many"),
        "j.ply": (ply(table(), "ascii").rsplit(b"\n", 3)[0] + b"\nnan 0 0 0 0\nword 0 0 0 0\n", "rows of 5 numbers"),
        "a.pcd": (b"nothing", "DATA"),
        "b.pcd": (pcd(table(), "ascii").replace(b"DATA ascii", b"DATA zip"), "'zip'"),
        "c.pcd": (pcd(table(), "ascii").replace(b"SIZE 4 4 4 1", b"SIZE 4 4 3 1"), "'z'"),
        "d.pcd": (pcd(table(), "ascii").replace(b"TYPE F F", b"TYPE F"), "same number"),
    }
    for name, (content, words) in cases.items():
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, words)


def test_a_broken_lzf_is_refused(tmp_path):
    content = pcd(table(), "binary_compressed")
    body = bytearray(content)
    body[content.index(b"compressed\n") + 11 + 8] = 0xFF  # a copy, where nothing is yet that could be copied
    (tmp_path / "a.pcd").write_bytes(body)
    refused(tmp_path / "a.pcd", "broken")


# Arrays


def test_npz_keeps_labels(tmp_path):
    labels = np.arange(50) % 9 - 1
    ring = np.arange(50) // 7
    np.savez(tmp_path / "a.npz", xyz=XYZ.astype(np.float64), intensity=INTENSITY, ring=ring, labels=labels)
    scan = read_points(tmp_path / "a.npz")
    assert np.array_equal(scan.xyz, XYZ) and np.array_equal(scan.labels, labels) and scan.beams == 8
    np.savez(tmp_path / "b.npz", points=np.column_stack([XYZ, INTENSITY]))
    scan = read_points(tmp_path / "b.npz")
    assert np.array_equal(scan.intensity, INTENSITY) and scan.labels is None
    np.savez(tmp_path / "c.npz", points=XYZ)
    assert not read_points(tmp_path / "c.npz").intensity.any()


def test_npz_of_a_range_image(tmp_path):
    """A row a laser, the highest first, a point a cell; those of xyz 0 or NaN are empty, a data set's ids no labels."""
    xyz = np.zeros((3, 4, 3), np.float32)
    xyz[0, 1], xyz[2, 0], xyz[2, 3], xyz[1, 1] = (9, 1, 1), (5, 0, -1), (6, 2, -1), np.nan
    intensity = np.arange(12, dtype=np.float32).reshape(3, 4) / 12
    np.savez(tmp_path / "a.npz", xyz=xyz, intensity=intensity, label=np.full((3, 4), 19))
    scan = read_points(tmp_path / "a.npz")
    assert len(scan) == 12 and np.flatnonzero(scan.there).tolist() == [1, 8, 11]
    np.testing.assert_array_equal(scan.xyz[scan.there], [(9, 1, 1), (5, 0, -1), (6, 2, -1)])
    np.testing.assert_allclose(scan.intensity[scan.there], np.array([1, 8, 11]) / 12)
    assert scan.ring[scan.there].tolist() == [0, 2, 2] and scan.beams == 3 and scan.labels is None
    np.savez(tmp_path / "b.npz", xyz=xyz, intensity=intensity[:2])
    refused(tmp_path / "b.npz", "'intensity' must be numbers 3x4, got float32 (2, 4)")
    np.savez(tmp_path / "d.npz", xyz=xyz)
    refused(tmp_path / "d.npz", "it has no array 'intensity' (it has xyz)")
    np.savez(tmp_path / "c.npz", xyz=0 * np.nan_to_num(xyz), intensity=intensity)
    refused(tmp_path / "c.npz", "all 12 cells are empty")


def test_npz_that_are_not_scans(tmp_path):
    cases = {
        "a": ({"cloud": XYZ}, "'xyz' or 'points'"),
        "b": ({"xyz": XYZ[:, :2]}, "(50, 2)"),
        "c": ({"xyz": XYZ, "labels": np.full(50, 8)}, "label 8 is out of range"),
        "d": ({"xyz": XYZ, "labels": np.zeros(49, int)}, "'labels' must be 50 numbers"),
        "e": ({"xyz": XYZ, "ring": np.full(50, 0.5)}, "whole numbers"),
        "f": ({"xyz": XYZ[:0]}, "empty"),
        "g": ({"xyz": np.array([[None] * 3])}, "plain arrays"),
        "h": ({"xyz": XYZ.astype(float) * 1e300}, "50 of 50"),
    }
    for name, (arrays, words) in cases.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
        refused(tmp_path / f"{name}.npz", words)
    (tmp_path / "z.npz").write_bytes(b"PK broken")
    refused(tmp_path / "z.npz", "broken")


# Single arrays and text


def test_npy_is_columns_fields_or_an_organised_cloud(tmp_path):
    np.save(tmp_path / "a.npy", np.column_stack([XYZ, INTENSITY]))
    scan = read_points(tmp_path / "a.npy")
    assert np.array_equal(scan.xyz, XYZ) and np.array_equal(scan.intensity, INTENSITY) and scan.ring is None
    fields = np.zeros(50, [("x", "f4"), ("y", "f4"), ("z", "f4"), ("Intensity", "u1"), ("ring", "u2")])
    fields["x"], fields["y"], fields["z"] = XYZ.T
    fields["Intensity"], fields["ring"] = (255 * INTENSITY).astype("u1"), np.arange(50) // 7
    np.save(tmp_path / "b.npy", fields)
    scan = read_points(tmp_path / "b.npy")
    assert np.array_equal(scan.xyz, XYZ) and scan.beams == 8 and 0.9 < scan.intensity.max() <= 1
    np.save(tmp_path / "c.npy", XYZ.reshape(5, 10, 3))
    assert np.array_equal(read_points(tmp_path / "c.npy").xyz, XYZ)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (np.zeros((9, 2)), "(n, 3 or more)"),
        (np.array(["x"] * 9), "(n, 3 or more)"),
        (np.array([[None] * 3]), "plain array"),
        (np.zeros((0, 3)), "empty"),
        (np.zeros(3, [("x", "f4"), ("y", "f4")]), "no column 'z'"),
    ],
)
def test_npy_that_are_not_scans(tmp_path, content, words):
    np.save(tmp_path / "a.npy", content, allow_pickle=True)
    refused(tmp_path / "a.npy", words)
    (tmp_path / "z.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:60])
    refused(tmp_path / "z.npy", "cannot be read")


TEXTS = {
    "csv": ("x,y,z,intensity\n", ","),
    "units.csv": ("X [m];Y [m];Z [m];Reflectivity (8 bit)\n", ";"),
    "quoted.csv": ('"z","y","x","i"\n', ","),
    "cloudcompare.txt": ("//X Y Z Intensity\n", " "),
    "notes.asc": ("# a scanner\n# of 2026\n", "\t"),
    "count.xyz": ("", " "),
    "bom.csv": ("\ufeffx,y,z,intensity\n", ","),
}


@pytest.mark.parametrize("name", TEXTS)
def test_lines_of_text(tmp_path, name):
    head, part = TEXTS[name]
    columns = [*XYZ.T, INTENSITY]
    columns = columns[2::-1] + columns[3:] if "quoted" in name else columns
    rows = "".join(part.join(f"{value:.9g}" for value in row) + "\n" for row in zip(*columns, strict=True))
    path = tmp_path / (name if "." in name else f"a.{name}")
    path.write_text(head + rows, encoding="utf-8")
    scan = read_points(path)
    assert np.array_equal(scan.xyz, XYZ) and np.allclose(scan.intensity, INTENSITY) and scan.ring is None


def test_text_keeps_missing_points_and_rings(tmp_path):
    rows = "".join(f"{i},{x},{y},{z}\n" for i, (x, y, z) in zip(np.arange(50) // 7, XYZ, strict=True))
    (tmp_path / "a.csv").write_text("ring,x,y,z\n" + rows + "3,nan,nan,nan\n")
    scan = read_points(tmp_path / "a.csv")
    assert len(scan) == 51 and scan.there.sum() == 50 and scan.beams == 8


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no row of numbers"),
        ("x,y,z\n", "no row of numbers"),
        ("x,y,z\n1,2\n", "names 3 columns, its rows have 2"),
        ("x,y,z\n1,2,3\n4,5,car\n", "not rows of numbers"),
        ("a,b,c\n1,2,3\n", "no column 'x'"),
        ("1 2\n3 4\n", "no column 'z'"),
        ("calib of a camera\nP0: 1 2 3\n", "neither names nor numbers"),
    ],
)
def test_text_that_is_no_scan(tmp_path, text, words):
    (tmp_path / "a.csv").write_text(text)
    refused(tmp_path / "a.csv", words)
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x00\x80" * 9)
    refused(tmp_path / "b.txt")
