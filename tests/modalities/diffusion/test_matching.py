"""Distribution matching: values against the oracle, what learns in which turn, and samples that are not finite."""

from __future__ import annotations

import re
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

from xmodal_kd.modalities.diffusion.methods.discriminator import head_for, judged
from xmodal_kd.modalities.diffusion.methods.few_step import masked
from xmodal_kd.modalities.diffusion.methods.matching import Dmd2, MatchingParams
from xmodal_kd.modalities.diffusion.models.denoiser import Denoiser, Sampling
from xmodal_kd.modalities.diffusion.models.paths import Edm, Flow
from xmodal_kd.modalities.diffusion.models.process import Process
from xmodal_kd.objective.objective import Objective
from xmodal_kd.recipe.recipe import Train
from xmodal_kd.runtime.distributed import Ranks
from xmodal_kd.runtime.errors import RunError, UserError
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


@EVERY
def test_the_discriminator_is_the_oracle_s(process: Process) -> None:
    """What it learns from both kinds of samples, and where it pulls generated ones, by finite differences."""
    dmd, fake = method(gan=0.5, gan_critic=0.25, at="net.body"), made(process, 2)
    x, real = draw(4, 2, 3, seed=0), draw(4, 2, 3, seed=7)
    dmd.head = head_for(fake, "net.body", x, None)
    levels = np.stack([process.alpha(torch.arange(64)), process.sigma(torch.arange(64))], axis=1)

    def critic(z: np.ndarray, alpha: float, sigma: float) -> float:
        t = int(np.abs(levels - [alpha, sigma]).sum(axis=1).argmin())
        with torch.no_grad():
            return judged(fake, dmd.head, "net.body", lambda: fake(torch.tensor(z)[None], torch.tensor([t])))[1].item()

    def at(samples: Tensor, noise: Tensor, u: Tensor) -> list[tuple[np.ndarray, np.ndarray, float, float]]:
        places = levels[(u * 64).long().numpy()]
        return [(a.numpy(), n.numpy(), *p) for a, n, p in zip(samples, noise, places, strict=True)]

    batch = {"ids": torch.arange(4), "x": real}
    out = dmd.critic_loss(made(process, 1), fake, x, batch, CTX, 1)
    (noise, u), other = dmd.noisy(batch, CTX, 1), dmd.normal(batch, CTX, "real", 1)
    expected = -oracle.adversarial_value(at(real, other, u), at(x, noise, u), critic)
    part = out.parts["discriminator"]
    assert part.weight == 0.25 and part.total.item() / 4 == pytest.approx(expected, rel=1e-6)
    assert out.parts["fake"].total.item() == pytest.approx(dmd.fake_errors(fake, x, None, noise, u).sum().item())
    leaf = x.clone().requires_grad_()
    dmd.doubts(fake, leaf, None, noise, u).sum().backward()
    assert leaf.grad is not None
    assert all(p.grad is None and p.requires_grad for p in [*fake.parameters(), *dmd.head.parameters()])
    for found, where in zip(leaf.grad, at(x, noise, u), strict=True):
        np.testing.assert_allclose(found, oracle.adversarial_pull(*where, critic), rtol=1e-4, atol=1e-8)


def test_the_discriminator_learns_in_the_critic_s_turns() -> None:
    """With the fake denoiser's features below it, by one optimizer; the student's turn leaves both as they are."""
    process = PROCESSES[0]
    roles: dict[str, nn.Module] = {"teacher": made(process, 1), "student": made(process, 2)}
    dmd = method(critic=2, gan=0.003, at="net.body")
    batch = {"ids": torch.arange(4), "x": draw(4, 2, 3, seed=0), "noise": draw(4, 2, 3, seed=1), "u": torch.rand(4)}
    dmd.check(roles)
    optimizers = dmd.begin(dmd.stages()[0], roles, batch)
    critics = [*dmd.fake.parameters(), *dmd.head.parameters()]
    assert {id(p) for group in optimizers["fake"].param_groups for p in group["params"]} == {id(p) for p in critics}
    assert dmd.modules()["head"] is dmd.head
    again = method(gan=0.003, at="net.body")
    again.begin(again.stages()[0], roles, batch)
    assert all(torch.equal(a, b) for a, b in zip(dmd.head.parameters(), again.head.parameters(), strict=True))
    named = []
    for name, out in dmd.losses(batch, roles, CTX):
        for parameter in [*critics, *roles["student"].parameters()]:
            parameter.grad = None
        out.value().backward()
        assert all((p.grad is not None) == (name == "fake") for p in critics)
        assert all((p.grad is not None) == (name == "student") for p in roles["student"].parameters())
        named.append(list(out.parts))
    assert named == [["fake", "fake_masked", "discriminator", "discriminator_masked"]] * 2 + [
        ["dmd2", "dmd2_masked", "gan", "gan_masked"]
    ]


@pytest.mark.parametrize(
    ("at", "told"), [("net.mid_block", "no module 'net.mid_block'"), ("net.*", "names 3 modules: name one")]
)
def test_a_discriminator_needs_a_place_to_look(at: str, told: str) -> None:
    roles: dict[str, nn.Module] = {"teacher": made(PROCESSES[0], 1), "student": made(PROCESSES[0], 2)}
    method(at=at).check(roles)  # without a discriminator nobody looks
    with pytest.raises(UserError, match=re.escape(told)):
        method(at=at, gan=0.1).check(roles)


@EVERY
def test_a_student_starts_as_a_saved_one(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake denoiser as the teacher still; a student of another process or prediction is refused."""
    saved = made(process, 5)
    roles: dict[str, nn.Module] = {"teacher": made(process, 1), "student": made(process, 2)}
    dmd = method(start=Path("runs/x/student"))
    monkeypatch.setattr(Adapter, "load", lambda self, role, folder: saved, raising=False)
    dmd.check(roles)
    dmd.begin(dmd.stages()[0], roles, {"x": draw(4, 2, 3, seed=0)})
    for model, like in ((roles["student"], saved), (dmd.fake, roles["teacher"])):
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), like.parameters(), strict=True))
    saved = denoiser((2, 3), process=Process.cosine(32), prediction="v_prediction")
    with pytest.raises(UserError, match=r"method\.params\.start: runs/x/student is not of the student's"):
        dmd.check(roles)


def test_samples_that_are_not_finite_are_left_out_and_counted() -> None:
    values = torch.tensor([1.0, torch.nan, 3.0, torch.inf], requires_grad=True)
    out = masked("dmd2", values)
    assert out.value().item() == 2 and out.parts["dmd2_masked"].total == 2
    out.value().backward()
    assert values.grad is not None and values.grad.tolist() == [0.5, 0, 0.5, 0]
    with pytest.raises(RunError, match=r"dmd2: no sample of the batch is finite: lower"):
        masked("dmd2", torch.full((3,), torch.nan))
