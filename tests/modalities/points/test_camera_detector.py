"""Detectors of photographs: pixels lifted to the ground, what the cameras show, signals beside a scan's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detection_small import adapter, detection_data, smallest
from torch.nn import functional as F

from xmodal_kd.losses import LOSSES
from xmodal_kd.modalities.points.data.frame import Camera
from xmodal_kd.modalities.points.data.simulator.camera import CameraSpec
from xmodal_kd.modalities.points.methods import BevDistill, LabelDistill, UniDistill
from xmodal_kd.modalities.points.models import MODELS, CenterPointCamera
from xmodal_kd.modalities.points.tasks.detection import DetectionAdapter
from xmodal_kd.modalities.points.views.augment import Motion, turning
from xmodal_kd.modalities.points.views.detection_source import DetectionSource
from xmodal_kd.modalities.points.views.frustum import focal, frustum_cells, lift_of, nearest_depth
from xmodal_kd.modalities.points.views.ground import Ground
from xmodal_kd.objective.objective import Objective
from xmodal_kd.recipe.recipe import Term, Train
from xmodal_kd.runtime.distributed import Ranks
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.runtime.timing import StepTimer
from xmodal_kd.training.method import Context, Distil, Stage

Capture = pytest.CaptureFixture[str]
IMAGE = {"image": [32, 64], "student": {"sees": "image"}}
GROUND = Ground((0.0, -6.4), 0.8, (16, 16))
DEPTH = Term(loss="ce", on="depth", labels="depth_labels", weight=0.1)


def camera(**more: Any) -> DetectionAdapter:
    return adapter(**{**IMAGE, "augment": {"flip": True, "scale": [0.9, 1.1], "colour": 0.2}, **more})


def tilted() -> Camera:
    """A camera that looks a little down and to the left."""
    plain = CameraSpec(32, 64, 80.0).camera()
    a, b = np.cos(0.1), np.sin(0.1)
    down, left = np.array([[1, 0, 0], [0, a, -b], [0, b, a]]), np.array([[a, 0, -b], [0, 1, 0], [b, 0, a]])
    moved = plain.lidar_to_camera.copy()
    moved[:3] = down @ left @ moved[:3]
    return Camera(plain.intrinsics, moved, 32, 64)


# Lifting


def test_places_are_found_as_a_slow_loop_finds_them() -> None:
    cameras = [tilted(), CameraSpec(32, 64, 60.0, (0.3, 0.4, 0.1)).camera()]
    motion, depths, heights = Motion(0.3, True, 1.1), [2.0, 5.5, 9.0], (-2.0, 1.0)
    turn = turning(motion).numpy()
    lifts = np.stack([np.stack([turn @ lift_of(one) for one in some]) for some in (cameras, cameras[::-1])])
    got = frustum_cells(
        torch.from_numpy(lifts), (8, 16), 4, torch.tensor(depths, dtype=torch.float64), heights, GROUND
    ).reshape(2, 2, 3, 8, 16)
    inside = 0
    for item, some in enumerate((cameras, cameras[::-1])):
        for number, one in enumerate(some):
            back, focus = np.linalg.inv(one.lidar_to_camera), one.intrinsics
            for at, depth in enumerate(depths):
                for i in range(8):
                    for j in range(16):
                        v, u = 4 * i + 2.0, 4 * j + 2.0
                        x = (u - focus[0, 2]) / focus[0, 0] * depth
                        y = (v - focus[1, 2]) / focus[1, 1] * depth
                        place = turn @ (back @ [x, y, depth, 1.0])[:3]
                        row = int(GROUND.rows(place[None])[0])
                        there = row >= 0 and heights[0] <= place[2] < heights[1]
                        assert got[item, number, at, i, j] == (row + item * 256 if there else 2 * 256)
                        inside += there
    assert inside > 300


def test_a_place_is_lifted_back_from_where_it_is_seen() -> None:
    one, places = tilted(), np.array([[8.0, 0.5, -1.0], [5.0, -1.0, 0.2]])
    uv, depth = one.project(places)
    seen = np.concatenate([uv * depth[:, None], depth[:, None], np.ones((2, 1))], axis=1)
    np.testing.assert_allclose(seen @ lift_of(one).T, places, atol=1e-9)
    assert focal(turning(Motion(0.4, True, 1.0)).numpy() @ lift_of(one)) == pytest.approx(one.intrinsics[0, 0])
    near = nearest_depth(one, np.concatenate([places, 2 * places - np.linalg.inv(one.lidar_to_camera)[:3, 3]]))
    i, j = int(uv[0, 1]), int(uv[0, 0])
    assert near[i, j] == pytest.approx(depth[0]) and np.isfinite(near).sum() == 2


def model(**params: Any) -> CenterPointCamera:
    torch.manual_seed(0)
    config = CenterPointCamera.Config(**{"width": 4, "picture": 4, "depths": (1.0, 11.0, 1.0), **params})
    made = CenterPointCamera(config, channels=3, classes=2)  # type: ignore[arg-type]
    return made.eval()


def test_pillars_are_the_sums_of_a_slow_loop() -> None:
    """The pillars of two items are sums over pixels and depths of probability times context, in float64."""
    made = model().double()
    lift = torch.from_numpy(np.stack([lift_of(tilted()), lift_of(CameraSpec(32, 64).camera())]))[:, None]
    cell = made.cells(lift, (32, 64), GROUND)
    pictures = torch.rand(2, 1, 3, 32, 64, dtype=torch.float64)
    taken: dict[str, torch.Tensor] = {}
    hooks = [
        made.get_submodule(name).register_forward_hook(lambda _, __, out, name=name: taken.update({name: out}))  # type: ignore[misc]
        for name in ("depth", "context", "pillars")
    ]
    made(pictures, cell, (2, 16, 16))
    sure, context = (x.detach().numpy() for x in (taken["depth"].softmax(dim=1), taken["context"]))
    slow, where = np.zeros((513, 4)), cell.reshape(2, 10, 8, 16).numpy()
    for b in range(2):
        for d in range(10):
            for i in range(8):
                for j in range(16):
                    slow[where[b, d, i, j]] += sure[b, d, i, j] * context[b, :, i, j]
    np.testing.assert_allclose(
        taken["pillars"].detach(), slow[:-1].reshape(2, 16, 16, 4).transpose(0, 3, 1, 2), atol=1e-12
    )
    assert (slow[:-1] != 0).any() and (slow[-1] != 0).any()
    for hook in hooks:
        hook.remove()


def test_gradients_reach_depth_and_context_through_the_ground() -> None:
    made = model().train()
    cell = made.cells(torch.from_numpy(lift_of(tilted()))[None, None], (32, 64), GROUND)
    with torch.no_grad():
        for head in (made.heat[1], made.boxes[1]):  # type: ignore[index]
            head.weight.mul_(30)  # type: ignore[operator, union-attr]
    answer = made(torch.rand(1, 1, 3, 32, 64), cell, (1, 16, 16))
    (answer.heat.square().sum() + answer.boxes.square().sum()).backward()
    for part in (made.depth[1], made.context, made.picture.stages[0][0][0]):  # type: ignore[index]
        assert part.weight.grad is not None and part.weight.grad.abs().max() > 0  # type: ignore[union-attr, operator]


def test_a_moment_is_seen_alike_alone_and_in_a_batch_and_through_more_cameras() -> None:
    made = model()
    lift = torch.from_numpy(np.stack([lift_of(tilted()), lift_of(CameraSpec(32, 64).camera())]))
    pictures = torch.rand(2, 3, 32, 64)
    both = made(pictures[:, None], made.cells(lift[:, None], (32, 64), GROUND), (2, 16, 16))
    alone = made(pictures[1:, None], made.cells(lift[1:, None], (32, 64), GROUND), (1, 16, 16))
    torch.testing.assert_close(both.heat[1:], alone.heat, atol=1e-5, rtol=0)
    turned = [
        made(pictures[o][None], made.cells(lift[o][None], (32, 64), GROUND), (1, 16, 16)) for o in ([0, 1], [1, 0])
    ]
    torch.testing.assert_close(turned[0].boxes, turned[1].boxes, atol=1e-5, rtol=0)
    assert not torch.allclose(turned[0].boxes, alone.boxes, atol=1e-3)


@pytest.mark.parametrize("stride", [8, pytest.param(16, marks=pytest.mark.full)])
def test_a_coarser_map_and_a_network_by_its_name_are_lifted(stride: int) -> None:
    lift, pictures = torch.from_numpy(lift_of(tilted()))[None, None], torch.rand(1, 1, 3, 32, 64)
    made = [model(stride=stride)]
    if stride == 16:
        made.append(model(stride=stride, trunk={"name": "resnet18", "width": 6}))
        again = model(**made[1].again.model_dump())
        again.load_state_dict(made[1].state_dict())
        made.append(again)
    for one in made:
        one.fits((32, 64))
        cell = one.cells(lift, (32, 64), GROUND)
        assert len(cell) == 10 * (32 // stride) * (64 // stride)
        answer = one(pictures, cell, (1, 16, 16))
        assert answer.heat.shape == (1, 2, 8, 8) and torch.isfinite(answer.boxes).all()
    if stride == 16:
        torch.testing.assert_close(made[1](pictures, cell, (1, 16, 16)).heat, answer.heat)


def test_steps_of_depth_are_those_of_the_nearest_point() -> None:
    depth = torch.full((1, 1, 8, 12), torch.inf)
    for i, j, metres in ((0, 0, 9.0), (3, 3, 4.2), (1, 5, 0.5), (6, 2, 11.0), (7, 9, 1.0)):
        depth[0, 0, i, j] = metres
    assert model().steps(depth).tolist() == [3, -1, -1, -1, -1, 0]


# What the cameras show


def test_nobody_sees_or_looks_for_what_the_camera_does_not_show() -> None:
    made = camera()
    everywhere = adapter().data("test").moment(0)
    moment = made.data("test").moment(0)
    lens = CameraSpec(32, 64).camera()
    for points in (moment.points("teacher"), moment.points("student")):
        uv, depth = lens.project(points[:, :3])
        assert len(points) and (depth > 0).all() and (uv >= 0).all() and (uv < (64, 32)).all()
    assert 0 < len(moment.points("teacher")) < len(everywhere.points("teacher"))
    assert 0 < len(moment.boxes) < len(everywhere.boxes) and moment.camera is None
    for box in moment.things:
        shown = box.inside(moment.points("student")).sum()
        assert box.points is not None and 0 < box.points <= shown
    other = camera(teacher={"sees": "image"}, student={"sees": "pillars"}).data("test").moment(0)
    np.testing.assert_array_equal(other.boxes, moment.boxes)


def test_the_scene_moves_and_the_photograph_stays() -> None:
    data = detection_data(**IMAGE, augment={"flip": True, "scale": [0.9, 1.1]})
    source = DetectionSource(data, "train", Streams(1), 2)
    clean, moved = source.clean(0), source.sample(0, 0)
    rgb, lift, depth = moved.seen["student"]
    assert torch.equal(rgb, clean.seen["student"][0]) and torch.equal(depth, clean.seen["student"][2])
    points = clean.seen["student"][1].new_tensor(source.moment(0).points("student")[:, :3])
    uv, deep = CameraSpec(32, 64).camera().project(points.numpy())
    seen = torch.from_numpy(np.concatenate([uv * deep[:, None], deep[:, None], np.ones((len(uv), 1))], axis=1))
    places = seen @ lift[0].T
    scale = places.norm(dim=1) / points.norm(dim=1)
    assert scale.min() >= 0.9 and scale.max() - scale.min() < 1e-4
    centres = moved.boxes[:, :2].norm(dim=1) / clean.boxes[:, :2].norm(dim=1)
    torch.testing.assert_close(centres.double(), scale[:1].expand(len(centres)), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "sides", [("pillars", "image"), *(pytest.param(("image", s), marks=pytest.mark.full) for s in ("pillars", "image"))]
)
def test_both_meet_on_the_student_s_cells(sides: tuple[str, str]) -> None:
    made = camera(teacher={"sees": sides[0], "cell": 0.2}, student={"sees": sides[1]})
    batch = made.data("train").collate([made.data("train").sample(i, 0) for i in (0, 1)])
    teacher, student = (smallest(made, role).eval() for role in ("teacher", "student"))
    wanted = ["features", "boxes", "pillars", "depth"]
    with torch.no_grad():
        mine, theirs = made.signals("student", student, batch, wanted), made.signals("teacher", teacher, batch, wanted)
    assert mine.layout("logits").grid == (32, 16)
    for name in ("logits", "features", "boxes", "pillars"):
        assert theirs.layout(name).same_rows(mine.layout(name)) and theirs.rows(name).shape == mine.rows(name).shape
    for said, sees in ((theirs, sides[0]), (mine, sides[1])):
        rows, right = said.rows("depth"), said.rows("depth_labels")
        assert len(rows) == len(right) == (2 * 8 * 16 if sees == "image" else 0)
        assert (torch.equal(said.layout("depth_labels").mask, right >= 0) and right.numel() == 0) or right.max() > 0
    counts = mine.rows("point_count")
    assert (counts > 0).any() if "pillars" in sides else (counts == -1).all()


def test_depth_learns_from_the_scan_and_a_teacher_of_points_is_not_asked() -> None:
    made = camera()
    batch = made.data("train").collate([made.data("train").sample(i, 0) for i in (0, 1)])
    objective = Objective([DEPTH, Term(loss="gaussian_focal")])
    student, teacher = (smallest(made, role) for role in ("student", "teacher"))
    said = made.signals("student", student, batch, objective.features("student"))
    parts = objective(said, None, step=0).parts
    rows, right = said.rows("depth"), said.rows("depth_labels")
    torch.testing.assert_close(parts["ce"].total / parts["ce"].count, F.cross_entropy(rows, right, ignore_index=-1))
    parts = objective(made.signals("teacher", teacher, batch, objective.features("student")), None, step=0).parts
    assert float(parts["ce"].count) == 0 < float(parts["gaussian_focal"].total.detach()) and "ce" in LOSSES


@pytest.mark.parametrize(
    "kind", [BevDistill, *(pytest.param(kind, marks=pytest.mark.full) for kind in (UniDistill, LabelDistill, Distil))]
)
def test_a_scan_s_detector_teaches_a_camera_s_by_every_method(kind: Any) -> None:
    made = camera()
    batch = made.data("train").collate([made.data("train").sample(i, 0) for i in (0, 1)])
    roles = {role: smallest(made, role) for role in ("teacher", "student")}
    roles["teacher"].eval().requires_grad_(False)
    terms = [Term(loss="gaussian_focal"), Term(loss="reg_l1", on="boxes", labels="box_labels"), DEPTH]
    if kind is Distil:
        terms.append(Term(loss="distillbev", on="features", regions="objects"))
    train, objective = Train(steps=1), Objective(terms)
    settings = {} if kind is Distil else {"params": kind.Params()}
    method = kind(made, objective, train, Streams(1), **settings)
    method.check(roles)
    stage = Stage("student", 1, frozenset({"student"}))
    method.begin(stage, roles, batch)
    out = method.loss("student", roles, batch, Context(stage, 0, 0, Streams(1), StepTimer("cpu"), Ranks()))
    assert len(out.parts) > 3 and all(torch.isfinite(part.total).all() for part in out.parts.values())
    taught = [name for name in out.parts if name not in ("gaussian_focal", "reg_l1", "ce")]
    sum(out.parts[name].total for name in taught).backward()  # type: ignore[union-attr]
    lifted = roles["student"].depth[1].weight.grad  # type: ignore[index, union-attr]
    assert lifted is not None and lifted.abs().max() > 0, "what the teacher says reaches the depth"


# Several cameras, and what cannot be


def nuscenes(folder: Path, *names: str) -> DetectionSource:
    content = {
        "sources": "nuscenes", "path": str(folder), "sensor": "nuscenes32", "teacher": {"sees": "pillars"},
        "student": {"sees": "image", "cameras": list(names)}, "detection": {"range": [-25.6, -25.6, 25.6, 25.6]},
        "scenes": {}, "train": {"last": 1}, "dev": {"first": 1, "last": 2}, "test": {"first": 2, "last": 3},
    }  # fmt: skip
    return DetectionSource(detection_data(**IMAGE | content), "train", Streams(1), 1)


def test_several_cameras_of_a_car_are_lifted_to_one_ground(nuscenes_frame: Path) -> None:
    back, both = (nuscenes(nuscenes_frame, *names) for names in (["CAM_BACK"], ["CAM_FRONT", "CAM_BACK"]))
    assert (back.moment(0).points("student")[:, 0] < 0).all()
    assert 0 < len(back.moment(0).boxes) < len(both.moment(0).boxes)
    pictured = both.moment(0).pictured("student")
    assert pictured.rgb.shape == (2, 32, 64, 3) and not np.allclose(pictured.lift[0], pictured.lift[1])
    seen, ground = both.collate([both.clean(0)])["seen"]["student"], both.grounds["student"]
    made = model(depths=(1.0, 21.0, 1.0))
    cell = made.cells(seen["lift"], (32, 64), ground)
    assert made(seen["pictures"], cell, seen["shape"]).heat.shape == (1, 2, 64, 64)
    x = ground.centres()[cell[cell < ground.cells].numpy(), 0]
    assert (x > 5).any() and (x < -5).any(), "both ways"
    with pytest.raises(UserError, match=r"no camera is called 'CAM_TOP' \(there is CAM_FRONT"):
        nuscenes(nuscenes_frame, "CAM_TOP").moment(0)


BOTH = {"teacher": {"sees": "image"}, "student": {"sees": "image", "cameras": ["a"]}}


@pytest.mark.parametrize(("more", "said"), [
    ({"augment": {"crop": 0.5}}, r"augment\.crop is of segmentation: a detector's photographs stay whole"),
    ({"student": {"sees": "image", "cameras": ["a", "a"]}}, "cameras: name each once"),
    ({"teacher": {"sees": "pillars", "cameras": ["a"]}}, "cameras are of an image"),
    (BOTH, "cameras of teacher and student differ"),
    (BOTH | {"task": "segmentation"}, "a segmenter sees the first"),
])  # fmt: skip
def test_what_a_recipe_of_cameras_may_not_say(more: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        detection_data(**IMAGE | more)


def test_what_a_detector_of_photographs_cannot_be() -> None:
    made = camera()
    with pytest.raises(UserError, match=r"'image_unet' labels what it sees, image, and .* needs centerpoint_camera wh"):
        made.build("student", "image_unet", {})
    with pytest.raises(UserError, match=r"'centerpoint_camera' sees image, .* needs centerpoint_pillar where"):
        made.build("teacher", "centerpoint_camera", {})
    with pytest.raises(UserError, match=r"data\.image: \[40, 64\].*set it to multiples of 16"):
        camera(image=[40, 64]).build("student", "centerpoint_camera", {})
    for wrong, word in (({"depths": [5, 2, 1]}, "least, largest, step"), ({"heights": [1, 0]}, "hold nothing")):
        with pytest.raises(ValueError, match=word):
            MODELS["centerpoint_camera"].Config(**wrong)
