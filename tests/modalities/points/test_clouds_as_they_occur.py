"""Files as drivers and other programs write them: odd ring numbers, missing returns, other columns, other axes."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from points_small import save, street
from shared_data import ROOT

from xmodal_kd.modalities.points.data.config import View
from xmodal_kd.modalities.points.data.files import read_points
from xmodal_kd.modalities.points.data.frame import UNLABELLED, Scan
from xmodal_kd.modalities.points.data.ground import ground
from xmodal_kd.modalities.points.data.simulator.sensors import SENSORS
from xmodal_kd.modalities.points.use.segment import Segmenter
from xmodal_kd.modalities.points.use.unlike import unlike
from xmodal_kd.runtime.errors import UserError

#: Rings of a VLP-16 in the order in which its lasers fire: the lowest, the ninth, and so on.
FIRING = np.array([15, 7, 14, 6, 13, 5, 12, 4, 11, 3, 10, 2, 9, 1, 8, 0])
LEARNED = View(columns=64)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Segmenter:
    return Segmenter(save(tmp_path_factory.mktemp("s"), "range_unet", View(beams=16, columns=64), 5, width=4))


def written(path: Path, scan: Scan, ring: np.ndarray | None = None, xyz: np.ndarray | None = None) -> Scan:
    arrays = {"xyz": scan.xyz if xyz is None else xyz, "intensity": scan.intensity}
    np.savez(path, **arrays, **({} if ring is None else {"ring": ring}))
    return read_points(path)


@pytest.mark.parametrize(
    "number",
    [
        lambda ring: ring,
        lambda ring: ring + 1,
        lambda ring: 15 - ring,
        lambda ring: 16 - ring,
        lambda ring: np.argsort(FIRING)[ring],
        lambda ring: np.argsort(FIRING)[ring] + 1,
    ],
    ids=["downwards", "downwards from 1", "upwards", "upwards from 1", "firing", "firing from 1"],
)
def test_rings_are_those_of_the_geometry_whatever_the_numbers_say(tmp_path, number):
    scan = street("vlp16")
    found = written(tmp_path / "a.npz", scan, number(scan.ring))
    assert found.beams == 16 and np.array_equal(found.ring, scan.ring)


def test_a_laser_without_returns_keeps_its_row(tmp_path):
    scan = street("vlp16")
    scan = scan[(scan.ring != 0) & (scan.ring != 5)]
    for number in (scan.ring, 15 - scan.ring):
        found = written(tmp_path / "a.npz", scan, number)
        assert found.beams == 16 and np.array_equal(found.ring, scan.ring)
    scan = scan[scan.ring > 5]  # in the order of firing nothing says which are missing: they see the sky
    found = written(tmp_path / "a.npz", scan, np.argsort(FIRING)[scan.ring])
    assert found.beams == 16 and np.array_equal(found.ring, scan.ring)


@pytest.mark.parametrize("suffix", [".las", ".laz"])
def test_las(tmp_path, suffix, student):
    """Millimetres, intensities of 16 and of 8 bits, rings of an extra dimension; what is cut or a map is one line."""
    laspy = pytest.importorskip("laspy", reason="of use to those who have it: pip install 'xmodal-kd[las]'")
    pytest.importorskip("lazrs", reason="of use to those who have it: pip install 'xmodal-kd[las]'")
    scan, path = street("vlp16"), tmp_path / f"a{suffix}"

    def write(most: int, away: float = 0.0) -> Scan:
        header = laspy.LasHeader(point_format=6, version="1.4")
        header.scales = [0.001] * 3
        header.add_extra_dim(laspy.ExtraBytesParams(name="Laser_ID", type=np.uint8))
        points = laspy.LasData(header)
        points.x, points.y, points.z = (scan.xyz + np.array([away, 0, 0])).T
        points.intensity, points["Laser_ID"] = np.linspace(0, most, len(scan)).astype(int), 15 - scan.ring
        points.write(str(path))
        return read_points(path)

    for most in (65535, 255):
        found = write(most)
        np.testing.assert_allclose(found.xyz, scan.xyz, atol=6e-4)
        np.testing.assert_allclose(found.intensity, np.linspace(0, 1, len(scan)), atol=0.004)
        assert found.beams == 16 and np.array_equal(found.ring, scan.ring)
    assert (student.segment(found).labels >= 0).any()
    whole = path.read_bytes()
    for cut, reason in ((len(whole) // 2, "a broken one|it is cut"), (300, "a broken one|it is cut"), (0, "a broken")):
        path.write_bytes(whole[:cut])
        with pytest.raises(UserError, match=reason):
            read_points(path)
    with pytest.raises(UserError, match=r"lie 501 km from the origin.*subtract the sensor's place"):
        write(255, 501_000)


def test_las_without_its_packages_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "laspy", None)
    (tmp_path / "a.las").write_bytes(b"LASF")
    with pytest.raises(UserError, match=r"laspy.*pip install"):
        read_points(tmp_path / "a.las")


def test_numbers_that_are_none_of_lasers(tmp_path):
    scan = street("vlp16")
    assert written(tmp_path / "a.npz", scan, np.zeros(len(scan), int)).ring is None, "they say nothing"
    with pytest.raises(UserError, match="ring 100000 is none of a laser"):
        written(tmp_path / "a.npz", scan, scan.ring + 99_985)


def test_missing_points_keep_their_place(tmp_path, student):
    scan = street("hdl64e")
    xyz = np.full((2 * len(scan), 3), np.nan, np.float32)
    xyz[::2] = scan.xyz
    xyz[1, 0], xyz[3] = 4.0, np.inf
    np.savez(tmp_path / "a.npz", xyz=xyz, ring=np.repeat(scan.ring, 2))
    cloud = read_points(tmp_path / "a.npz")
    assert len(cloud) == 2 * len(scan) and np.array_equal(np.flatnonzero(cloud.there), np.arange(0, len(cloud), 2))
    found, alone = student.segment(cloud), student.segment(scan)
    assert (found.labels[1::2] == UNLABELLED).all() and not found.seen[1::2].any() and not found.confidence[1::2].any()
    assert np.array_equal(found.labels[::2], alone.labels) and np.array_equal(found.confidence[::2], alone.confidence)
    assert found.notes[-1] == f"{len(scan)} of {2 * len(scan)} points are missing (NaN): no label"


@pytest.mark.parametrize(("columns", "said"), [(3, "3 columns (x, y, z)"), (5, "5 columns"), (6, "6 columns")])
def test_records_of_other_columns_are_refused(tmp_path, columns, said):
    """Of a length that four columns would have, too."""
    scan, path = street("hdl64e"), tmp_path / "a.bin"
    table = np.column_stack([scan.xyz, scan.intensity, scan.ring, scan.ring])[: len(scan) // 12 * 12, :columns]
    table.astype("<f4").tofile(path)
    with pytest.raises(UserError, match="no KITTI scan: its fourth column") as caught:
        read_points(path)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    table[:7].astype("<f4").tofile(path)
    with pytest.raises(UserError, match="no multiple of a record of 16"):
        read_points(path)


@pytest.mark.parametrize("order", ["ascii", "binary_little_endian", "binary_big_endian"])
def test_faces_may_stand_before_the_vertices(tmp_path, order):
    end = ">" if order == "binary_big_endian" else "<"
    xyz = street("vlp16").xyz[:30]
    head = f"ply\nformat {order} 1.0\nelement camera 1\nproperty double f\nelement face 2\nproperty uchar group\n"
    head += "property list uchar int vertex_indices\nelement vertex 30\n"
    head += "property float x\nproperty float y\nproperty float z\nend_header\n"
    if order == "ascii":
        body = ("1.5\n7 3 0 1 2\n7 4 0 1 2 3\n" + "".join(f"{x:.9g} {y:.9g} {z:.9g}\n" for x, y, z in xyz)).encode()
    else:
        faces = [b"\7\3" + np.arange(3, dtype=end + "i4").tobytes(), b"\7\4" + np.arange(4, dtype=end + "i4").tobytes()]
        body = np.array([1.5], end + "f8").tobytes() + b"".join(faces) + xyz.astype(end + "f4").tobytes()
    path = tmp_path / "a.ply"
    path.write_bytes(head.encode() + body)
    assert np.array_equal(read_points(path).xyz, xyz)
    path.write_bytes(head.encode() + body[:-45])
    with pytest.raises(UserError, match=str(path)):
        read_points(path)


# --- scans unlike those that a student learned


@pytest.mark.parametrize("sensor", [name for name, one in SENSORS.items() if one.turns])
def test_scans_as_learned_are_not_warned_of(sensor):
    assert unlike(street(sensor), LEARNED, SENSORS["hdl64e"]) == ()


def test_each_way_of_being_unlike_is_said_in_a_line(student):
    scan, sensor = street("hdl64e"), SENSORS["hdl64e"]
    assert ground(scan.xyz.astype(float)) == pytest.approx(-1.73, abs=0.05)

    def said(xyz: np.ndarray, chosen: np.ndarray | slice = slice(None), view: View = LEARNED) -> str:
        changed = Scan(xyz.astype(np.float32), scan.intensity, scan.ring, scan.beams)
        [line] = unlike(changed[np.arange(len(scan))[chosen]], view, sensor)
        assert "\n" not in line
        return line

    x, y, z = scan.xyz.T
    assert "z = 0.0 m; the model learned -1.73 m: add -1.73 m to z" in said(np.column_stack([x, y, z + 1.73]))
    assert "flat along y, not along z" in said(np.column_stack([-y, -z, x]))
    assert "turn the scan over" in said(np.column_stack([x, -y, -z]))
    assert "of 360 degrees" in said(scan.xyz, np.abs(np.arctan2(y, x)) < 1)
    assert "128 points; the model learned images of 2048 columns" in said(scan.xyz, view=View(columns=2048)).replace(
        f"a ring has {int(np.median(np.bincount(scan.ring)))} points", "128 points"
    )
    far = unlike(Scan(scan.xyz * 20, scan.intensity), LEARNED, sensor)
    assert any("beyond the 100 m" in line for line in far)
    near = unlike(Scan(scan.xyz / 20, scan.intensity), LEARNED, sensor)
    assert any("is this a street, in metres?" in line for line in near)
    raised = Scan(scan.xyz + np.float32([0, 0, 1]), scan.intensity, scan.ring, 64)
    assert "add -1.00 m to z" in student.segment(raised).notes[-1]


# --- the shared cases


@pytest.fixture
def cases() -> Path:
    folder = ROOT.parent / "shared/cases/points"
    if not folder.is_dir():
        pytest.skip(f"no cases at {folder}")
    return folder


def test_the_cases_of_ring_numbers_give_one_answer(cases, student):
    answers = [student.segment(read_points(cases / f"{n}.pcd")) for n in ("ring0_16", "hesai1_16", "laserid16")]
    assert len(np.unique(answers[0].labels)) > 1 and answers[0].seen.mean() > 0.2
    for other in answers[1:]:
        assert np.array_equal(other.labels, answers[0].labels) and np.array_equal(other.seen, answers[0].seen)


def test_the_other_cases(cases, student):
    cloud = read_points(cases / "ouster_nan.pcd")
    found = student.segment(cloud)
    assert len(found.labels) == 131_072 and (found.labels[~cloud.there] == UNLABELLED).all()
    assert (~cloud.there).sum() == 24_535 and found.labels[cloud.there].min() >= 0
    assert len(read_points(cases / "facefirst.ply")) == 3000
    with pytest.raises(UserError, match=r"it looks like 3 columns \(x, y, z\)"):
        read_points(cases / "xyz3.bin")
    [line] = unlike(read_points(cases / "camaxes.bin"), LEARNED, SENSORS["hdl64e"])
    assert "flat along y" in line
