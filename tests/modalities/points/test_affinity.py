"""MonoDistill against an oracle of another hand and its release's values, and a step of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from detection_small import adapter
from oracles import affinity_by_another as oracle
from torch import Tensor

from xmodal_kd.modalities.points.methods import MonoDistill, MonoDistillParams
from xmodal_kd.modalities.points.methods.affinity import affinities_apart, features_apart
from xmodal_kd.objective.objective import Objective
from xmodal_kd.recipe.recipe import Term, Train
from xmodal_kd.runtime.distributed import Ranks
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.runtime.timing import StepTimer
from xmodal_kd.training.method import Context, Stage

TERMS = [Term(loss="gaussian_focal"), Term(loss="reg_l1", on="boxes", labels="box_labels")]
TRAIN = Train.model_validate({"steps": 4, "optimizer": {"lr": 1e-2}})
STAGE = Stage("student", 4, frozenset({"student"}))


def rows(maps: Tensor) -> Tensor:
    return maps.movedim(1, -1).flatten(0, -2)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_scenes_and_features_are_the_releases(seed: int) -> None:
    student, teacher, boxes = oracle.drawn(seed)
    affinity, feature = oracle.RELEASED[seed]
    assert oracle.affinity_loss(student, teacher) == pytest.approx(affinity, rel=1e-12)
    least, inside = student[-1].shape[2:], 0.0
    for at, (mine, theirs) in enumerate(zip(student, teacher, strict=True)):
        one, other = torch.from_numpy(mine), torch.from_numpy(theirs)
        if one.shape[2:] == least:
            scene = affinities_apart(one, other, max(least)).mean().item()
            assert scene == pytest.approx(2 * oracle.affinity_loss([mine], [theirs]), rel=1e-10)
        mask = torch.from_numpy(oracle.box_mask(2, *mine.shape[2:], boxes, 2 ** (at + 3))).flatten() > 0
        values = features_apart(rows(one), rows(other), mask)
        inside += values.mean().item() / 2 if len(values) else 0.0
    assert inside == pytest.approx(feature, rel=1e-10)


@pytest.mark.parametrize("side", [3, 4, 8])
def test_maps_are_brought_to_a_side(side: int) -> None:
    draw = np.random.default_rng(side)
    mine, theirs = draw.standard_normal((2, 2, 3, 8, 8))
    small = [np.stack([oracle.resize_bilinear(one, side, side) for one in maps]) for maps in (mine, theirs)]
    one, other = torch.from_numpy(mine).requires_grad_(), torch.from_numpy(theirs)
    found = affinities_apart(one, other, side)
    assert found.mean().item() == pytest.approx(2 * oracle.affinity_loss(*([maps] for maps in small)), rel=1e-10)
    assert torch.autograd.gradcheck(lambda x: affinities_apart(x, other, side), one)


def test_a_step() -> None:
    made = adapter()
    torch.manual_seed(0)
    roles: Any = {
        role: made.build(role, "centerpoint_pillar", {"width": width})
        for role, width in (("teacher", 6), ("student", 8))
    }
    roles["teacher"].eval().requires_grad_(False)
    learns = MonoDistill(made, Objective(TERMS), TRAIN, Streams(1), params=MonoDistillParams(side=4))
    source = made.data("train")
    batch = source.collate([source.sample(i, 0) for i in range(2)])
    learns.begin(STAGE, roles, batch)
    with torch.no_grad():
        student, teacher = (learns.forward_role(role, roles, batch) for role in ("student", "teacher"))
        parts = learns.parts(student, teacher, made.known_things(batch)[0])
    near = student.rows("foreground") > 0
    assert near.any() and parts["result"].count == int(near.sum()) and parts["scene"].count == 2
    h, w = student.layout("boxes").grid or (0, 0)
    as_maps = [
        side.rows("boxes").reshape(2, h, w, -1).permute(0, 3, 1, 2).double().numpy() for side in (student, teacher)
    ]
    expected = oracle.head_l1(*as_maps, near.reshape(2, h, w).numpy())
    assert (parts["result"].total / parts["result"].count).item() == pytest.approx(expected, rel=1e-5)
    ((_, out),) = learns.losses(batch, roles, Context(STAGE, 0, 0, Streams(1), StepTimer("cpu"), Ranks()))
    out.value().backward()
    learning = [*roles["student"].parameters(), *learns.made.parameters()]
    assert all(x.grad is not None and x.grad.isfinite().all() for x in learning)
