"""RDD against somebody else's formulas and the release's values, and a step of it on a network of pixels."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles import rdd_by_another as oracle
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from toy_samples import Adapter, denoiser

from xmodal_kd.losses import LOSSES
from xmodal_kd.modalities.diffusion.methods.progressive import progressive_target
from xmodal_kd.modalities.diffusion.methods.rdd import Rdd, alike, apart, spread
from xmodal_kd.objective.objective import Objective
from xmodal_kd.recipe.recipe import Train
from xmodal_kd.runtime.distributed import Ranks
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.runtime.timing import StepTimer
from xmodal_kd.training.method import Context

SHAPE = (1, 8, 8)


def rows(maps: Tensor) -> Tensor:
    return maps.flatten(2).transpose(1, 2).flatten(0, 1)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_all_terms_are_the_releases(number: int) -> None:
    _, case, released = oracle.cases()[number]
    s, t = (torch.from_numpy(case[name]) for name in ("fs", "ft"))
    student, item = s.requires_grad_(), torch.arange(2).repeat_interleave(6)
    between = LOSSES["cirkd"].fn(rows(student), rows(t), item, 2, temperature=1.0)
    assert between.item() == pytest.approx(released["cross"], rel=1e-10)
    keys = torch.from_numpy(oracle.remembered(case))
    memory = 0.1 * apart(alike(rows(student), keys, 0.1), alike(rows(t), keys, 0.1)).mean()
    assert memory.item() == pytest.approx(released["memory"], rel=1e-10)
    pooled = apart(torch.from_numpy(case["ps"]), torch.from_numpy(case["pt"]) / case["temp"]).mean()
    assert pooled.item() == pytest.approx(released["feature"], rel=1e-10)
    (between + memory).backward()
    step = np.zeros((2, 4, 3, 2))
    step[1, :, 2, 0] = 1e-6
    moved = [
        oracle.cross_sample(case["fs"] + way * step, case["ft"])
        + 0.1 * oracle.memory(case["fs"] + way * step, case["ft"], keys.numpy())
        for way in (1, -1)
    ]
    assert student.grad is not None
    assert student.grad[1, :, 2, 0].sum().item() == pytest.approx((moved[0] - moved[1]) / 2e-6, rel=1e-5)
    assert spread(20000, 4096).tolist() == oracle.sampled_indices().tolist()


def begun(shape: tuple[int, ...], **params: Any) -> tuple[Any, dict[str, nn.Module], dict[str, Tensor], Context]:
    train = Train(steps=4, batch_size=4)
    one = Rdd(Adapter(4, shape=shape), Objective(()), train, Streams(1), params=Rdd.Params(**params))
    roles: dict[str, nn.Module] = {"teacher": denoiser(shape, seed=1, steps=4).eval().requires_grad_(False)}
    roles["student"] = denoiser(shape, seed=2, steps=4)
    draw = torch.Generator().manual_seed(0)
    x, noise = torch.randn(2, 4, *shape, generator=draw)
    batch = {"ids": torch.arange(4), "x": x, "noise": noise, "u": torch.rand(4, generator=draw)}
    one.check(roles)
    stage = one.own_stages()[0]
    one.begin(stage, roles, batch)
    with torch.no_grad():  # which began as a copy of the teacher
        for parameter in roles["student"].parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=draw)
    return one, roles, batch, Context(stage, 1, 0, Streams(1), StepTimer(torch.device("cpu")), Ranks())


@pytest.mark.usefixtures("short_classifier")
def test_a_step() -> None:
    one, roles, batch, ctx = begun(SHAPE, queue=30, compared=8, remembered=5, between=0.7, memory=0.3, pooled=1.1)
    before = one.queue.keys.clone()
    ((name, out),) = one.turns(batch, roles, ctx)
    found = out.value()
    with torch.no_grad():
        z, t, target = progressive_target(roles["teacher"], batch, 2)  # type: ignore[arg-type]
        aim, seen = (one.maps(roles["teacher"], x) for x in (target, roles["student"].predict_x(z, t, None)))
        projected = one.projection(rows(seen)).reshape(4, seen.shape[2], -1).transpose(1, 2)
    s, d, p = (x.double().numpy()[..., None] for x in (seen, aim, projected))
    keys = one.queue.keys[oracle.sampled_indices(30, 8)].double().numpy()
    expected = 0.7 * oracle.cross_sample(s, d) + 0.3 * oracle.memory(p, d, keys)
    expected += 1.1 * oracle.feature_kl(s.mean(axis=(2, 3)), d.mean(axis=(2, 3)))
    assert name == "student" and seen.shape[2] > 1 and found.item() == pytest.approx(expected, rel=1e-4)
    assert (one.queue.keys != before).any(dim=1).sum() == 5
    places = torch.nn.functional.normalize(rows(aim), dim=1)
    assert torch.cdist(one.queue.keys[:5], places).min(dim=1).values.max() < 1e-3  # positions of this batch, whole
    learning = [*roles["student"].parameters(), *one.projection.parameters()]
    assert all(bool(slope.abs().max() > 0) for slope in torch.autograd.grad(found, learning))
    assert set(one.modules()) >= {"projection", "queue"}


@pytest.mark.usefixtures("short_classifier")
def test_a_module_that_is_not_there() -> None:
    with pytest.raises(UserError, match="body"):
        begun(SHAPE, at="boddy.0")
