"""UniDistill, BEVDistill and DistillBEV against oracles of another hand, and in training steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from detection_small import adapter, run
from oracles import bev as oracle
from points_small import adapter as segmenting
from torch import Tensor, nn

from xmodal_kd.adapter.adapter import Batch
from xmodal_kd.losses import LOSSES
from xmodal_kd.modalities.points.methods import BevDistill, BevDistillParams, UniDistill, UniDistillParams
from xmodal_kd.modalities.points.methods.false_positives import DistillBevFP, DistillBevFPParams, Whose
from xmodal_kd.modalities.points.methods.on_things import as_maps, nine_points, sampled, told_apart
from xmodal_kd.modalities.points.models import CenterPointPillar
from xmodal_kd.modalities.points.tasks.detection import DetectionAdapter
from xmodal_kd.modalities.points.views.ground import Ground
from xmodal_kd.objective.objective import Objective
from xmodal_kd.recipe.recipe import Term, Train
from xmodal_kd.runtime.distributed import Ranks
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.runtime.timing import StepTimer
from xmodal_kd.signals.signals import Layout, Signals
from xmodal_kd.training.method import Context, Roles, Stage

TERMS = [Term(loss="gaussian_focal"), Term(loss="reg_l1", on="boxes", labels="box_labels")]
TRAIN = Train.model_validate({"steps": 4, "optimizer": {"lr": 1e-2}})
STAGE = Stage("student", 4, frozenset({"student"}))
ALL = [(UniDistill, UniDistillParams), (BevDistill, BevDistillParams), (DistillBevFP, DistillBevFPParams)]


def small(made: DetectionAdapter, **sizes: int) -> Roles:
    torch.manual_seed(0)
    widths = {"teacher": 6, "student": 8} | sizes
    roles = {role: made.build(role, "centerpoint_pillar", {"width": width}) for role, width in widths.items()}
    with torch.no_grad():  # untrained heads all say that nothing is there
        for role in roles.values():
            assert isinstance(role, CenterPointPillar)
            last = role.heat[1]
            assert isinstance(last, nn.Conv2d)
            last.weight.mul_(30)
    roles["teacher"].eval().requires_grad_(False)
    return roles


def method(kind: Any, params: Any, made: Any, **more: Any) -> Any:
    return kind(made, Objective(TERMS), TRAIN, Streams(1), params=params(**more))


def batch_of(made: DetectionAdapter, **more: Any) -> Batch:
    source = made.data("train")
    return source.collate([source.sample(i, 0) for i in range(2)]) | more


def context() -> Context:
    return Context(STAGE, 0, 0, Streams(1), StepTimer("cpu"), Ranks())


def said_by(learns: Any, roles: Roles, batch: Batch) -> tuple[Signals, Signals]:
    with torch.no_grad():
        return learns.forward_role("student", roles, batch), learns.forward_role("teacher", roles, batch)


def as_columns(maps: Tensor) -> np.ndarray:
    """Maps whose columns go along x and whose rows go along y, as the oracle reads them."""
    return maps.detach().transpose(2, 3).double().numpy()


def flat(boxes: list[Tensor]) -> list[list[tuple[float, ...]]]:
    """x, y, both sides and the angle."""
    return [[(*box[:2], *box[3:5], box[6]) for box in some.double().numpy()] for some in boxes]


def test_features_are_sampled_where_boxes_are() -> None:
    random = torch.Generator().manual_seed(0)
    ground = Ground((-4.0, -3.0), 0.5, (16, 12))
    maps = torch.randn(2, 3, 16, 12, generator=random)
    boxes = [torch.tensor([[1.3, -1.2, 0, 2.0, 4.0, 1, 0.4], [3.8, 2.6, 0, 3.0, 1.0, 1, -2.0]]), torch.zeros(0, 7)]
    points = [nine_points(some) for some in boxes]
    for box, found in zip(flat(boxes)[0], points[0].numpy(), strict=True):
        np.testing.assert_allclose(found, oracle.nine_points(*box), atol=1e-6)
    got = sampled(maps, points, ground)
    assert got.shape == (2, 9, 3)
    for box, one in zip(flat(boxes)[0], got.numpy(), strict=True):
        expected = oracle.unidistill_sample(as_columns(maps)[0], box, ground.corner, (0.5, 0.5), swap=False)
        np.testing.assert_allclose(one, expected, atol=1e-5)
    square = Ground((-4.0, -4.0), 0.5, (16, 16))
    maps = torch.randn(1, 3, 16, 16, generator=random)
    released = oracle.unidistill_sample(maps[0].numpy(), flat(boxes)[0][0], (-4.0, -4.0), (0.5, 0.5), swap=True)
    np.testing.assert_allclose(sampled(maps, points[:1], square)[0].numpy(), released, atol=1e-5)


def test_unidistill_is_that_of_the_oracle() -> None:
    made = adapter()
    roles, batch = small(made), batch_of(made)
    learns = method(UniDistill, UniDistillParams, made)
    learns.check(roles)
    learns.begin(STAGE, roles, batch)
    parts = learns.loss("student", roles, batch, context()).parts
    student, teacher = said_by(learns, roles, batch)
    ground, boxes = made.ground("student"), flat(batch["boxes"])
    cell = (ground.cell, ground.cell)
    assert sum(map(len, boxes)) > 2
    mine, theirs = as_columns(learns.made["way"](as_maps(student))), as_columns(as_maps(teacher))
    given = (mine, theirs, boxes, ground.corner, cell, False, 0.0)
    heat = student.rows("foreground").numpy().reshape(2, *ground.shape)
    maps = {
        (side, name): rows.double().numpy().reshape(2, *ground.shape, -1).transpose(0, 3, 1, 2)
        for side, said in (("s", student), ("t", teacher))
        for name, rows in (("heat", said.rows("logits")), ("boxes", said.rows("boxes")))
    }
    answers = oracle.unidistill_response(
        *(maps[side, name] for name in ("heat", "boxes") for side in "st"), heat, eps=0.0, student_is_prob=False
    )  # fmt: skip
    expected = {
        "feature": (oracle.unidistill_feature(*given), 10.0), "relation": (oracle.unidistill_relation(*given), 1.0),
        "heat": (answers[0], 10.0), "box": (answers[1], 10.0),
    }  # fmt: skip
    for name, (value, weight) in expected.items():
        assert (parts[name].total / parts[name].count).item() == pytest.approx(value, rel=1e-4), name
        assert parts[name].weight == weight and value > 0


def test_bevdistill_is_that_of_the_oracle() -> None:
    made = adapter()
    roles, batch = small(made), batch_of(made)
    learns = method(BevDistill, BevDistillParams, made, hidden=16)
    learns.check(roles)
    learns.begin(STAGE, roles, batch)
    parts = learns.loss("student", roles, batch, context()).parts
    student, teacher = said_by(learns, roles, batch)
    ground = made.ground("student")
    mine, theirs = as_maps(student), as_maps(teacher)
    heat = student.rows("foreground").reshape(2, *ground.shape).numpy()
    dense = oracle.bevdistill_dense(learns.made["way"](mine).detach().numpy(), theirs.numpy(), heat)
    assert (0.01 * parts["dense"].total / parts["dense"].count).item() == pytest.approx(dense, rel=1e-4)
    rows = []
    for name, maps in (("mine", mine), ("theirs", theirs)):
        at = [
            oracle.bilinear(as_columns(maps)[item], *((np.array(box[:2]) - ground.corner) / ground.cell - 0.5))
            for item, some in enumerate(flat(batch["boxes"]))
            for box in some
        ]
        rows.append(learns.made[name](torch.tensor(np.array(at)).float()).detach().numpy())
    value = (parts["contrast"].weight * parts["contrast"].total / parts["contrast"].count).item()
    assert value == pytest.approx(oracle.bevdistill_infonce(*rows), rel=1e-4)
    at = student.rows("centre").bool()
    sure = teacher.rows("logits")[at].sigmoid().amax(dim=1).numpy()
    pair = [side.rows("boxes")[at].numpy() for side in (student, teacher)]
    box = oracle.bevdistill_box(*pair, sure, power=1)
    assert (0.25 * parts["box"].total / parts["box"].count).item() == pytest.approx(box, rel=1e-4)


def test_things_are_told_apart_from_the_teacher_s_side() -> None:
    random = torch.Generator().manual_seed(0)
    one, other = (torch.randn(5, 4, generator=random, dtype=torch.float64) for _ in range(2))
    value = oracle.bevdistill_infonce(one.numpy(), other.numpy(), T=0.3, weight=1.0)
    assert told_apart(one, other, 0.3).item() / 5 == pytest.approx(value, rel=1e-12)
    assert told_apart(other, one, 0.3).item() / 5 != pytest.approx(value, rel=1e-3)


@pytest.mark.parametrize("shape", [(8, 8), (6, 10)])
def test_distillbev_is_that_of_the_oracle(shape: tuple[int, int]) -> None:
    """Boxes along the cells, whose area is the number of their cells."""
    h, w = shape
    random = torch.Generator().manual_seed(0)
    boxes = [[(2.0, 2.5, 4.0, 3.0, 0.0), (5.0, 5.0, 2.0, 2.0, 0.0)], []]
    inside = [oracle.dbev_inside(some, h, w, (0.5, 0.5), (1, 1)) for some in boxes]
    masks = [oracle.dbev_masks(on, b, (1, 1)) for on, b in zip(inside, boxes, strict=True)]
    regions = torch.zeros(2, h, w, dtype=torch.long)
    for number, on in enumerate(inside[0], 1):
        regions[0][torch.from_numpy(on)] = number
    assert [(regions == k).sum().item() for k in (1, 2)] == [12, 4], "areas in cells"
    student, teacher = (torch.randn(2, 5, h, w, generator=random, dtype=torch.float64) for _ in range(2))
    module = LOSSES["distillbev"].make(5, 5, 2).double()
    fg, scale, behind = (np.stack([mask[k] for mask in masks]) for k in range(3))

    def pooled(rows: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return module.pooled(torch.from_numpy(rows)[None, None])[0, 0].numpy()

    expected = oracle.distillbev(student.numpy(), teacher.numpy(), fg, scale, behind, pool_adapter=pooled)
    rows = [x.permute(0, 2, 3, 1).reshape(-1, 5) for x in (student, teacher)]
    item = torch.arange(2).repeat_interleave(h * w)
    values, counted = module(*rows, item, 2, regions.reshape(-1), torch.arange(2 * h * w), shape)
    assert counted.all() and values.mean().item() == pytest.approx(expected["total"], rel=1e-10)


@pytest.mark.parametrize("scale", ["average", "component"])
@pytest.mark.parametrize("whose", get_args(Whose))
def test_false_positives_are_regions_as_the_oracle_has_them(whose: Any, scale: Any) -> None:
    """The method's parts from signals: features, heat of both, the right heat, things that fill their boxes."""
    h, w, ground = 8, 10, (2, 8, 10)
    random = torch.Generator().manual_seed(1)
    box = (3.0, 3.5, 4.0, 3.0, 0.0)
    inside = oracle.dbev_inside([box], h, w, (0.5, 0.5), (1, 1))
    masks = [oracle.dbev_masks(inside, [box], (1, 1)), oracle.dbev_masks(inside[:0], [], (1, 1))]
    things = torch.stack([torch.from_numpy(inside[0]).long(), torch.zeros(h, w, dtype=torch.long)])
    student, teacher = (torch.randn(2, 5, h, w, generator=random, dtype=torch.float64) for _ in range(2))
    mine, theirs = (1.2 * torch.randn(2, 2, h, w, generator=random, dtype=torch.float64) - 2 for _ in range(2))
    right = torch.rand(2, 2, h, w, generator=random, dtype=torch.float64) ** 8
    learns = method(DistillBevFP, DistillBevFPParams, adapter(), whose=whose, threshold=0.15, right=0.1, scale=scale)
    learns.made.update(learns.learners_beside(5, 5))
    learns.made.double()
    fg, fg_scale, behind = (np.stack([mask[k] for mask in masks]) for k in range(3))
    prob = [x.sigmoid().numpy() for x in (theirs, mine)]
    fp = oracle.distillbev_false_positives(right.numpy(), *prob, fg, whose, 0.15, 0.1)
    assert 0 < fp[0].sum() < fp[0].size and fp[1].sum() > 2

    def pooled(rows: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return learns.made["compared"].pooled(torch.from_numpy(rows)[None, None])[0, 0].numpy()

    expected = oracle.distillbev(
        student.numpy(), teacher.numpy(), fg, fg_scale, behind, pool_adapter=pooled, fp=fp,
        fp_scale=oracle.distillbev_fp_scale(fp, scale), w_fp=4e-2,
    )  # fmt: skip
    layout = Layout.dense("pixel", 2, ground[1:])

    def flat(maps: Tensor) -> Tensor:
        return maps.permute(0, 2, 3, 1).reshape(2 * h * w, -1)

    says, teaches = (
        Signals().add("features", flat(x), layout).add("logits", flat(y), layout)
        for x, y in ((student, mine), (teacher, theirs))
    )
    says.add("foreground", right.amax(dim=1).flatten(), layout).add("objects", things.flatten(), layout)
    parts = learns.parts(says, teaches, [])
    values = {name: part.weight * part.total.item() / part.count for name, part in parts.items()}
    names = {"fg": "foreground", "bg": "background", "fp": "false_positive", "channel": "channel", "spatial": "spatial"}
    assert values == pytest.approx({name: expected[key] for key, name in names.items()}, rel=1e-9)


def test_distillbev_counts_items_that_have_rows() -> None:
    module = LOSSES["distillbev"].make(3, 3, 2)
    rows = torch.randn(4, 3, requires_grad=True)
    values, counted = module(rows, torch.randn(4, 3), torch.ones(4, dtype=torch.long), 2, torch.tensor([0, 1, 1, 0]),
                             torch.arange(4, 8), (2, 2))  # fmt: skip
    assert counted.tolist() == [False, True] and values[0] == 0 and values[1] > 0
    values.sum().backward()
    assert rows.grad is not None and rows.grad.isfinite().all() and module.pooled.weight.grad is not None


@pytest.mark.parametrize(("kind", "params"), ALL)
def test_what_learns_and_what_does_not(kind: Any, params: Any) -> None:
    made = adapter()
    roles, batch, learns = small(made), batch_of(made), method(kind, params, made)
    before = [value.clone() for value in roles["teacher"].state_dict().values()]
    optimizer = learns.begin(STAGE, roles, batch)["student"]
    values = []
    for _ in range(8):
        [(name, out)] = list(learns.losses(batch, roles, context()))
        optimizer.zero_grad()
        out.value().backward()
        optimizer.step()
        values.append(out.value().item())
    assert name == "student" and values[-1] < values[0], values
    assert all(one.grad is not None for one in (*learns.made.parameters(), *roles["student"].parameters()))
    assert all(torch.equal(a, b) for a, b in zip(before, roles["teacher"].state_dict().values(), strict=True))
    hidden = batch_of(made, labelled=torch.tensor([False, False]))
    parts = learns.loss("student", roles, hidden, context()).parts
    own = parts.keys() - {"gaussian_focal", "reg_l1"}
    assert len(own) > 2 and all(float(parts[name].count) == 0 and parts[name].total == 0 for name in own)


def test_one_width_needs_no_convolution() -> None:
    made = adapter()
    roles, learns = small(made, student=6), method(UniDistill, UniDistillParams, made)
    learns.begin(STAGE, roles, batch_of(made))
    assert isinstance(learns.made["way"], nn.Identity)


@pytest.mark.parametrize(("kind", "params"), ALL)
def test_what_it_cannot_train_is_said(kind: Any, params: Any) -> None:
    made = adapter()
    with pytest.raises(UserError, match=f"method {kind.called} compares a student with a teacher, and there is none"):
        method(kind, params, made).check({"student": small(made)["student"]})
    with pytest.raises(UserError, match=r"needs data\.task detection"):
        method(kind, params, segmenting()).check({})
    with pytest.raises(UserError, match=r"is of centerpoint_camera and centerpoint_pillar: set teacher\.mod"):
        method(kind, params, made).check(small(made) | {"teacher": nn.Linear(1, 1)})


@pytest.mark.full
@pytest.mark.parametrize("sets", [
    ["method=unidistill"], ["method={name: bevdistill, params: {hidden: 8}}"],
    ["objective.2={loss: distillbev, on: features, regions: objects}"],
])  # fmt: skip
def test_a_run_of_it(tmp_path: Path, sets: list[str]) -> None:
    assert run(tmp_path / "run", *sets) == 0
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert set(report["roles"]) == {"teacher", "control", "student"}
