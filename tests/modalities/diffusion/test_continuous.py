"""Continuous-time consistency: the tangent against the oracle and autograd's derivative, and an exact teacher."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles import continuous_consistency as oracle
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from toy_samples import Adapter, denoiser

from xmodal_kd.modalities.diffusion.evaluate.bench import plane, unlabelled
from xmodal_kd.modalities.diffusion.methods.continuous import ContinuousParams, Scm, velocity
from xmodal_kd.modalities.diffusion.models.denoiser import Denoiser
from xmodal_kd.modalities.diffusion.models.mixture import ExactDenoiser
from xmodal_kd.modalities.diffusion.models.paths import Edm, Flow
from xmodal_kd.modalities.diffusion.models.process import Process
from xmodal_kd.objective.objective import Objective
from xmodal_kd.recipe.recipe import Train
from xmodal_kd.runtime.distributed import Ranks
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.runtime.timing import StepTimer
from xmodal_kd.training.method import Context, Stage

SMOOTH = [float(np.cos(0.49 * np.pi * (t + 1) / 64) ** 2) for t in range(64)]
EVERY = pytest.mark.parametrize("process", [Process(SMOOTH), Edm(steps=64), Flow(steps=64)], ids=["vp", "edm", "flow"])


def method(**params: Any) -> Scm:
    return Scm(Adapter(), Objective(()), Train(steps=8, batch_size=6), Streams(1), params=ContinuousParams(**params))


def context(step: int) -> Context:
    stage = Stage("continuous", 8, frozenset({"student"}))
    return Context(stage, step, 0, Streams(1), StepTimer(torch.device("cpu")), Ranks())


def made(process: Process, seed: int) -> Denoiser:
    return denoiser((2, 3), seed=seed, process=process, prediction=process.natural).double()


def numpy(model: Denoiser) -> oracle.Velocity:
    def said(z: np.ndarray, a: float) -> np.ndarray:
        with torch.no_grad():
            return velocity(model, torch.tensor(z)[None], torch.tensor([a], dtype=torch.float64), None)[0].numpy()

    return said


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@EVERY
@pytest.mark.parametrize("step", [0, 2, 7])
def test_the_loss_is_the_oracle_s_tangent_squared(process: Process, step: int) -> None:
    """Also its gradient: 2 g / D of what the network says."""
    roles: dict[str, nn.Module] = {"teacher": made(process, 1), "student": made(process, 2)}
    batch = {"x": draw(5, 2, 3, seed=0), "noise": draw(5, 2, 3, seed=1), "u": torch.linspace(0.1, 0.9, 5)}
    scm = method(difference=1e-5)
    values, a = scm.values(batch, roles, context(step)), scm.angles(process, batch["u"])
    teacher, student = (numpy(model) for model in roles.values())  # type: ignore[arg-type]
    for i in range(5):
        z = np.cos(float(a[i])) * batch["x"][i].numpy() + np.sin(float(a[i])) * batch["noise"][i].numpy()
        g = oracle.tangent(student, teacher, z, float(a[i]), warm=min(1, step / 4), step=1e-5)
        assert values[i].item() == pytest.approx(float(np.mean(g**2)), rel=2e-4)


def test_the_derivative_is_that_of_autograd() -> None:
    """On a process whose times are differentiable; every part of g is known but dF/da."""
    process, scm = Flow(steps=64), method(difference=1e-4)
    student, z, along = made(process, 2), draw(4, 2, 3, seed=3), draw(4, 2, 3, seed=4)
    a = torch.tensor([0.2, 0.6, 1.0, 1.4], dtype=torch.float64)
    said, slope = torch.autograd.functional.jvp(
        lambda point, angle: velocity(student, point, angle, None), (z, a), (along, torch.ones_like(a))
    )
    cos, sin = a.cos().reshape(-1, 1, 1), a.sin().reshape(-1, 1, 1)
    g = -cos.square() * (said - along) - cos * sin * (z + slope)
    expected = g / (g.flatten(1).norm(dim=1) + 0.1).reshape(-1, 1, 1)
    with torch.no_grad():
        found = scm.tangent(student, z, a, said, along, None, 1.0, context(0))
    torch.testing.assert_close(found, expected.detach(), rtol=1e-6, atol=1e-8)


@EVERY
def test_a_student_that_is_consistent_has_no_tangent(process: Process) -> None:
    """f that is one point wherever the path is: of a mixture of one narrow part the exact denoiser is."""
    mixture = plane()
    narrow = type(mixture)([1.0], [[0.4, -0.3]], [[[1e-10, 0.0], [0.0, 1e-10]]])
    exact = ExactDenoiser(narrow, process, process.natural)
    z, a = draw(4, 2, seed=0), torch.tensor([0.3, 0.6, 1.0, 1.3], dtype=torch.float64)
    along = velocity(exact, z, a, None)
    g = method(difference=1e-4).tangent(exact, z, a, along, along, None, 1.0, context(0))
    assert float(g.abs().max()) < 1e-5
    other = velocity(ExactDenoiser(unlabelled(plane()), process, process.natural), z, a, None)
    assert float((other - along).abs().max()) > 1e-2


def test_angles_stay_clear_of_both_ends() -> None:
    scm = method()
    for process in (Process.cosine(64), Edm(), Flow()):
        a = scm.angles(process, torch.tensor([0.0, 0.5, 1.0 - 1e-7]))
        assert float(a.min()) > 1e-3 and float(a.max()) < np.pi / 2 - 1e-3
        assert float(a[1].tan()) == pytest.approx(np.exp(-1.0), rel=1e-6)
