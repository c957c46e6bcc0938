"""The mixture that teaches: against the oracle that solves with matrices, one point at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracles import gaussian_mixture as oracle

from xmodal_kd.modalities.diffusion.evaluate.bench import plane, unlabelled
from xmodal_kd.modalities.diffusion.models.denoiser import Denoiser, Sampling
from xmodal_kd.modalities.diffusion.models.mixture import ExactDenoiser, Mixture, PointNet
from xmodal_kd.modalities.diffusion.models.process import Process
from xmodal_kd.runtime.errors import UserError

ROOT = torch.randn(3, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
SPACE = Mixture([2, 1, 1], torch.arange(15.0).reshape(3, 5) / 7, ROOT @ ROOT.mT / 5 + torch.eye(5) / 20, [0, 1, 1])
#: Variance preserving, EDM, flow matching, only noise, no noise.
LEVELS = [(0.8, 0.6), (1.0, 2.5), (0.7, 0.3), (0.0, 1.0), (1.0, 0.0)]


def twin(mixture: Mixture) -> oracle.Mixture:
    covariances = mixture.axes @ torch.diag_embed(mixture.variances) @ mixture.axes.mT
    weights = mixture.log_weights.exp().tolist()
    return oracle.Mixture(weights, mixture.means.tolist(), covariances.tolist(), mixture.labels.tolist())


@pytest.mark.parametrize(("alpha", "sigma"), LEVELS)
@pytest.mark.parametrize("mixture", [plane(), SPACE], ids=["plane", "space"])
def test_all_it_says_is_the_oracles(mixture: Mixture, alpha: float, sigma: float) -> None:
    x, labels = mixture.draw(6, torch.Generator().manual_seed(1))
    z = alpha * x + sigma * torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    levels = torch.tensor(alpha, dtype=torch.float64), torch.tensor([sigma] * 6, dtype=torch.float64)
    known, assert_close = twin(mixture), np.testing.assert_allclose
    for i, (point, label) in enumerate(zip(z.numpy(), labels.tolist(), strict=True)):
        own = known.of_class(label)
        assert_close(mixture.denoise(z, *levels)[i], known.denoiser(point, alpha, sigma), rtol=1e-9, atol=1e-11)
        assert_close(mixture.denoise(z, *levels, labels)[i], own.denoiser(point, alpha, sigma), rtol=1e-9, atol=1e-11)
        assert_close(mixture.score(z, *levels)[i], known.score(point, alpha, sigma), rtol=1e-8, atol=1e-9)
        assert_close(mixture.log_density(z, *levels)[i], known.log_density(point, alpha, sigma), rtol=1e-9)
        assert_close(mixture.log_density(z, *levels, labels)[i], own.log_density(point, alpha, sigma), rtol=1e-9)
        guided = mixture.guided(z, *levels, labels, 2.5)[i]
        assert_close(guided, known.guided(point, alpha, sigma, label, 2.5), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_as_a_network_it_says_what_it_should(prediction: str) -> None:
    process, mixture = Process.cosine(64), plane()
    teacher = ExactDenoiser(mixture, process, prediction, guidance=1.5)
    z, t, labels = torch.randn(3, 2, dtype=torch.float64), torch.tensor([0, 30, 62]), torch.tensor([0, 1, 1])
    said = teacher(z, t, labels)
    for i in range(3):
        alpha, sigma = float(process.alpha(t[i])), float(process.sigma(t[i]))
        x = twin(mixture).guided(z[i].numpy(), alpha, sigma, int(labels[i]), 1.5)
        eps = (z[i].numpy() - alpha * x) / sigma
        expected = {"epsilon": eps, "sample": x, "v_prediction": alpha * eps - sigma * x}[prediction]
        np.testing.assert_allclose(said[i], expected, rtol=1e-7, atol=1e-9)
    assert teacher(z.float(), t, labels).dtype == torch.float32


def test_its_samples_are_where_the_exact_ode_leads() -> None:
    """By 1,000 DDIM steps on a smooth schedule, from the noise of the last timestep."""
    process = Process([np.cos(0.49 * np.pi * (t + 1) / 1000) ** 2 for t in range(1000)])
    teacher = ExactDenoiser(unlabelled(plane()), process, sampling=Sampling("dpmpp_2m", 1000))
    noise = torch.randn(4, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    made = teacher.sample(noise)
    for z, x in zip(noise.numpy(), made.numpy(), strict=True):
        np.testing.assert_allclose(x, oracle.solve_to_data(twin(plane()), z, oracle.vp, 0.49 * np.pi), atol=2e-3)


def test_it_draws_what_it_is() -> None:
    mixture = plane()
    x, labels = mixture.draw(20_000, torch.Generator().manual_seed(0))
    known = twin(mixture)
    np.testing.assert_allclose(x.mean(0), known.weights @ known.means, atol=0.03)
    second = sum(
        w * (c + np.outer(m, m)) for w, m, c in zip(known.weights, known.means, known.covariances, strict=True)
    )
    np.testing.assert_allclose(x.T @ x / len(x), second, atol=0.03)
    assert abs(float((labels == 0).double().mean()) - 0.6) < 0.02
    assert unlabelled(mixture).draw(3, torch.Generator())[1] is None


def test_what_is_no_mixture_is_refused() -> None:
    eye = [[[1.0, 0.0], [0.0, 1.0]]]
    for weights, means, covariances, classes, words in [
        ([1.0], [[0.0, 0.0]], [[[1.0, 0.0], [0.0, 0.0]]], None, "positive definite"),
        ([0.0], [[0.0, 0.0]], eye, None, "weights must be positive"),
        ([1.0, 1.0], [[0.0, 0.0]], eye, None, "weights"),
        ([1.0], [[0.0, 0.0]], eye, [1], "leave none out"),
    ]:
        with pytest.raises(ValueError, match=words):
            Mixture(weights, means, covariances, classes)
    with pytest.raises(UserError, match="nothing to guide by"):
        ExactDenoiser(unlabelled(plane()), Process.cosine(8), guidance=2.0)
    with pytest.raises(UserError, match="given no labels"):
        ExactDenoiser(plane(), Process.cosine(8))(torch.zeros(1, 2), 3)


def test_the_tiny_network_knows_time_and_class() -> None:
    net = PointNet(2, classes=2)
    z, t, labels = torch.zeros(2, 2), torch.tensor([3, 900]), torch.tensor([0, 1])
    made = Denoiser(net, Process.cosine(1024), "v_prediction", (2,), classes=2)
    said = made(z, t, labels)
    assert said.shape == (2, 2) and float((said[0] - said[1]).detach().abs().max()) > 1e-3
    assert not torch.equal(made(z, t, 1 - labels), said)
