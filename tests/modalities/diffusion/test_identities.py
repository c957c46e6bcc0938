"""Score identity distillation, moment matching, divergences other than the reverse KL: values against the oracles."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles import few_step as oracle
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from toy_samples import Adapter, denoiser

from xmodal_kd.modalities.diffusion.methods.discriminator import head_for, judged
from xmodal_kd.modalities.diffusion.methods.identities import MomentMatching, Sid
from xmodal_kd.modalities.diffusion.methods.matching import DIVERGENCES, RATIOS, Dmd2
from xmodal_kd.modalities.diffusion.models.denoiser import Denoiser, Sampling
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
CTX = Context(Stage("matching", 4, frozenset({"student"})), 1, 0, Streams(1), StepTimer(torch.device("cpu")), Ranks())


def method(kind: Any, **params: Any) -> Any:
    return kind(Adapter(), Objective(()), Train(steps=4, batch_size=6), Streams(1), params=kind.Params(**params))


def made(process: Process, seed: int, steps: int = 1) -> Denoiser:
    built = denoiser((2, 3), seed=seed, process=process, prediction=process.natural).double()
    built.sampling = Sampling("lcm", steps, 64)
    return built


def numpy(model: Denoiser, t: int) -> oracle.Denoiser:
    """As the oracle calls it, at the one level of t."""

    def denoise(z: np.ndarray, alpha: float, sigma: float) -> np.ndarray:
        assert (alpha, sigma) == (float(model.process.alpha(t)), float(model.process.sigma(t)))
        with torch.no_grad():
            return model.predict_x(torch.tensor(z)[None], torch.tensor([t]))[0].numpy()

    return denoise


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@EVERY
@pytest.mark.parametrize("alpha", [0.5, 1.2])
def test_sid_is_the_oracle_s_and_its_gradient_passes_through_both(process: Process, alpha: float) -> None:
    teacher, fake, sid = made(process, 1), made(process, 2), method(Sid, alpha=alpha)
    teacher.requires_grad_(False)
    x, noise, u = draw(4, 2, 3, seed=0), draw(4, 2, 3, seed=1), torch.tensor([0.1, 0.4, 0.6, 0.9])
    leaf = x.clone().requires_grad_()
    values = sid.divergence(teacher, fake, leaf, None, noise, u)
    values.sum().backward()
    assert leaf.grad is not None and all(p.grad is None and p.requires_grad for p in fake.parameters())
    times = sid.times(64, u).tolist()
    assert max(times) < 0.95 * 64
    for i, t in enumerate(times):
        at = (x[i].numpy(), noise[i].numpy(), float(process.alpha(t)), float(process.sigma(t)))
        models = (numpy(teacher, t), numpy(fake, t))
        assert values[i].item() == pytest.approx(oracle.sid_loss(*at, *models, alpha), rel=1e-6)
        np.testing.assert_allclose(leaf.grad[i], oracle.sid_gradient(*at, *models, alpha), rtol=1e-4, atol=1e-7)


@EVERY
def test_moment_matching_is_the_oracle_s(process: Process) -> None:
    """Of the auxiliary denoiser in what networks say, which is x times a factor of the time alone."""
    steps = 1 if process.kind == "edm" else 4
    teacher, fake, moments = made(process, 1), made(process, 2, steps), method(MomentMatching)
    x = draw(5, 2, 3, seed=0)
    batch = {"x": draw(5, 2, 3, seed=7), "noise": draw(5, 2, 3, seed=8)}
    t, after = moments.step(fake, batch, CTX, "student")
    z, s = moments.lower(fake, x, batch, CTX, "student")
    assert bool((s <= t).all() and (s >= after.clamp(min=0)).all())
    leaf = x.clone().requires_grad_()
    moments.student_loss(teacher, fake, leaf, batch, CTX).value().backward()
    z_of, s_of = moments.lower(fake, x, batch, CTX, 0)
    errors = 0.0
    for i in range(5):
        at = [(float(process.alpha(k[i])), float(process.sigma(k[i]))) for k in (s, s_of)]
        models = [(numpy(teacher, int(k[i])), numpy(fake, int(k[i]))) for k in (s, s_of)]
        _, pull = oracle.moment_losses(x[i].numpy(), z[i].numpy(), *at[0], *models[0])
        assert leaf.grad is not None
        np.testing.assert_allclose(leaf.grad[i], pull / 5, rtol=1e-6, atol=1e-9)
        square, _ = oracle.moment_losses(x[i].numpy(), z_of[i].numpy(), *at[1], *models[1])
        sigma = at[1][1]
        errors += square * (1 / sigma**2 + (1 / 0.5**2 if process.kind == "edm" else 0)) / 5
    assert moments.critic_loss(teacher, fake, x, batch, CTX, 0).value().item() == pytest.approx(errors, rel=1e-6)


@EVERY
def test_moments_are_of_noisy_data_at_the_sampler_s_times(process: Process) -> None:
    steps = 1 if process.kind == "edm" else 4
    student, moments = made(process, 3, steps), method(MomentMatching)
    batch = {"x": draw(8, 2, 3, seed=7), "noise": draw(8, 2, 3, seed=8)}
    t, _ = moments.step(student, batch, CTX, "student")
    assert sorted(set(t.tolist())) == sorted(student.sampling.times(process)[:-1])
    z = process.add_noise(batch["x"], batch["noise"], t)
    torch.testing.assert_close(moments.made(student, batch, CTX, "student"), student.consistency(z, t))


@pytest.mark.parametrize("name", list(DIVERGENCES))
def test_weights_are_those_of_the_divergence(name: str) -> None:
    """f'' r^2 of the ratio of densities, which a discriminator's logit is the logarithm of, over its mean."""
    process = PROCESSES[2]
    dmd, fake, x = method(Dmd2, gan=0.1, at="net.body", divergence=name), made(process, 2), draw(9, 2, 3, seed=0)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        dmd.head = head_for(fake, "net.body", x, None)
        dmd.head.out.weight.data.mul_(8)
    noise, u = draw(9, 2, 3, seed=1), torch.linspace(0, 0.99, 9)
    found = dmd.weights(fake, x, None, noise, u)
    t = dmd.times(64, u)
    _, logits = judged(fake, dmd.head, "net.body", lambda: fake(process.add_noise(x, noise, t), t))
    ratios = np.clip(np.exp(logits.detach().numpy()), *RATIOS)
    assert ratios.min() == 0.1 or ratios.max() > 2
    np.testing.assert_allclose(found, oracle.divergence_weights(name, ratios.tolist()), rtol=1e-5)
    assert set(DIVERGENCES) == set(oracle.DIVERGENCES)


def test_the_weights_scale_the_pull_of_the_samples() -> None:
    process = PROCESSES[2]
    roles: dict[str, nn.Module] = {"teacher": made(process, 1), "student": made(process, 2)}
    batch = {"ids": torch.arange(4), "x": draw(4, 2, 3, seed=0), "noise": draw(4, 2, 3, seed=1), "u": torch.rand(4)}
    pulls = []
    for name in ("reverse_kl", "jeffreys"):
        dmd = method(Dmd2, gan=1e-12, at="net.body", divergence=name)
        dmd.begin(dmd.stages()[0], roles, batch)
        leaf = batch["x"].clone().requires_grad_()
        dmd.student_loss(roles["teacher"], dmd.fake, leaf, batch, CTX).value().backward()
        pulls.append((leaf.grad, dmd.weights(dmd.fake, batch["x"], None, *dmd.noisy(batch, CTX, "student"))))
    (plain, ones), (weighted, h) = pulls
    assert plain is not None and bool((ones == 1).all()) and float(h.std()) > 1e-4
    torch.testing.assert_close(weighted, plain * h[:, None, None], rtol=1e-6, atol=1e-10)


def test_what_cannot_be_is_refused() -> None:
    roles: dict[str, nn.Module] = {"teacher": made(PROCESSES[0], 1), "student": made(PROCESSES[0], 2)}
    told = "method.params.divergence: jeffreys needs the discriminator's ratio of densities: set method.params.gan"
    with pytest.raises(UserError, match=re.escape(told)):
        method(Dmd2, divergence="jeffreys").check(roles)
    with pytest.raises(ValueError, match="less than or equal to 1"):
        method(Sid, steps=2)
