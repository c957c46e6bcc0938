"""Simulated streets: sensors, worlds, scans and pictures against geometry worked out by other means."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest

from xmodal_kd.modalities.points.data.frame import CLASSES, UNLABELLED, Frame
from xmodal_kd.modalities.points.data.simulator.camera import CameraSpec
from xmodal_kd.modalities.points.data.simulator.cast import simulate
from xmodal_kd.modalities.points.data.simulator.families import FAMILIES
from xmodal_kd.modalities.points.data.simulator.mesh import Mesh
from xmodal_kd.modalities.points.data.simulator.sensors import SENSORS, SensorSpec, sensor, told
from xmodal_kd.modalities.points.data.simulator.shapes import Material, Shape, ball, cars, cuboid, limb, people, trucks
from xmodal_kd.modalities.points.data.simulator.street import LENGTH, Street
from xmodal_kd.modalities.points.data.simulator.world import SPAN, World
from xmodal_kd.runtime.errors import UserError

SMALL = sensor("hdl64e", 128)
TINY = sensor("vlp16", 96)
#: Without noise, and nothing is lost by chance.
EXACT = replace(SMALL, noise=0.0, dropout=0.0)


def same(a: Frame, b: Frame) -> bool:
    parts = ("xyz", "intensity", "ring", "labels", "moving")
    return all(np.array_equal(getattr(a.scan, name), getattr(b.scan, name)) for name in parts)


# Sensors


@pytest.mark.parametrize("name", [name for name, one in SENSORS.items() if one.turns])
def test_rays_fall_from_row_to_row_and_turn_right_from_column_to_column(name: str) -> None:
    lidar = sensor(name, 96)
    rays = lidar.rays()
    assert rays.shape == (lidar.beams, 96, 3) and rays.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rays, axis=2), 1, atol=1e-6)
    elevation, azimuth = np.arcsin(rays[..., 2]), np.arctan2(rays[..., 1], rays[..., 0])
    assert (np.diff(elevation[:, 0]) < 0).all()
    np.testing.assert_allclose(azimuth[0], np.pi - 2 * np.pi * (np.arange(96) + 0.5) / 96, atol=1e-5)
    assert (rays[:, 47:49, 0] > 0.7).all(), "straight ahead is in the middle"


def test_presets_are_the_sensors_they_are_named_after() -> None:
    beams = {name: s.beams for name, s in SENSORS.items()}
    assert beams == {
        "hdl64e": 64, "vlp16": 16, "nuscenes32": 32, "hdl32e": 32, "vlp32c": 32, "pandar40p": 40, "pandar64": 64,
        "os1_64": 64, "os1_128": 128, "os0_128": 128, "livox_hap": 112,
    }  # fmt: skip
    ends = {name: np.degrees(s.elevations[[0, -1]]).round(2).tolist() for name, s in SENSORS.items()}
    assert (ends["vlp16"], ends["vlp32c"], ends["pandar40p"], ends["os1_128"]) == (
        [15, -15], [15, -25], [15, -25], [22.5, -22.5],
    )  # fmt: skip
    with pytest.raises(UserError, match=r"'hdl32' is unknown \(nearest: hdl32e.*\{beams: 40, fov: \[-25, 15\]\}"):
        sensor("hdl32")


def test_a_sensor_is_described_by_its_lasers() -> None:
    even = sensor(SensorSpec(beams=5, fov=(-20, 20), height=2.0))
    assert np.degrees(even.elevations).round(3).tolist() == [20, 10, 0, -10, -20] and even.height == 2.0
    assert even.name == "5 beams from -20 to 20 degrees"
    uneven = told("{elevations: [-15, 3, 0.5], columns: 64}")
    assert np.degrees(sensor(uneven).elevations).round(3).tolist() == [3, 0.5, -15]
    assert sensor(uneven).columns == 64 and told("vlp16") == "vlp16"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{beams: 40}", "give beams and fov"),
        ("{beams: 4, fov: [-5, 5], elevations: [1, 2]}", "give beams and fov"),
        ("{beams: 4, fov: [5, -5]}", r"fov is \[lowest, highest\]"),
        ("{elevations: [1, 1]}", "the same angle"),
        ("{beams: 4, fov: [-5, 5], heigth: 2}", "heigth"),
        ("{beams: 4, fov: [-100, 5]}", "fov"),
        ("{beams: 4", "no YAML mapping"),
    ],
)
def test_a_sensor_that_cannot_be(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        told(text)


# Shapes


SOLIDS = {
    "box": cuboid((0, 0, 0), (1, 2, 3), Material.FACADE),
    "limb": limb((0, 0, 0), (0.3, 0, 2), (0.5, 0.2), Material.METAL),
    "ball": ball((0, 0, 1), (1, 1, 2), Material.LEAF),
    "car": cars()[0],
    "bus": trucks()[2],
    "walker": people()[1],
}


@pytest.mark.parametrize("name", SOLIDS)
def test_solids_are_closed(name: str) -> None:
    """Every edge belongs to two triangles, none of which is empty."""
    solid: Shape = SOLIDS[name]
    edges = np.sort(np.concatenate([solid.triangles[:, [i, j]] for i, j in ((0, 1), (1, 2), (2, 0))]), axis=1)
    _, times = np.unique(edges, axis=0, return_counts=True)
    assert (times == 2).all()
    a, b, c = np.moveaxis(solid.vertices[solid.triangles], 1, 0)
    assert (np.linalg.norm(np.cross(b - a, c - a), axis=1) > 1e-6).all()


def test_vehicles_and_people_have_the_size_of_real_ones() -> None:
    length, width, height = np.array([car.size for car in cars()]).T
    assert (length > 3.7).all() and (length < 5.2).all()
    assert (width > 1.6).all() and (width < 2).all() and (height > 1.4).all() and (height < 2.1).all()
    assert all(7.5 > truck.size[0] > 5.5 or truck.size[0] > 8 for truck in trucks())
    assert [round(float(person.size[2]), 2) for person in people()] == pytest.approx([1.74] * 3, abs=0.05)


# Worlds


def meshes_equal(a: Mesh, b: Mesh) -> bool:
    return np.array_equal(a.vertices, b.vertices) and np.array_equal(a.label, b.label)


def test_a_world_follows_from_family_index_and_seed() -> None:
    first = World("train", 3).mesh(0.0)
    assert meshes_equal(first, World("train", 3).mesh(0.0))
    others = [World("train", 4), World("dev", 3), World("test", 3), World("train", 3, seed=1)]
    assert not any(meshes_equal(first, other.mesh(0.0)) for other in others)


def test_families_draw_their_layouts_within_their_ranges_and_these_differ() -> None:
    assert len({str(limits) for limits in FAMILIES.values()}) == len(FAMILIES) == 3
    for family, (low, high) in FAMILIES.items():
        drawn = [World(family, index).layout for index in range(3)]
        for layout in drawn:
            assert all(a <= x <= b for a, x, b in zip(*(vars(v).values() for v in (low, layout, high)), strict=True))
        assert len({layout.lane for layout in drawn}) == 3
    with pytest.raises(UserError, match=r"'trains'.*nearest: train"):
        World("trains", 0)


def test_a_pose_is_rigid_stands_on_the_road_and_looks_along_the_lane() -> None:
    for index in range(8):
        world = World("train", index)
        for time in (0.0, -0.5, -SPAN):
            pose = world.pose(time, 1.73)
            np.testing.assert_allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-12)
            assert np.linalg.det(pose[:3, :3]) == pytest.approx(1)
        ahead = world.pose(0.0, 0.0)[:3, 3] - world.pose(-0.1, 0.0)[:3, 3]
        assert np.linalg.norm(ahead) == pytest.approx(0.1 * world.layout.speed, rel=0.03)
        if world.layout.speed > 1:
            assert ahead @ world.pose(0.0, 0.0)[:3, 0] > 0.99 * np.linalg.norm(ahead)
    with pytest.raises(ValueError, match="lasts"):
        World("train", 0).pose(-SPAN - 0.1, 1.73)


def test_the_street_keeps_distances_along_its_middle_and_across() -> None:
    street: Street = World("dev", 1).street
    assert street.bend != 0
    s = np.linspace(-LENGTH, LENGTH, 2001)
    x, y = street.world(s, 0 * s)
    np.testing.assert_allclose(np.hypot(np.diff(x), np.diff(y)), np.diff(s), rtol=1e-5)
    left_x, left_y = street.world(s, 0 * s + 5)
    np.testing.assert_allclose(np.hypot(left_x - x, left_y - y), 5, atol=1e-9)
    np.testing.assert_allclose(np.cos(street.heading(s[:-1])), np.diff(x) / np.diff(s), atol=2e-3)


def test_a_kerb_is_a_step_as_high_as_the_layout_says() -> None:
    street = World("train", 0).street
    s = np.linspace(-10, 10, 5)
    step = street.height(s, np.full(5, street.half + 0.05)) - street.height(s, np.full(5, street.half - 0.05))
    np.testing.assert_allclose(step, street.layout.kerb, atol=0.02)


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_where_the_sensors_car_drives(family: str) -> None:
    for index in range(12):
        world = World(family, index)
        for time in (0.0, -1.0, -2.5, -SPAN):
            s, d = world.layout.speed * time, -world.layout.lane / 2
            for group in world.things:
                clear_s = abs(group.s + time * group.velocity[:, 0] - s) > 1.9 + group.shape.size[0] / 2
                clear_d = abs(group.d + time * group.velocity[:, 1] - d) > 0.7 + group.shape.size[1] / 2
                turned = abs(np.sin(group.yaw)) > 0.5
                assert (clear_s | clear_d | turned).all(), (index, time, group.label)


def test_vehicles_stand_on_the_ground() -> None:
    world = World("train", 5)
    for group in world.things:
        place, _ = group.at(world.street, 0.0)
        mesh = group.mesh(world.street, 0.0)
        lowest = mesh.vertices.reshape(len(group), -1, 3)[..., 2].min(1)
        np.testing.assert_allclose(lowest, place[:, 2], atol=0.04)  # a heel may sink in


# Scans


def test_a_scan_follows_from_its_numbers() -> None:
    a, b = simulate("train", 2, TINY)[0], simulate("train", 2, TINY)[0]
    assert same(a, b) and a.boxes == b.boxes and a.key == "train-000002"
    assert not same(a, simulate("train", 2, TINY, seed=1)[0])
    assert same(a, simulate("train", 2, TINY, sweeps=2)[0]), "older sweeps leave the newest as it is"
    assert same(a, simulate("train", 2, TINY, camera=CameraSpec(12, 40))[0]), "so does a camera"


def test_points_lie_in_ray_order_on_their_rays() -> None:
    scan = simulate("train", 1, SMALL)[0].scan
    assert scan.ring is not None and scan.beams == 64 and len(scan) > 4000
    azimuth = np.arctan2(scan.xyz[:, 1], scan.xyz[:, 0])
    column = (np.pi - azimuth) * 128 / (2 * np.pi) - 0.5
    assert abs(column - column.round()).max() < 1e-3
    assert (np.diff(scan.ring * 128 + column.round()) > 0).all()
    elevation = np.arcsin(scan.xyz[:, 2] / scan.distance)
    np.testing.assert_allclose(elevation, SMALL.elevations[scan.ring], atol=1e-5)
    assert scan.distance.max() < SMALL.max_range + 0.2 and scan.xyz.dtype == np.float32


def nearest_hit(mesh: Mesh, origin: np.ndarray, direction: np.ndarray) -> tuple[float, int]:
    """Distance and triangle of the first meeting, by Möller and Trumbore's test of every triangle in float64."""
    a, b, c = np.moveaxis(mesh.vertices[mesh.triangles].astype(np.float64), 1, 0)
    p = np.cross(direction, c - a)
    det = np.einsum("ij,ij->i", b - a, p)
    with np.errstate(divide="ignore", invalid="ignore"):
        u = np.einsum("ij,ij->i", origin - a, p) / det
        q = np.cross(origin - a, b - a)
        v = q @ direction / det
        t = np.einsum("ij,ij->i", c - a, q) / det
        hit = (u >= 0) & (v >= 0) & (u + v <= 1) & (t > 1e-6)
    t = np.where(hit, t, np.inf)
    return float(t.min()), int(t.argmin())


def test_ranges_and_labels_are_those_of_the_nearest_triangle() -> None:
    world, frame = World("train", 7), simulate("train", 7, EXACT)[0]
    assert frame.pose is not None and frame.scan.labels is not None and frame.scan.moving is not None
    mesh = world.mesh(0.0)
    agree = 0
    for i in np.linspace(0, len(frame.scan) - 1, 60).astype(int):
        point = frame.scan.xyz[i].astype(np.float64)
        distance = np.linalg.norm(point)
        found, triangle = nearest_hit(mesh, frame.pose[:3, 3], frame.pose[:3, :3] @ point / distance)
        assert found == pytest.approx(distance, abs=0.02) or mesh.material[triangle] == Material.LEAF
        agree += mesh.label[triangle] == frame.scan.labels[i]
    assert agree >= 59, "but for a ray that grazes an edge"


def test_noise_moves_points_along_their_rays_and_dropout_takes_its_share() -> None:
    noisy, exact = (simulate("test", 4, s)[0].scan for s in (replace(SMALL, dropout=0.0), EXACT))
    np.testing.assert_array_equal(noisy.ring, exact.ring)
    np.testing.assert_allclose(noisy.xyz / noisy.distance[:, None], exact.xyz / exact.distance[:, None], atol=1e-5)
    assert noisy.labels is not None
    error, hard = (
        noisy.distance - exact.distance,
        np.isin(noisy.labels, [CLASSES.index("car"), CLASSES.index("building")]),
    )
    assert np.std(error[hard]) == pytest.approx(SMALL.noise, rel=0.05)
    assert np.std(error[noisy.labels == CLASSES.index("tree")]) > 1.5 * SMALL.noise, "leaves are no wall"
    lost = 1 - len(simulate("test", 4, replace(SMALL, dropout=0.3))[0].scan) / len(exact)
    assert lost == pytest.approx(0.3, abs=0.03)


def test_intensities_lie_between_0_and_1_and_tell_materials_apart() -> None:
    scan = simulate("train", 0, sensor("hdl64e", 256))[0].scan
    assert scan.intensity.min() >= 0 and scan.intensity.max() <= 1 and scan.labels is not None
    ground, building = (scan.intensity[scan.labels == CLASSES.index(name)].mean() for name in ("ground", "building"))
    assert ground < building


def test_boxes_hold_the_points_of_what_they_are_named_after() -> None:
    for index in range(4):
        frame = simulate("train", index, EXACT)[0]
        assert frame.boxes and frame.scan.labels is not None
        for name in ("car", "truck", "person"):
            points = frame.scan.xyz[frame.scan.labels == CLASSES.index(name)]
            boxes = [box for box in frame.boxes if box.name == name]
            assert bool(boxes) == bool(len(points))
            inside = np.array([box.inside(points, margin=0.15) for box in boxes] or [[True]])
            assert inside.any(1).all(), "each box has a point"
            assert inside.any(0).mean() > 0.98, "but for what a sloping road takes out of upright boxes"


def test_sweeps_lie_in_one_world_by_their_poses_and_things_move_at_their_speed() -> None:
    index = next(i for i in range(50) if World("train", i).layout.speed > 6)
    world, frames = World("train", index), simulate("train", index, EXACT, sweeps=3)
    assert [frame.key for frame in frames] == [f"train-{index:06d}{tail}" for tail in ("", "-1", "-2")]
    for age, frame in enumerate(frames):
        assert frame.pose is not None and frame.scan.moving is not None and frame.scan.labels is not None
        np.testing.assert_allclose(frame.pose, world.pose(-0.1 * age, 1.73))
        scan = frame.scan[(frame.scan.labels == CLASSES.index("ground")) & (frame.scan.distance < 10)]
        points = scan.xyz @ frame.pose[:3, :3].T + frame.pose[:3, 3]
        places = np.linspace(-30, 30, 601)[:, None], np.linspace(-9, 9, 181)[None]
        s, d = (grid.ravel() for grid in np.broadcast_arrays(*places))
        x, y = world.street.world(s, d)
        nearest = [int(np.argmin((x - p[0]) ** 2 + (y - p[1]) ** 2)) for p in points[::40]]
        gap = points[::40, 2] - world.street.height(s[nearest], d[nearest])
        assert np.median(abs(gap)) < 0.03, "every sweep meets the same road"
    movers = [group for group in world.things if group.moves.any()]
    assert movers
    for group in movers:
        step = group.at(world.street, 0.0)[0] - group.at(world.street, -0.1)[0]
        np.testing.assert_allclose(
            np.linalg.norm(step[:, :2], axis=1), 0.1 * np.linalg.norm(group.velocity, axis=1), rtol=0.15
        )


def test_what_is_marked_as_moving_is_what_moves() -> None:
    frames = [simulate("train", index, SMALL)[0] for index in range(6)]
    for frame in frames:
        scan = frame.scan
        assert scan.moving is not None and scan.labels is not None
        still = np.isin(scan.labels, [CLASSES.index(n) for n in ("ground", "pavement", "building", "pole", "tree")])
        assert not scan.moving[still | (scan.labels == UNLABELLED)].any()
    assert any(frame.scan.moving is not None and frame.scan.moving.any() for frame in frames)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_class_is_seen_in_every_family_and_the_ground_most(family: str) -> None:
    count = np.zeros(len(CLASSES) + 1, int)
    for index in range(16):
        count += np.bincount(simulate(family, index, SMALL)[0].scan.labels + 1, minlength=len(count))
    by_class = dict(zip(CLASSES, count[1:].tolist(), strict=True))
    assert min(by_class.values()) > 200, by_class
    assert max(by_class, key=lambda name: by_class[name]) == "ground"
    assert count[0] < 0.02 * count.sum()


# Pictures


def test_a_picture_shows_what_the_lidar_meets() -> None:
    total = agree = 0
    for index in range(4):
        frame = simulate("train", index, EXACT, camera=CameraSpec(144, 480))[0]
        (picture,) = frame.pictures
        assert picture.rgb.shape == (144, 480, 3) and picture.rgb.dtype == np.uint8
        assert picture.depth is not None and picture.labels is not None and frame.scan.labels is not None
        sky = np.isinf(picture.depth)
        assert (picture.labels[sky] == UNLABELLED).all() and (picture.depth > 0).all()
        uv, depth = picture.camera.project(frame.scan.xyz)
        u, v = np.floor(uv).astype(int).T
        seen = (depth > 1) & (u >= 0) & (u < 480) & (v >= 0) & (v < 144)
        u, v, depth, labels = u[seen], v[seen], depth[seen], frame.scan.labels[seen]
        visible = abs(picture.depth[v, u] - depth) < 0.3
        assert visible.mean() > 0.8
        total, agree = total + visible.sum(), agree + (picture.labels[v, u] == labels)[visible].sum()
    assert agree / total > 0.985


def test_a_camera_stands_where_its_spec_says_and_its_axis_is_the_middle() -> None:
    camera = CameraSpec(96, 320, 90.0, (0.5, 0.1, -0.2)).camera()
    uv, depth = camera.project(np.array([[10.5, 0.1, -0.2], [10.5, 10.1, -0.2], [10.5, 0.1, 1.8]]))
    np.testing.assert_allclose(depth, 10)
    np.testing.assert_allclose(uv, [[160, 48], [0, 48], [160, 16]], atol=1e-9)  # 90 degrees: the edge is at 45
    with pytest.raises(UserError, match="0 and 180"):
        CameraSpec(fov_degrees=180).camera()


def test_the_sky_is_light_and_the_road_is_grey() -> None:
    frame = simulate("dev", 6, SMALL, camera=CameraSpec())[0]
    (picture,) = frame.pictures
    assert picture.depth is not None and picture.labels is not None
    sky, road = np.isinf(picture.depth), picture.labels == CLASSES.index("ground")
    assert sky.any() and picture.rgb[sky].mean() > picture.rgb[road].mean()
    again = simulate("dev", 6, SMALL, camera=CameraSpec())[0].pictures[0]
    np.testing.assert_array_equal(picture.rgb, again.rgb)


# Open3D


def test_where_open3d_does_not_load_a_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which line for which fault: tests/test_binary.py."""
    monkeypatch.setitem(sys.modules, "open3d", None)
    with pytest.raises(UserError, match=r"open3d.*: pip install ") as told:
        simulate("dev", 6, TINY)
    assert "\n" not in str(told.value)


def test_cyclists_ride_where_nobody_else_is() -> None:
    """All else stays where it is; their boxes hold their points, which are a person's, and hardly any of a vehicle."""
    names = list[str]()
    for index in (1, 4, 6, 8):
        alone, beside = (simulate("train", index, SMALL, cyclists=rate)[0] for rate in (0.0, 9.0))
        assert alone.boxes is not None and beside.boxes is not None and beside.scan.labels is not None
        places = {box.centre for box in alone.boxes}
        assert all(box.name == "cyclist" or box.centre in places for box in beside.boxes), "they move nobody"
        for box in (box for box in beside.boxes if box.name == "cyclist"):
            inside = beside.scan.labels[box.inside(beside.scan.xyz, 0.05)].tolist()
            names += [CLASSES[label] for label in inside]
            assert inside.count(CLASSES.index("person")) >= 0.8 * (box.points or 0)
            assert 1.4 < box.size[0] < 2.1 and 0.4 < box.size[1] < 0.8 and 1.4 < box.size[2] < 2.1
    assert names.count("person") > 40 > 20 * (names.count("car") + names.count("truck"))
