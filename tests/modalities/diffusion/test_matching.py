"""Distribution matching: values against the oracle, what learns in which turn, and samples that are not finite."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles import distribution_matching as oracle
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from toy_samples import Adapter, denoiser

from xmodal_kd.modalities.diffusion.methods.few_step import masked
from xmodal_kd.modalities.diffusion.methods.matching import Dmd2, MatchingParams
from xmodal_kd.modalities.diffusion.models.denoiser import Denoiser, Sampling
from xmodal_kd.modalities.diffusion.models.paths import Edm, Flow
from xmodal_kd.modalities.diffusion.models.process import Process
from xmodal_kd.objective.objective import Objective
from xmodal_kd.recipe.recipe import Train
from xmodal_kd.runtime.distributed import Ranks
from xmodal_kd.runtime.errors import RunError
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.runtime.timing import StepTimer
from xmodal_kd.training.method import Context, Stage

PROCESSES = [Process.cosine(64), Edm(steps=64), Flow(steps=64)]
EVERY = pytest.mark.parametrize("process", PROCESSES, ids=["vp", "edm", "flow"])
CTX = Context(Stage("matching", 4, frozenset({"student"})), 1, 0, Streams(1), StepTimer(torch.device("cpu")), Ranks())


def method(**params: Any) -> Dmd2:
    train = Train(steps=4, batch_size=6)
    return Dmd2(Adapter(), Objective(()), train, Streams(1), params=MatchingParams(**params))


def made(process: Process, seed: int, shape: Sequence[int] = (2, 3)) -> Denoiser:
    built = denoiser(shape, seed=seed, process=process, prediction=process.natural).double()
    built.sampling = Sampling("lcm", 1, 64)
    return built


def numpy(model: Denoiser) -> oracle.Denoiser:
    """As the oracle calls it; the level tells the time."""
    process = model.process

    def denoise(z: np.ndarray, alpha: float, sigma: float) -> np.ndarray:
        level = torch.tensor([sigma / alpha if alpha else np.inf], dtype=torch.float64)
        t = process.time_of(level).round().long()
        with torch.no_grad():
            return model.predict_x(torch.tensor(z)[None], t)[0].numpy()

    return denoise


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@EVERY
def test_the_gradient_is_the_difference_of_scores(process: Process) -> None:
    teacher, fake = made(process, 1), made(process, 2)
    x, noise, u = draw(5, 2, 3, seed=0), draw(5, 2, 3, seed=1), torch.linspace(0, 0.999, 5)
    dmd = method()
    found, t = dmd.gradient(teacher, fake, x, None, noise, u), dmd.times(64, u)
    assert (int(t.min()), int(t.max())) == (1, 61)
    for i in range(5):
        alpha, sigma = float(process.alpha(t[i])), float(process.sigma(t[i]))
        expected = oracle.gradient(x[i].numpy(), noise[i].numpy(), alpha, sigma, numpy(teacher), numpy(fake))
        np.testing.assert_allclose(found[i], expected, rtol=1e-6, atol=1e-9)


@EVERY
def test_the_fake_denoiser_learns_the_samples(process: Process) -> None:
    fake, x, noise = made(process, 2), draw(5, 2, 3, seed=0), draw(5, 2, 3, seed=1)
    u = torch.tensor([0.0, 0.2, 0.5, 0.8, 0.97])
    found = method().fake_errors(fake, x, None, noise, u)
    for i in range(5):
        t = int(u[i] * 64)
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        weight = {"vp": 1 / sigma**2, "edm": 1 / sigma**2 + 1 / 0.5**2, "flow": 1 / sigma**2}[process.kind]
        expected = oracle.fake_loss(x[i].numpy(), noise[i].numpy(), alpha, sigma, numpy(fake), weight)
        assert found[i].item() == pytest.approx(expected, rel=1e-6)


@EVERY
def test_the_samples_learnt_from_are_those_of_the_sampler(process: Process) -> None:
    """At each of four steps, with the same noise."""
    student, noise, dmd, seen = made(process, 3), draw(3, 2, 3, seed=5), method(), set()
    student.sampling = Sampling("lcm", 4, 64)
    process_times = student.sampling.times(process)[:-1]
    levels = [(float(process.alpha(t)), float(process.sigma(t))) for t in process_times]
    for turn in range(3):
        first = int(torch.randint(4, (), generator=CTX.generator("index", turn)))
        fresh = [torch.randn(3, 2, 3, generator=CTX.generator("between", turn, k)).double() for k in range(3)]
        with torch.no_grad():
            found = dmd.generate(student, noise, None, CTX, turn)
        for i in range(3):
            index = (first + i) % 4
            seen.add(index)

            def consistent(z: np.ndarray, alpha: float, sigma: float) -> np.ndarray:
                t = torch.tensor([process_times[levels.index((alpha, sigma))]])
                with torch.no_grad():
                    return student.consistency(torch.tensor(z)[None], t)[0].numpy()

            noises = [n[i].numpy() for n in fresh]
            expected = oracle.simulate(consistent, process.start * noise[i].numpy(), levels, noises, index)
            np.testing.assert_allclose(found[i], expected, rtol=1e-6, atol=1e-9)
    assert seen == {0, 1, 2, 3}


def test_a_step_has_turns_of_the_critic_and_one_of_the_student(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each moves its own network alone; the samples' gradient is the oracle's over the number of values."""
    process = PROCESSES[0]
    roles: dict[str, nn.Module] = {"teacher": made(process, 1), "student": made(process, 2)}
    dmd, x = method(critic=3, critic_lr=0.5), draw(4, 2, 3, seed=0)
    batch = {"ids": torch.arange(4), "x": x, "noise": draw(4, 2, 3, seed=1), "u": torch.rand(4)}
    dmd.check(roles)
    optimizers = dmd.begin(dmd.stages()[0], roles, batch)
    assert optimizers["fake"].param_groups[0]["lr"] == 0.5 * optimizers["student"].param_groups[0]["lr"]
    turns = []
    for name, out in dmd.losses(batch, roles, CTX):
        out.value().backward()
        learns, rests = (dmd.fake, roles["student"]) if name == "fake" else (roles["student"], dmd.fake)
        assert all(p.grad is not None for p in learns.parameters())
        assert all(p.grad is None for p in [*rests.parameters(), *roles["teacher"].parameters()])
        optimizers[name].step()
        for model in (dmd.fake, roles["student"]):
            model.zero_grad()
        turns.append(name)
    assert turns == ["fake"] * 3 + ["student"]
    leaf = x.clone().requires_grad_()
    monkeypatch.setattr(dmd, "generate", lambda *_: leaf)
    *_, (_, out) = dmd.losses(batch, roles, CTX)
    out.value().backward()
    noise, u = dmd.noisy(batch, CTX, "student")
    pull = dmd.gradient(roles["teacher"], dmd.fake, x, None, noise, u)  # type: ignore[arg-type]
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad, pull / x.numel())


def test_samples_that_are_not_finite_are_left_out_and_counted() -> None:
    values = torch.tensor([1.0, torch.nan, 3.0, torch.inf], requires_grad=True)
    out = masked("dmd2", values)
    assert out.value().item() == 2 and out.parts["dmd2_masked"].total == 2
    out.value().backward()
    assert values.grad is not None and values.grad.tolist() == [0.5, 0, 0.5, 0]
    with pytest.raises(RunError, match=r"dmd2: no sample of the batch is finite: lower"):
        masked("dmd2", torch.full((3,), torch.nan))
