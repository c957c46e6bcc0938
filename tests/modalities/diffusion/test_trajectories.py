"""Phased and trajectory consistency and CTM: values against the oracle, edges, grids, and saved students."""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles import trajectories as oracle
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from toy_samples import Adapter, denoiser

from xmodal_kd.modalities.diffusion.export.pipeline import load_denoiser, save_pipeline
from xmodal_kd.modalities.diffusion.export.reload_gate import reload_gate
from xmodal_kd.modalities.diffusion.methods.ctm import Ctm, ctm_loss, dsm_loss
from xmodal_kd.modalities.diffusion.methods.intervals import Interval
from xmodal_kd.modalities.diffusion.methods.trajectories import Pcm, Tcd, trajectory_loss
from xmodal_kd.modalities.diffusion.models.denoiser import Denoiser, Sampling
from xmodal_kd.modalities.diffusion.models.networks import UNetConfig, build_unet
from xmodal_kd.modalities.diffusion.models.paths import Edm, Flow
from xmodal_kd.modalities.diffusion.models.process import Process
from xmodal_kd.objective.objective import Objective
from xmodal_kd.recipe.recipe import Train
from xmodal_kd.runtime.distributed import Ranks
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.runtime.timing import StepTimer
from xmodal_kd.training.method import Context, Stage

PROCESSES = [Process.cosine(64), Edm(steps=64), Flow(steps=64)]
EVERY = pytest.mark.parametrize("process", PROCESSES, ids=["vp", "edm", "flow"])
CTX = Context(
    Stage("trajectory-1", 4, frozenset({"student"})), 1, 0, Streams(1), StepTimer(torch.device("cpu")), Ranks()
)
SHAPE = (2, 3)


def method(kind: Any, **params: Any) -> Any:
    return kind(Adapter(), Objective(()), Train(steps=4, batch_size=6), Streams(1), params=kind.Params(**params))


def made(process: Process, seed: int) -> Denoiser:
    return denoiser(SHAPE, seed=seed, process=process, prediction=process.natural).double()


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batch_of(size: int = 9) -> dict[str, Tensor]:
    u = torch.linspace(0, 0.999, size, dtype=torch.float64)
    return {"ids": torch.arange(size), "x": draw(size, *SHAPE, seed=0), "noise": draw(size, *SHAPE, seed=1), "u": u}


def level(process: Process, t: Tensor | int) -> oracle.Level:
    return float(process.alpha(t)), float(process.sigma(t))


def sees(model: Denoiser) -> oracle.Sees:
    """As the oracle calls it; the level tells the time."""
    levels = [level(model.process, t) for t in range(model.process.T)]

    def x(z: np.ndarray, at: oracle.Level) -> np.ndarray:
        with torch.no_grad():
            return model.predict_x(torch.tensor(z)[None], torch.tensor([levels.index(at)]))[0].numpy()

    return x


@EVERY
@pytest.mark.parametrize("kind", [Pcm, Tcd])
@pytest.mark.parametrize("distance", ["l2", "huber"])
def test_trajectories_are_the_oracle_s(process: Process, kind: Any, distance: str) -> None:
    teacher, student, target = (made(process, seed) for seed in (1, 2, 3))
    one, batch = method(kind, steps=4, grid=16, compare="sample", distance=distance, c=0.1), batch_of()
    values = one.values(batch, {"teacher": teacher, "student": student, "target": target}, CTX)
    t, after, end = one.times(process, batch["u"], CTX)
    assert bool((end <= after).all() and (after < t).all()) and {int(e) for e in end} - {-1}
    for i in range(9):
        z = process.add_noise(batch["x"][i], batch["noise"][i], t[i]).numpy()
        at = [level(process, k[i]) for k in (t, after, end)]
        expected = oracle.trajectory_loss(sees(student), sees(target), sees(teacher), z, *at, distance, 0.1)
        assert values[i].item() == pytest.approx(expected, rel=1e-6, abs=1e-12)


@EVERY
def test_by_networks_it_is_what_one_says_that_arrives_there(process: Process) -> None:
    """Linear in x, so that the points' distance is that of the outputs times a factor of the times."""
    said, first, second, z = (draw(5, *SHAPE, seed=i) for i in range(4))
    t, after, end = torch.tensor([63, 40, 20, 9, 5]), torch.tensor([50, 39, 8, -1, 4]), torch.tensor([-1, 39, 4, -1, 0])
    found = trajectory_loss(process, said, first, second, (t, after, end), "network")
    points = trajectory_loss(process, said, first, second, (t, after, end), "sample")
    natural = process.natural
    for i in range(5):
        at, there, to = (level(process, k[i]) for k in (t, after, end))
        x = second[i].numpy() if there[1] > 0 else first[i].numpy()
        moved = oracle.jump(z[i].numpy(), first[i].numpy(), at, there)
        arrived = moved if there == to or there[1] == 0 else oracle.jump(moved, x, there, to)
        size = to[0] - to[1] * at[0] / at[1]
        must = torch.tensor((arrived - to[1] / at[1] * z[i].numpy()) / size)
        outs = [process.convert(v[None], z[i : i + 1], t[i : i + 1], "sample", natural) for v in (said[i], must)]
        assert found[i].item() == pytest.approx(float((outs[0] - outs[1]).square().mean()), rel=1e-6)
        assert points[i].item() == pytest.approx(size**2 * float((said[i] - must).square().mean()), rel=1e-6)


def test_phases_end_where_the_sampler_s_steps_begin() -> None:
    for process in PROCESSES:
        for steps in (1, 2, 4):
            one = method(Pcm, steps=steps, grid=16)
            t, _, end = one.times(process, (torch.arange(16) + 0.5) / 16, CTX)
            edges = process.grid(steps)
            assert {int(e) for e in end} == set(edges[1:])
            assert [int(e) for e in end] == [max(e for e in edges if e < k) for k in t.tolist()]
            grid = process.grid(16)[::-1]
            assert [int(e) for e in end] == [grid[oracle.edge(i, 16, steps)] for i in range(16)]
    assert method(Pcm, steps=4).grid(Process.linear(1000)) == 40 and method(Pcm, steps=2).grid(Flow()) == 64


def test_trajectories_end_anywhere_below() -> None:
    one = method(Tcd, grid=8)
    t, after, end = one.times(PROCESSES[0], torch.rand(2000, generator=torch.Generator().manual_seed(1)), CTX)
    grid = PROCESSES[0].grid(8)[::-1]
    for i in range(8):
        ends = end[t == grid[i + 1]]
        assert set(ends.tolist()) == set(grid[: i + 1]) and bool((after[t == grid[i + 1]] == grid[i]).all())


def test_jumps_stay_within_their_segment() -> None:
    """A stage each, and from one segment on as PCM's phases are long."""
    one, u = method(Tcd, grid=8, segments=[4, 1]), torch.rand(500, generator=torch.Generator().manual_seed(1))
    stages = one.own_stages()
    assert [stage.name for stage in stages] == ["trajectory-4", "trajectory-1"]
    grid = list(PROCESSES[0].grid(8)[::-1])
    t, _, end = one.times(PROCESSES[0], u, dataclasses.replace(CTX, stage=stages[0]))
    for i in range(8):
        assert set(end[t == grid[i + 1]].tolist()) == set(grid[oracle.edge(i, 8, 4) : i + 1])
    with pytest.raises(ValueError, match="falling numbers from 1 on are expected"):
        method(Tcd, segments=[1, 2])


def test_how_students_are_sampled() -> None:
    vp, edm, flow = PROCESSES
    tcd, pcm = method(Tcd, steps=4, grid=16), method(Pcm, steps=4, grid=16)
    assert tcd.sampling(vp) == Sampling("tcd", 4, 16)
    assert {tcd.sampling(p) for p in (edm, flow)} == {Sampling("ddim", 4)} == {pcm.sampling(p) for p in PROCESSES}
    assert method(Tcd, steps=4, grid=16, sampler="ddim").sampling(vp) == Sampling("ddim", 4)


# ---------------------------------------------------------------- CTM


def told(model: Denoiser, interval: nn.Module, one: Ctm) -> oracle.Jumps:
    levels = {level(model.process, t): t for t in range(-1, model.process.T)}

    def g(z: np.ndarray, at: oracle.Level, to: oracle.Level) -> np.ndarray:
        t, s = (torch.tensor([levels[k]]) for k in (at, to))
        with torch.no_grad():
            return one.seen(model, torch.tensor(z)[None], t, s, None)[0].numpy()

    return g


def ctm(process: Process, **params: Any) -> tuple[Ctm, Denoiser, Denoiser]:
    one, teacher, student = method(Ctm, at="net.body", **params), made(process, 1), made(process, 2)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        one.interval = Interval(12, 1 / one.params.steps).double()
        one.interval.read[2].weight.data.normal_()  # type: ignore[union-attr,operator,index]
    return one, teacher, student


@EVERY
@pytest.mark.parametrize("steps", [1, 2])
def test_ctm_is_the_oracle_s(process: Process, steps: int) -> None:
    one, teacher, student = ctm(process, steps=steps, grid=8, most=3, dsm=0.0)
    batch, roles = batch_of(), {"teacher": teacher, "student": student}
    values = one.values(batch, roles, CTX)
    z, _, (t, u, s) = one.ways(teacher, batch, CTX)
    grid = list(process.grid(8))
    for i in range(9):
        passed = grid[grid.index(int(t[i])) : grid.index(int(u[i])) + 1]
        assert s[i] <= u[i] < t[i] and 1 < len(passed) <= 4
        levels, end = [level(process, k) for k in passed], level(process, s[i])
        expected = oracle.ctm_loss(told(student, one.interval, one), sees(teacher), z[i].numpy(), levels, end)
        assert values[i].item() == pytest.approx(expected, rel=1e-6, abs=1e-12)


@EVERY
def test_the_gradient_of_ctm_is_that_of_the_inner_jump_alone(process: Process) -> None:
    """Through the outer one, whose weights rest: what a copy that does not learn gives there."""
    one, teacher, student = ctm(process, grid=8, most=3, dsm=0.0)
    batch = batch_of()
    one.values(batch, {"teacher": teacher, "student": student}, CTX).sum().backward()
    found = [p.grad.clone() for p in [*student.parameters(), *one.interval.parameters()] if p.grad is not None]
    assert len(found) == len([*student.parameters(), *one.interval.parameters()])
    other, _, rests = ctm(process, grid=8, most=3, dsm=0.0)
    student.zero_grad()
    one.interval.zero_grad()
    z, reached, times = one.ways(teacher, batch, CTX)
    loss = ctm_loss(
        process, lambda z, t, s: one.seen(student, z, t, s, None), lambda z, t, s: other.seen(rests, z, t, s, None),
        z, reached, times,
    )  # fmt: skip
    loss.sum().backward()
    again = [p.grad for p in [*student.parameters(), *one.interval.parameters()]]
    for a, b in zip(found, again, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@EVERY
def test_denoising_score_matching_has_karras_weights(process: Process) -> None:
    seen, x, noise, t = draw(4, 3, seed=1), draw(4, 3, seed=2), draw(4, 3, seed=3), torch.tensor([0, 9, 40, 63])
    found = dsm_loss(process, seen, x, noise, t)
    for i in range(4):
        sigma = float(process.sigma(t[i]))
        weight = 1 / sigma**2 + (1 / 0.5**2 if process.kind == "edm" else 0)
        assert found[i].item() == pytest.approx(
            oracle.dsm_loss(seen[i].numpy(), x[i].numpy(), level(process, t[i]), weight), rel=1e-6
        )


# ---------------------------------------------------------------- students


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("process", "kind"),
    [(Process.cosine(64), Tcd), (Edm(), Tcd), *(pytest.param(Flow(), k, marks=pytest.mark.full) for k in (Tcd, Pcm))],
)
def test_students_pass_the_reload_gate(process: Process, kind: Any, tmp_path: Path) -> None:
    """With TCDScheduler where there is one, by Euler's steps else."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = build_unet(UNetConfig(channels=(8, 16)), (1, 8, 8), None)
    how = method(kind, steps=4, grid=16).sampling(process)
    student = Denoiser(net, process, process.natural, (1, 8, 8), sampling=how).eval()
    folder = save_pipeline(student, tmp_path / "student", {})
    assert reload_gate(folder, student, samples=2) < 1e-4
    assert load_denoiser(folder, quiet=True).sampling == how


@pytest.mark.parametrize(
    ("kind", "params", "told"),
    [
        (Pcm, {"steps": 3}, "method.params.steps: 3 phases are not equally long on a grid that divides 64 timesteps"),
        (Pcm, {"steps": 4, "grid": 2}, "method.params.steps: 4 phases are not equally long on method.params.grid: 2"),
        (Tcd, {"grid": 7}, "method.params.grid: 7 does not divide the teacher's 64 timesteps: take 8"),
        (Tcd, {"grid": 8, "segments": [3, 1]}, "method.params.segments: 3 does not divide the grid of 8 times"),
        (Ctm, {"grid": 12, "at": "net.body"}, "method.params.grid: 12 must divide the teacher's 64 timesteps"),
        (Ctm, {"grid": 2, "steps": 4, "at": "net.body"}, "a multiple of method.params.steps (4): take 4"),
    ],
)
def test_what_cannot_be_is_refused(kind: Any, params: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=re.escape(told)):
        method(kind, **params).check({"teacher": made(PROCESSES[0], 1), "student": made(PROCESSES[0], 2)})
