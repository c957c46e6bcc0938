"""PCM, TCD, CTM, LADD and ADD against oracles of somebody else, who had read papers and releases and not the code.

Where those are more or other than what is trained here, the test that compares says so.
"""

from __future__ import annotations

import copy
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles import trajectories_by_another as oracle
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from toy_samples import Adapter, denoiser

from xmodal_kd.modalities.diffusion.methods.adversarial import Ladd, gradient_penalty
from xmodal_kd.modalities.diffusion.methods.ctm import Ctm, ctm_loss, dsm_loss
from xmodal_kd.modalities.diffusion.methods.discriminator import features_at
from xmodal_kd.modalities.diffusion.methods.intervals import Interval, level
from xmodal_kd.modalities.diffusion.methods.trajectories import Pcm, Tcd, trajectory_loss
from xmodal_kd.modalities.diffusion.models.denoiser import ETA, Denoiser, Sampling, fresh
from xmodal_kd.modalities.diffusion.models.paths import Edm, Flow
from xmodal_kd.modalities.diffusion.models.process import Process
from xmodal_kd.modalities.diffusion.models.solvers import ddim_step
from xmodal_kd.objective.objective import Objective
from xmodal_kd.recipe.recipe import Train
from xmodal_kd.runtime.distributed import Ranks
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.runtime.timing import StepTimer
from xmodal_kd.training.method import Context, Stage

CTX = Context(
    Stage("trajectory-1", 4, frozenset({"student"})), 1, 0, Streams(1), StepTimer(torch.device("cpu")), Ranks()
)
SHAPE, SIZE = (2, 3), 10


def method(kind: Any, **params: Any) -> Any:
    return kind(Adapter(), Objective(()), Train(steps=4, batch_size=6), Streams(1), params=kind.Params(**params))


def made(process: Process, seed: int, **more: Any) -> Denoiser:
    return denoiser(SHAPE, seed=seed, process=process, prediction=process.natural, **more).double()


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batch_of(**more: Any) -> dict[str, Tensor]:
    u = torch.linspace(0, 0.999, SIZE, dtype=torch.float64)
    return {"ids": torch.arange(SIZE), "x": draw(SIZE, *SHAPE, seed=0), "noise": draw(SIZE, *SHAPE, seed=1), "u": u}


def says(model: Denoiser, label: Tensor | None = None) -> oracle.Net:
    """eps of one sample, unguided."""
    alone = copy.copy(model)
    alone.guidance = 1.0

    def eps(z: np.ndarray, t: int) -> np.ndarray:
        rows, times = torch.tensor(z)[None], torch.tensor([t])
        with torch.no_grad():
            x = alone.predict_x(rows, times, label)
        return model.process.convert(x, rows, times, "sample", "epsilon")[0].numpy()

    return eps


# ---------------------------------------------------------------- PCM and TCD


@pytest.mark.parametrize("distance", ["l2", "huber"])
@pytest.mark.parametrize("kind", [Pcm, Tcd])
@pytest.mark.parametrize(
    ("process", "grid"), [(Process.linear(1000), 40), (Process.cosine(64), 16)], ids=["linear", "cosine"]
)
def test_trajectories(process: Process, grid: int, kind: Any, distance: str) -> None:
    """With a guided teacher, and an average as the target, as TCD has it; PCM's release has the student itself.

    Jumps end at the clean sample, while those of the releases end at time 0 of the table: so the oracle's is clean
    there.
    """
    labels = torch.arange(SIZE) % 2
    teacher, student, target = (made(process, seed, classes=3) for seed in (1, 2, 3))
    teacher.null, teacher.guidance = torch.tensor([2]), 3.5
    one, batch = method(kind, steps=4, grid=grid, compare="sample", distance=distance, c=0.1), batch_of()
    roles = {"teacher": teacher, "student": student, "target": target}
    values = one.values(batch | {"labels": labels}, roles, CTX)
    times = torch.stack(one.times(process, batch["u"], CTX), dim=1).clamp(min=0).tolist()
    rising, before = oracle.grid_of(process.T, grid)
    ends = oracle.pcm_ends(process.T, grid, 4)
    table = process.alphas_cumprod.tolist()
    table[0] = 1.0
    for i, (t, after, end) in enumerate(times):
        index = rising.index(t)
        assert after == before[index] and (end == ends[index] if kind is Pcm else end in before[: index + 1])
        label, none = labels[i : i + 1], torch.tensor([2])
        expected = oracle.trajectory(
            batch["x"][i].numpy(), batch["noise"][i].numpy(), (t, after, end), table, says(teacher, label),
            says(student, label), says(target, label), w=2.5, unconditional=says(teacher, none), kind=distance, c=0.1,
            tcd=kind is Tcd,
        )  # fmt: skip
        assert values[i].item() == pytest.approx(expected.loss, rel=1e-8, abs=1e-13)


@pytest.mark.parametrize("phases", [1, 4, 8])
@pytest.mark.parametrize("tcd", [False, True])
def test_trajectories_of_the_releases_times(phases: int, tcd: bool) -> None:
    """Stable Diffusion's table and 50 times, of which eight phases are not equally long; jumps end at time 0."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    process = Process.from_betas(betas)
    table = process.alphas_cumprod.tolist()
    teacher, student, target = (made(process, seed) for seed in (1, 2, 3))
    rising, before = oracle.grid_of(1000, 50)
    x, noise, index = draw(50, *SHAPE, seed=4), draw(50, *SHAPE, seed=5), torch.arange(50)
    ends = torch.tensor(oracle.pcm_ends(1000, 50, phases))
    if tcd:
        ends = torch.tensor(before)[(index * torch.linspace(0, 1, 50)).long()]
    t, after = torch.tensor(rising), torch.tensor(before)
    with torch.no_grad():
        z = process.add_noise(x, noise, t)
        first = teacher.predict_x(z, t)
        second = target.predict_x(ddim_step(process, z, first, t, after), after)
        found = trajectory_loss(process, student.predict_x(z, t), first, second, (t, after, ends), "sample", "huber")
    for i in range(50):
        expected = oracle.trajectory(
            x[i].numpy(), noise[i].numpy(), (rising[i], before[i], int(ends[i])), table, says(teacher), says(student),
            says(target), kind="huber", tcd=tcd,
        )  # fmt: skip
        assert found[i].item() == pytest.approx(expected.loss, rel=1e-7, abs=1e-13)


def test_the_sampler_of_tcd() -> None:
    process = Process.linear(1000)
    student = made(process, 1)
    how = Sampling("tcd", 4, 40)
    z = noise = draw(3, *SHAPE, seed=2)
    found = student.sample(noise, sampling=how, generator=torch.Generator().manual_seed(3))
    generator, times = torch.Generator().manual_seed(3), [*how.times(process)[:-1], 0]
    for k in range(4):
        added = fresh(z, generator) if k < 3 else None
        z = torch.stack([
            torch.from_numpy(oracle.strategic_step(
                z[i].numpy(), says(student)(z[i].numpy(), times[k]), times[k], times[k + 1],
                process.alphas_cumprod.tolist(), ETA, None if added is None else added[i].numpy(),
            )) for i in range(3)
        ])  # fmt: skip
    torch.testing.assert_close(found, z, rtol=1e-9, atol=1e-9)


# ---------------------------------------------------------------- CTM


def test_the_grid_of_edm() -> None:
    np.testing.assert_allclose(Edm(steps=18).sigma(torch.arange(17, -1, -1)), oracle.karras_sigmas(18), rtol=1e-12)


def ctm(**params: Any) -> tuple[Ctm, Denoiser, Denoiser]:
    process = Edm(steps=64)
    one, teacher, student = method(Ctm, at="net.body", **params), made(process, 1), made(process, 2)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        one.interval = Interval(12, 1 / one.params.steps).double()
        one.interval.read[2].weight.data.normal_()  # type: ignore[union-attr,operator,index]
    return one, teacher, student


def seen_by(process: Process, call: Any) -> Any:
    """As the oracles call what knows times: by sigmas of the table, 0 among them."""
    times = {float(process.sigma(t)): t for t in range(-1, process.T)}

    def seen(z: np.ndarray, *sigmas: float) -> np.ndarray:
        with torch.no_grad():
            return call(torch.tensor(z)[None], *(torch.tensor([times[s]]) for s in sigmas))[0].numpy()

    return seen


@pytest.mark.parametrize("solver", ["ddim", "heun"])
def test_ctm(solver: str) -> None:
    """One network in all places, as in the paper's eq. 9; the release has the average's in the outer ones.

    Heun's steps differ from the release's where they start at the highest sigma: here as in `solvers`, which leaves the
    last timestep without a correction in every process.
    """
    one, teacher, student = ctm(grid=16, most=4, dsm=0.0, solver=solver)
    process, batch = student.process, batch_of()
    values = one.values(batch, {"teacher": teacher, "student": student}, CTX)
    _, _, (t, u, s) = one.ways(teacher, batch, CTX)
    g = seen_by(process, lambda z, t, s: one.seen(student, z, t, s, None))
    grid, high = list(process.grid(16)), float(process.sigma(process.T - 1))
    top = 0

    def step(sees: Any, x: np.ndarray, a: float, b: float) -> np.ndarray:
        return (oracle.euler if solver == "ddim" or a == high else oracle.heun)(sees, x, a, b)

    for i in range(SIZE):
        passed = grid[grid.index(int(t[i])) : grid.index(int(u[i])) + 1]
        sigmas, end = [float(process.sigma(k)) for k in passed], float(process.sigma(s[i]))
        told = batch["x"][i].numpy(), batch["noise"][i].numpy(), sigmas, end, g, g, seen_by(process, teacher.predict_x)
        expected = oracle.ctm_loss(*told, step)
        assert values[i].item() == pytest.approx(expected, rel=1e-8, abs=1e-13)
        if solver == "heun" and sigmas[0] == high and len(sigmas) > 1:
            top += 1
            assert abs(oracle.ctm_loss(*told) - expected) > 1e-6 * expected, "corrected at 80 it is another"
    assert top or solver == "ddim"


def test_ctm_with_weights_of_its_own_in_each_place() -> None:
    """What the method calls: the inner jump of the target as the outer ones."""
    process = Edm(steps=64)
    one, other, teacher = made(process, 1), made(process, 2), made(process, 3)
    x, noise = draw(5, *SHAPE, seed=4), draw(5, *SHAPE, seed=5)
    t, u, s = (torch.tensor(k) for k in ([63, 40, 40, 20, 8], [50, 39, 30, 9, 0], [12, 39, 0, -1, 0]))
    z = process.add_noise(x, noise, t)
    with torch.no_grad():
        reached = ddim_step(process, z, teacher.predict_x(z, t), t, u)
        jumps = [lambda z, t, s, m=m: m.predict_x(z, t) * (1 + (t - s)[:, None, None] / 64) for m in (one, other)]
        found = ctm_loss(process, *jumps, z, reached, (t, u, s))
    g, rests = (seen_by(process, jump) for jump in jumps)
    for i in range(5):
        sigmas = [float(process.sigma(k[i])) for k in (t, u)]
        expected = oracle.ctm_loss(
            x[i].numpy(), noise[i].numpy(), sigmas, float(process.sigma(s[i])), g, rests,
            seen_by(process, teacher.predict_x), oracle.euler,
        )  # fmt: skip
        assert found[i].item() == pytest.approx(expected, rel=1e-8, abs=1e-13)


def test_denoising_beside_ctm() -> None:
    one, _, student = ctm(grid=16)
    x, noise, t = draw(4, *SHAPE, seed=2), draw(4, *SHAPE, seed=3), torch.tensor([0, 9, 40, 63])
    process = student.process
    with torch.no_grad():
        found = dsm_loss(process, one.seen(student, process.add_noise(x, noise, t), t, t, None), x, noise, t)
    g = seen_by(process, lambda z, t, s: one.seen(student, z, t, s, None))
    for i in range(4):
        expected = oracle.ctm_dsm_loss(x[i].numpy(), noise[i].numpy(), float(process.sigma(t[i])), g)
        assert found[i].item() == pytest.approx(expected, rel=1e-8)


# ---------------------------------------------------------------- LADD and ADD


@pytest.mark.parametrize("process", [Process.cosine(64), Edm(steps=64), Flow(steps=64)], ids=["vp", "edm", "flow"])
def test_ladd(process: Process) -> None:
    """A mean over the heads here, where ADD sums: values times their number; both sides are seen at one level."""
    one = method(Ladd, at=("net.body", "net.h*"))
    teacher, student = made(process, 1).eval().requires_grad_(False), made(process, 2)
    student.sampling = teacher.sampling = Sampling("ddim", 4)
    roles: dict[str, nn.Module] = {"teacher": teacher, "student": student}
    batch = {key: value[:4] for key, value in batch_of().items()}
    one.begin(one.own_stages()[0], roles, batch)
    with torch.no_grad():
        for head in one.head:
            head.out.weight.mul_(20)
    x, fake = draw(4, *SHAPE, seed=5), one.asked(teacher)
    critic = one.critic_loss(teacher, fake, x, batch, CTX, 1).parts["discriminator"].total.item()
    judged = one.student_loss(teacher, fake, x, batch, CTX).parts["ladd"].total.item()
    expected = [0.0, 0.0]
    for k, (turn, other) in enumerate([("judged", 1), (1, 1)]):
        (noise, u), real = one.noisy(batch, CTX, turn), one.normal(batch, CTX, "real", other)
        for i in range(4):
            t = one.times_of(process, u[i : i + 1])
            at = {"vp": process.alpha(t) ** 2, "edm": process.sigma(t), "flow": level(process, t)}[process.kind]

            def features(z: np.ndarray, t: Tensor = t) -> list[np.ndarray]:
                return [
                    f[0].numpy() for f in features_at(fake, ["net.body", "net.head"], torch.tensor(z)[None], t, None)
                ]

            heads = [lambda f, head=head: float(head(torch.tensor(f)[None]).detach()) for head in one.head]
            noises = noise[i].numpy(), real[i].numpy()
            args = x[i].numpy(), batch["x"][i].numpy(), noises, float(at), process.kind, features, heads
            expected[k] += oracle.ladd_losses(*args)[k] / len(heads)
    assert (judged, critic) == pytest.approx(tuple(expected), rel=1e-7)
    assert critic > 1e-3, "not all beyond the hinge"


def test_the_gradient_penalty_of_heads() -> None:
    """Of heads whose gradient is known: sum tanh(A f)."""
    features = [draw(3, 4, seed=1).requires_grad_(), draw(3, 5, seed=2).requires_grad_()]
    maps = [draw(2, 4, seed=3), draw(6, 5, seed=4)]
    logits = torch.stack([torch.tanh(f @ a.T).sum(dim=1) for a, f in zip(maps, features, strict=True)])
    found = gradient_penalty(logits, features)
    for i in range(3):
        rows = [f[i].detach().numpy() for f in features]
        slopes = [a.numpy().T @ (1 - np.tanh(a.numpy() @ f) ** 2) for a, f in zip(maps, rows, strict=True)]
        assert 2 * found[i].item() == pytest.approx(oracle.r1_penalty(slopes), rel=1e-9)


def test_the_distance_of_add() -> None:
    """A mean over values here, where ADD's is a sum."""
    process, one = Process.cosine(64), method(Ladd)
    teacher, t = made(process, 1).requires_grad_(False), torch.tensor([0, 9, 40, 60])
    x, noise = draw(4, *SHAPE, seed=2).requires_grad_(), draw(4, *SHAPE, seed=3)
    found = one.distilled(teacher, x, None, noise, (t + 0.5) / 64)
    (slope,) = torch.autograd.grad(found.sum(), x)
    for i in range(4):
        args = x[i].detach().numpy(), noise[i].numpy(), int(t[i]), process.alphas_cumprod.tolist(), says(teacher)
        value, gradient = oracle.add_distillation(*args)
        assert math.prod(SHAPE) * found[i].item() == pytest.approx(value, rel=1e-8)
        np.testing.assert_allclose(math.prod(SHAPE) * slope[i].numpy(), gradient, rtol=1e-7)
