"""LiDARs that look one way: a grid of azimuth and elevation, from the simulator's rays to a student's answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from points_small import adapter, batch_of, points_data

from xmodal_kd.modalities.points.data.config import PointsData, View
from xmodal_kd.modalities.points.data.found import scans
from xmodal_kd.modalities.points.data.frame import Scan
from xmodal_kd.modalities.points.data.rings import banded
from xmodal_kd.modalities.points.data.simulator.sensors import SENSORS, Sensor, sensor, told
from xmodal_kd.modalities.points.models import RangeUNet
from xmodal_kd.modalities.points.models.unet import RangeUNetConfig
from xmodal_kd.modalities.points.use.segment import Segmenter
from xmodal_kd.modalities.points.use.unlike import unlike
from xmodal_kd.modalities.points.views.range_image import range_image
from xmodal_kd.runtime.errors import UserError

SPEC = "{beams: 16, fov: [-12, 12], azimuth: [-60, 60], columns: 64}"
SEES = {"sees": "range", "columns": 64}


def solid() -> Sensor:
    return sensor(told(SPEC))


def returns(lidar: Sensor, distance: float = 9.0) -> Scan:
    """A return from every ray, some of them from a wall ahead."""
    rays = lidar.rays().reshape(-1, 3)
    away = np.minimum(distance, 6 / np.maximum(rays[:, 0], 1e-3))
    return Scan(rays * away[:, None].astype(np.float32), np.full(len(rays), 0.5, np.float32))


def test_every_ray_has_a_cell_of_its_own() -> None:
    lidar = solid()
    assert not lidar.turns and lidar.name == "16 beams from -12 to 12 degrees, -60 to 60 across"
    rays = lidar.rays()
    azimuth = np.degrees(np.arctan2(rays[..., 1], rays[..., 0]))
    np.testing.assert_allclose(azimuth[3], 60 - 120 * (np.arange(64) + 0.5) / 64, atol=1e-4)
    rng = np.random.default_rng(0)
    order = rng.permutation(rays.shape[0] * rays.shape[1])
    scan = banded(returns(lidar)[order], 16, lidar)
    assert scan.ring is not None
    np.testing.assert_array_equal(scan.ring, order // 64)
    image = range_image(scan, 16, 64, max_range=100, azimuth=lidar.azimuth)
    assert (image.index >= 0).all()
    np.testing.assert_array_equal(image.cell, order)


def test_what_lies_beside_is_in_no_cell() -> None:
    lidar = solid()
    xyz = np.array([[5, 0, 0], [5, 8, 0], [0, 5, 0], [-5, 0.1, 0], [5, -8, 0]], np.float32)  # ahead, 58, 90, 179, -58
    image = range_image(Scan(xyz, np.ones(5), np.zeros(5, int), 1), 1, 64, max_range=100, azimuth=lidar.azimuth)
    assert image.cell.tolist() == [32, 1, -1, -1, 62]


def test_the_ends_of_an_image_are_neighbours_only_where_a_sensor_turns() -> None:
    torch.manual_seed(0)
    x = torch.rand(1, 5, 8, 16)
    y = x.clone()
    y[..., -1] += 1
    changed = []
    for around in (True, False):
        model = RangeUNet(RangeUNetConfig(width=4, levels=1, around=around), channels=5, classes=3).eval()
        model.encoder[0][0].norm = model.encoder[0][1].norm = torch.nn.Identity()
        with torch.no_grad():
            changed.append((model(x) != model(y)).any(dim=1)[0, :, 0].any().item())
    assert changed == [True, False]


def test_students_of_such_a_sensor_learn_and_answer(tmp_path: Path) -> None:
    made = adapter(SEES, {**SEES, "beams": 8}, sensor=told(SPEC), augment={"flip": True})
    model = made.build("student", "range_unet", {"width": 4, "levels": 2})
    assert model.card["params"]["around"] is False  # type: ignore[index]
    batch = batch_of(made.data("train"))
    rows = batch["student"]["inputs"]
    assert rows.shape[2:] == (8, 64) and (rows[:, 4].mean() > 0.3), "most of the image shows something"
    assert (rows[:, 1].amin(dim=(1, 2)) >= 0).all(), "nothing lies behind"
    match = batch["match"]
    assert match.reached.sum() > 0.9 * batch["student"]["valid"].sum()
    made.save("student", model, tmp_path)
    segmenter = Segmenter(tmp_path)
    scan = made.data("test").frames[0][0].scan
    some = np.random.default_rng(0).permutation(len(scan))
    bare = Scan(scan.xyz[some], scan.intensity[some], np.zeros(len(scan), int), 6)  # lines of another meaning
    found = segmenter.segment(bare)
    assert (found.labels >= 0).all() and found.seen.mean() > 0.3
    assert not any("degrees" in note or "rings" in note for note in found.notes)


@pytest.mark.parametrize(("more", "reason"), [
    ({"augment": {"rotate": True, "flip": False}}, r"augment.rotate turns range images of full turns.*-60 to 60"),
    ({"sensor": "{beams: 16, fov: [-12, 12], azimuth: [-60, 40]}"}, "augment.flip needs a range image that is as wide"),
])  # fmt: skip
def test_augmentations_that_it_cannot_have(more: dict[str, Any], reason: str) -> None:
    content = {"sensor": SPEC, "augment": {"flip": True}} | more
    with pytest.raises(ValueError, match=reason):
        points_data(SEES, **{**content, "sensor": told(content["sensor"])})
    points_data({"sees": "points"}, {"sees": "points"}, sensor=told(SPEC), augment={"rotate": True})


@pytest.mark.parametrize("across", ["[20, -20]", "[0, 190]"])
def test_azimuths_that_are_none(across: str) -> None:
    with pytest.raises(UserError, match="azimuth"):
        told(f"{{beams: 16, fov: [-12, 12], azimuth: {across}}}")


def test_a_scan_that_is_unlike(tmp_path: Path) -> None:
    lidar, view = solid(), View(columns=64)
    turned = returns(sensor(told("{beams: 16, fov: [-12, 12], columns: 360}")))
    assert any("lie beside what the model learned, -60 to 60 degrees" in note for note in unlike(turned, view, lidar))
    narrow = returns(sensor(told("{beams: 16, fov: [-12, 12], azimuth: [-20, 20], columns: 64}")))
    assert any("cover 40 of 120 degrees" in note for note in unlike(narrow, view, lidar))
    assert not any("degrees" in note for note in unlike(returns(lidar), view, lidar))


def test_new_finds_where_it_looks(tmp_path: Path) -> None:
    """Scans without rings, in any order: the field of view to half a degree, about as many rows as there are."""
    lidar, rng = SENSORS["livox_hap"], np.random.default_rng(0)
    folder = tmp_path / "sequences/00/velodyne"
    folder.mkdir(parents=True)
    for i in range(3):
        azimuth, up = rng.uniform(-np.pi / 3, np.pi / 3, 40_000), rng.uniform(*np.radians([-12.5, 12.5]), 40_000)
        away = np.where(up < -0.01, np.minimum(1.7 / np.maximum(-np.sin(up), 1e-3), 60), 30)
        unit = np.stack([np.cos(up) * np.cos(azimuth), np.cos(up) * np.sin(azimuth), np.sin(up)], 1)
        rows = np.concatenate([unit * away[:, None], rng.random((len(unit), 1))], 1)
        rows.astype("<f4").tofile(folder / f"{i:06d}.bin")
    seen = scans(tmp_path).sensor
    assert seen is not None and not isinstance(seen, str)
    np.testing.assert_allclose([*seen.fov, *seen.azimuth], [-12.5, 12.5, -60, 60], atol=0.5)  # type: ignore[misc]
    assert abs(seen.beams - lidar.beams) <= 32 and abs(seen.height - 1.7) < 0.1  # type: ignore[operator]
    PointsData.model_validate({"sensor": seen.model_dump(mode="json", exclude_defaults=True)})


def test_presets_look_where_their_data_sheets_say() -> None:
    """Lowest and highest laser in degrees; all but one turn."""
    wanted = {
        "hdl64e": (-24.33, 2), "vlp16": (-15, 15), "nuscenes32": (-30.67, 10.67), "hdl32e": (-30.67, 10.67),
        "vlp32c": (-25, 15), "pandar40p": (-25, 15), "pandar64": (-25, 15), "os1_64": (-22.5, 22.5),
        "os1_128": (-22.5, 22.5), "os0_128": (-45, 45), "livox_hap": (-12.5, 12.5),
    }  # fmt: skip
    for name, lidar in SENSORS.items():
        degrees = np.degrees(lidar.elevations)
        assert (np.diff(degrees) < 0).all(), f"{name}: ring 0 is the highest"
        np.testing.assert_allclose((degrees[-1], degrees[0]), wanted[name], atol=0.01)
        assert lidar.turns == (name != "livox_hap") and 16 <= lidar.beams <= 128
