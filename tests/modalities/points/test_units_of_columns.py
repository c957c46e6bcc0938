"""Columns in units that no format says: intensities of 16 bits, colours, millimetres, arrays on their side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from points_small import street

from xmodal_kd.modalities.points.data.files import read_points
from xmodal_kd.modalities.points.data.frame import Scan
from xmodal_kd.modalities.points.data.readers import READERS
from xmodal_kd.runtime.errors import UserError


@pytest.fixture(scope="module")
def scan() -> Scan:
    return street("vlp16")


def binary(path: Path, *columns: np.ndarray, kind: str = "<f4") -> Path:
    np.stack(columns, axis=1).astype(kind).tofile(path)
    return path


def array(path: Path, scan: Scan, intensity: np.ndarray) -> Scan:
    np.savez(path, xyz=scan.xyz, intensity=intensity)
    return read_points(path)


@pytest.mark.parametrize("scale", [1, 255, 65535])
def test_intensities_of_three_scales_are_told_apart_and_a_few_beyond_are_clipped(tmp_path, scan, scale):
    right = np.linspace(0, 1, len(scan), dtype=np.float32)
    written = right * scale if scale == 1 else np.rint(right * scale)
    written[::100] *= 1.7  # what retroreflectors give
    found = array(tmp_path / "a.npz", scan, written)
    rest = np.arange(len(scan)) % 100 != 0
    np.testing.assert_allclose(found.intensity[rest], right[rest], atol=0.003)
    path = binary(tmp_path / "a.bin", *scan.xyz.T, written)
    np.testing.assert_allclose(read_points(path).intensity[rest], right[rest], atol=0.003)


def test_few_points_above_1_of_whole_numbers_are_still_of_8_bits(tmp_path, scan):
    written = np.zeros(len(scan))
    written[:3] = 255
    assert array(tmp_path / "a.npz", scan, written).intensity.sum() == 3
    written[0] = 102
    assert array(tmp_path / "a.npz", scan, written).intensity[0] == pytest.approx(0.4)


def test_intensities_in_decibels_are_refused(tmp_path, scan):
    with pytest.raises(UserError, match=r"a.npz: its intensities run from -20 to 30.*scale that column"):
        array(tmp_path / "a.npz", scan, np.linspace(-20, 30, len(scan)))


@pytest.mark.parametrize("suffix", [".txt", ".npy"])
def test_colours_and_normals_of_unnamed_columns_are_no_intensity(tmp_path, scan, suffix):
    path = tmp_path / f"a{suffix}"
    write = (lambda table: np.savetxt(path, table)) if suffix == ".txt" else (lambda table: np.save(path, table))
    write(np.column_stack([scan.xyz, scan.intensity * 255, scan.intensity * 9, scan.intensity]))
    assert not read_points(path).intensity.any(), "it is red"
    write(np.column_stack([scan.xyz, scan.intensity]))
    np.testing.assert_allclose(read_points(path).intensity, scan.intensity, atol=1e-5)


def test_pts_has_a_line_that_counts_and_intensities_of_leica(tmp_path, scan):
    path, count = tmp_path / "a.pts", len(scan)
    right = np.linspace(0, 1, count)
    table = np.column_stack([scan.xyz, np.rint(right * 4095) - 2048, np.full((count, 3), 200)])
    for wide in (7, 4):
        np.savetxt(path, table[:, :wide], header=str(count), comments="")
        found = read_points(path)
        np.testing.assert_allclose(found.xyz, scan.xyz, atol=1e-4)
        np.testing.assert_allclose(found.intensity, right, atol=2e-4)
    np.savetxt(path, np.delete(table, 3, axis=1), header=str(count), comments="")
    assert not read_points(path).intensity.any(), "the fourth of six is red"


def test_veloview_names_its_columns_so(tmp_path, scan):
    table = np.column_stack([scan.intensity * 255, 15 - scan.ring, scan.xyz])
    header = '"intensity","laser_id","Points_m_XYZ:0","Points_m_XYZ:1","Points_m_XYZ:2"'
    np.savetxt(tmp_path / "a.csv", table, delimiter=",", header=header, comments="")
    found = read_points(tmp_path / "a.csv")
    np.testing.assert_allclose(found.xyz, scan.xyz, atol=1e-5)
    assert np.array_equal(found.ring, scan.ring)


@pytest.mark.parametrize("kind", [".npz", ".bin"])
def test_maps_and_millimetres_are_refused_whatever_the_file(tmp_path, scan, kind):
    path = tmp_path / f"a{kind}"
    for xyz in (scan.xyz * 1000, scan.xyz + np.array([691e3, 5335e3, 0])):
        if kind == ".npz":
            np.savez(path, xyz=xyz)
        else:
            binary(path, *xyz.T, scan.intensity)
        with pytest.raises(UserError, match=r"km from the origin.*subtract the sensor's place.*millimetres"):
            read_points(path)


def test_an_array_on_its_side_is_no_scan_of_four_points(tmp_path, scan):
    np.save(tmp_path / "a.npy", scan.xyz.T)
    np.savez(tmp_path / "a.npz", points=scan.xyz.T)
    for name in ("a.npy", "a.npz"):
        with pytest.raises(UserError, match=r"a point a column: .* save its \.T"):
            read_points(tmp_path / name)


def test_records_of_other_columns_are_called_by_their_number(tmp_path, scan):
    some = scan[np.arange(len(scan) // 60 * 60 - 57)]  # so many that the bytes alone do not tell
    for extra, told in ((1, "5 columns"), (3, "7 columns")):
        rest = [some.ring] * extra
        path = binary(tmp_path / "a.bin", *some.xyz.T, some.intensity, *rest)
        with pytest.raises(UserError, match=told):
            read_points(path)
    with pytest.raises(UserError, match="its numbers are float64"):
        read_points(binary(tmp_path / "a.bin", *scan.xyz.T, scan.intensity, kind="<f8"))


def test_rings_as_floats_are_missing_where_points_are(tmp_path, scan):
    ring, xyz = (15.0 - scan.ring), scan.xyz.copy()
    xyz[::7], ring[::7] = np.nan, np.nan
    np.savez(tmp_path / "a.npz", xyz=xyz, ring=ring)
    found, there = read_points(tmp_path / "a.npz"), np.isfinite(xyz[:, 0])
    assert np.array_equal(found.ring[there], scan.ring[there])
    np.savez(tmp_path / "a.npz", xyz=scan.xyz, ring=ring)
    with pytest.raises(UserError, match=r"of its points have no ring \(NaN\)"):
        read_points(tmp_path / "a.npz")


def test_a_pcd_that_counts_its_points_by_width_and_height_alone(tmp_path):
    text = "FIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nCOUNT 1 1 1\nWIDTH 2\nHEIGHT 1\nDATA ascii\n1 2 3\n4 5 6\n"
    (tmp_path / "a.pcd").write_text(text)
    assert read_points(tmp_path / "a.pcd").xyz.tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize("turned", [False, True])
def test_range_images_begin_at_either_end(tmp_path, turned):
    up = np.radians(np.linspace(3, -24, 16))[:, None, None]
    around = np.linspace(-np.pi, np.pi, 32, endpoint=False)[None, :, None]
    shape = np.broadcast_to(20 * np.cos(up), (16, 32, 1))
    xyz = np.concatenate([shape * np.cos(around), shape * np.sin(around), np.tile(20 * np.sin(up), (1, 32, 1))], axis=2)
    image = xyz[::-1] if turned else xyz
    np.savez(tmp_path / "0.npz", xyz=image, intensity=np.ones((16, 32)))
    scan = READERS["range_images"](tmp_path).frame(0).scan
    assert np.array_equal(scan.ring, np.repeat(np.arange(16)[::-1] if turned else np.arange(16), 32))
    assert scan.xyz[scan.ring == 0][:, 2].min() > scan.xyz[scan.ring == 15][:, 2].max()


def test_labels_are_whole_numbers(tmp_path, scan):
    for odd in (0.5, np.nan):
        np.savez(tmp_path / "a.npz", xyz=scan.xyz, labels=np.full(len(scan), odd))
        with pytest.raises(UserError, match="its labels must be whole numbers"):
            read_points(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", xyz=scan.xyz, labels=np.full(len(scan), 2.0))
    assert (read_points(tmp_path / "a.npz").labels == 2).all()
