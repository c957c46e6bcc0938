"""Mean velocities: targets against the oracles, derivatives against each other, and students of one length of step."""

from __future__ import annotations

import re
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles import few_step as oracle
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from toy_samples import Adapter, denoiser

from xmodal_kd.modalities.diffusion.export.pipeline import load_denoiser, save_pipeline
from xmodal_kd.modalities.diffusion.export.reload_gate import reload_gate
from xmodal_kd.modalities.diffusion.methods import mean_velocity as methods
from xmodal_kd.modalities.diffusion.methods.intervals import (
    Interval,
    level,
    mean_velocity,
    straight,
    time_at,
)  # fmt: skip
from xmodal_kd.modalities.diffusion.models.denoiser import Denoiser, Sampling
from xmodal_kd.modalities.diffusion.models.networks import UNetConfig, build_unet
from xmodal_kd.modalities.diffusion.models.paths import Edm, Flow
from xmodal_kd.modalities.diffusion.models.process import Process
from xmodal_kd.modalities.diffusion.models.solvers import ddim_step
from xmodal_kd.objective.objective import Objective
from xmodal_kd.recipe.recipe import Train
from xmodal_kd.runtime.distributed import Ranks
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.runtime.timing import StepTimer
from xmodal_kd.training.method import Context, Stage

SMOOTH = [float(np.cos(0.49 * np.pi * (t + 1) / 64) ** 2) for t in range(64)]
PROCESSES = [Process(SMOOTH), Edm(steps=64), Flow(steps=64)]
EVERY = pytest.mark.parametrize("process", PROCESSES, ids=["vp", "edm", "flow"])
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning:diffusers"
)
CTX = Context(Stage("intervals", 8, frozenset({"student"})), 1, 0, Streams(1), StepTimer(torch.device("cpu")), Ranks())


def method(kind: Any, **params: Any) -> Any:
    params = {"at": "net.body", **params}
    return kind(Adapter(), Objective(()), Train(steps=8, batch_size=6), Streams(1), params=kind.Params(**params))


def made(process: Process, seed: int) -> Denoiser:
    return denoiser((2, 3), seed=seed, process=process, prediction=process.natural).double()


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def begun(kind: Any, process: Process, **params: Any) -> tuple[Any, dict[str, nn.Module], dict[str, Tensor]]:
    """A method whose interval adds something, its roles and a batch."""
    one = method(kind, **params)
    roles: dict[str, nn.Module] = {"teacher": made(process, 1), "student": made(process, 1)}
    batch = {"x": draw(6, 2, 3, seed=0), "noise": draw(6, 2, 3, seed=1), "u": torch.linspace(0.05, 0.95, 6).double()}
    one.check(roles)
    one.begin(one.stages()[0], roles, batch)
    roles["student"].load_state_dict(made(process, 2).state_dict())
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(5)
        one.interval.read[2].weight.normal_(std=0.3)
    return one, roles, batch


def numpy(one: Any, student: Denoiser) -> oracle.Mean:
    """u(y, s, r) as the oracle calls it."""

    def said(y: np.ndarray, s: float, r: float) -> np.ndarray:
        t, to = (time_at(student.process, torch.tensor([at], dtype=torch.float64)) for at in (s, r))
        with torch.no_grad():
            return one.said(student, torch.tensor(y)[None], t, to, None)[0].numpy()

    return said


@EVERY
def test_a_step_of_the_mean_velocity_is_ddim_s(process: Process) -> None:
    """Which is why a student is saved with schedulers that know nothing of mean velocities."""
    model, x, noise = made(process, 1), draw(5, 2, 3, seed=0), draw(5, 2, 3, seed=1)
    t, after = torch.tensor([63, 40, 20, 9, 3]), torch.tensor([31, 20, -1, 8, -1])
    y = straight(process, {"x": x, "noise": noise}, t)
    s, to = (level(process, at).reshape(-1, 1, 1) for at in (t, after))
    moved = y - (s - to) * mean_velocity(model, y, t, None)
    z = process.add_noise(x, noise, t)
    landed = ddim_step(process, z, model.predict_x(z, t), t, after)
    alpha, sigma = process.pair(after, z)
    torch.testing.assert_close(moved, landed / (alpha + sigma), rtol=1e-8, atol=1e-9)


@EVERY
def test_meanflow_is_the_oracle_s(process: Process) -> None:
    one, roles, batch = begun(methods.MeanFlow, process, derivative="jvp", power=0.7, constant=0.05, own=0.0)
    teacher, student = roles["teacher"], roles["student"]
    values = one.values(batch, roles, CTX)
    t, r = one.times(process, batch["u"], CTX)
    assert bool((r <= t).all() and (r < t).any())
    y = straight(process, batch, t)
    v = mean_velocity(teacher, y, t, None).detach()
    u = numpy(one, student)
    for i in range(6):
        s, to = float(level(process, t)[i]), float(level(process, r)[i])
        target = oracle.meanflow_target(u, v[i].numpy(), y[i].numpy(), s, to, step=2e-5)
        expected = oracle.meanflow_loss(u(y[i].numpy(), s, to), target, 0.7, 0.05)
        assert values[i].item() == pytest.approx(expected, rel=2e-3), i


@EVERY
def test_the_derivative_is_that_of_differences(process: Process) -> None:
    """Exact, and by the key's differences where they are small: as the oracle has them."""
    exact, roles, batch = begun(methods.MeanFlow, process, derivative="jvp", own=0.0)
    near = method(methods.MeanFlow, difference=1e-5)
    near.interval, student = exact.interval, roles["student"]
    assert isinstance(student, Denoiser)
    t, r = torch.linspace(20.3, 50.3, 6).double(), torch.linspace(3.2, 19.7, 6).double()
    y = straight(process, batch, t)
    v = mean_velocity(roles["teacher"], y, t, None).detach()  # type: ignore[arg-type]
    with torch.no_grad():
        slopes = [one(student, y, v, t, r, None, CTX) for one in (exact.exact, near.differences)]
    assert float(slopes[0].abs().max()) > 1e-3
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-3, atol=1e-4)


@EVERY
def test_shortcut_is_the_oracle_s(process: Process) -> None:
    one, roles, batch = begun(methods.Shortcut, process, finest=16)
    teacher, student = roles["teacher"], roles["student"]
    assert isinstance(teacher, Denoiser) and isinstance(student, Denoiser)
    batch = {k: torch.cat([v, v, v]) for k, v in batch.items()}
    values = one.values(batch, roles, CTX)
    t, length, shortest = one.times(process, batch["u"], CTX)
    assert bool(shortest.any()) and set((64 / length[~shortest]).tolist()) <= {1, 2, 4, 8} and float(length.min()) == 4
    y = straight(process, batch, t)
    v, u = mean_velocity(teacher, y, t, None).detach(), numpy(one, student)
    for i in range(18):
        times = torch.stack([t[i], t[i] - length[i] / 2, t[i] - length[i]])
        s, middle, end = level(process, times).tolist()
        place = y[i].numpy()
        target = v[i].numpy() if shortest[i] else oracle.shortcut_target(u, place, s, middle, end)
        assert values[i].item() == pytest.approx(float(np.mean((u(place, s, end) - target) ** 2)), rel=1e-5), i


def test_times_of_meanflow_are_as_the_recipe_has_them() -> None:
    process, u = Flow(steps=64), torch.linspace(0.0005, 0.9995, 4000).double()
    plain = method(methods.MeanFlow, own=0.0, instant=0.5)
    t, r = plain.times(process, u, CTX)
    assert float(t.min()) >= 0 and float(t.max()) <= 63 and 0.4 < float((t == r).double().mean()) < 0.6
    t, r = method(methods.MeanFlow, own=1.0, steps=4).times(process, u, CTX)
    assert sorted(set(zip(t.tolist(), r.tolist(), strict=True))) == [(15, -1), (31, 15), (47, 31), (63, 47)]
    drawn = method(methods.MeanFlow, own=0.0, instant=0.0, times="lognormal").times(process, u, CTX)
    logits = torch.logit(level(process, torch.cat(drawn)).clamp(1e-4, 1 - 1e-4))
    assert float(logits.mean()) == pytest.approx(-0.4, abs=0.1) and float(logits.std()) == pytest.approx(1, abs=0.1)


@EVERY
def test_the_network_is_the_student_of_its_own_steps_and_folds_into_others(process: Process) -> None:
    """Without the interval beside it, by the sampler that is saved."""
    one, roles, batch = begun(methods.Shortcut, process, steps=2, finest=16)
    student, noise = roles["student"], batch["noise"]
    assert isinstance(student, Denoiser) and student.sampling == Sampling("ddim", 2)
    for steps in (1, 2, 4):
        plain = one.of_steps(student, steps)
        times = torch.tensor(process.grid(steps))
        alpha, sigma = process.pair(times[:1], noise)
        y = process.start * noise / (alpha + sigma)
        for t, after in pairwise(times):
            at, to = (time.expand(6).double() for time in (t, after))
            s, end = (level(process, time).reshape(-1, 1, 1) for time in (at, to))
            with torch.no_grad():
                y = y - (s - end) * one.said(student, y, at, to, None)
        torch.testing.assert_close(plain.sample(noise), y, rtol=1e-6, atol=1e-7)
    assert torch.equal(one.of_steps(student, 2).net.body.bias, student.net.body.bias)  # type: ignore[union-attr,operator]
    assert not torch.equal(one.of_steps(student, 1).net.body.bias, student.net.body.bias)  # type: ignore[union-attr,operator]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("process", [Process.cosine(64), Edm(), Flow()], ids=["vp", "edm", "flow"])
def test_a_student_of_any_number_of_steps_passes_the_reload_gate(process: Process, tmp_path: Path) -> None:
    """A UNet2DModel of diffusers, whose time embedding has taken the interval in."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = build_unet(UNetConfig(channels=(8, 16)), (1, 8, 8), None)
        one, student = (
            method(methods.Shortcut, at="net.time_embedding"),
            Denoiser(net, process, process.natural, (1, 8, 8)),
        )
        one.interval = Interval(32, 0.5)
        one.interval.read[2].weight.data.normal_(std=0.3)  # type: ignore[union-attr,operator,index]
    for steps in (1, 4):
        made = one.of_steps(student.eval(), steps)
        folder = save_pipeline(made, tmp_path / str(steps), {})
        assert reload_gate(folder, made, samples=2) < 1e-4
        assert load_denoiser(folder, quiet=True).sampling == Sampling("ddim", steps)


def test_an_interval_adds_nothing_at_first_and_never_at_its_own_length() -> None:
    interval = Interval(5, 0.25)
    assert not interval(torch.tensor([0.0, 0.3, 1.0])).any()
    interval.read[2].weight.data.normal_()
    added = interval(torch.tensor([0.0, 0.25, 1.0])).detach()
    assert float(added[1].abs().max()) < 1e-5 < 1e-2 < min(float(added[i].abs().max()) for i in (0, 2))


@pytest.mark.parametrize(
    ("kind", "params", "told"),
    [
        (methods.MeanFlow, {"at": "net.time_embedding"}, "no module 'net.time_embedding'"),
        (methods.MeanFlow, {"at": "net.*"}, "names 3 modules: name one"),
        (methods.Shortcut, {"steps": 3}, "method.params.steps: 3 does not divide the 64 timesteps: take 2"),
        (methods.Shortcut, {"finest": 64}, "method.params.finest: 64 steps of 64 timesteps: take 32 or fewer"),
    ],
)
def test_what_cannot_be_is_refused(kind: Any, params: dict[str, Any], told: str) -> None:
    one = method(kind, **params)
    with pytest.raises(UserError, match=re.escape(told)):
        one.check({"teacher": made(PROCESSES[2], 1), "student": made(PROCESSES[2], 2)})


def test_an_embedding_is_one_vector_a_sample_and_steps_are_powers_of_two() -> None:
    roles: dict[str, nn.Module] = {"teacher": made(PROCESSES[2], 1), "student": made(PROCESSES[2], 2)}
    one = method(methods.Shortcut, at="net")
    with pytest.raises(UserError, match=re.escape("method.params.at: net puts out (4, 2, 3), not one vector a sample")):
        one.begin(one.stages()[0], roles, {"x": draw(4, 2, 3, seed=0)})
    with pytest.raises(ValueError, match="48 is no power of 2: take 32"):
        methods.ShortcutParams(finest=48)
