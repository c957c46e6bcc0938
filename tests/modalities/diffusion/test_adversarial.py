"""LADD and DMD's regression: values against the oracle, whose features are read, and what learns in which turn."""

from __future__ import annotations

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

from xmodal_kd.modalities.diffusion.methods.adversarial import Ladd, Still
from xmodal_kd.modalities.diffusion.methods.discriminator import features_at
from xmodal_kd.modalities.diffusion.methods.intervals import level
from xmodal_kd.modalities.diffusion.methods.matching import Dmd2
from xmodal_kd.modalities.diffusion.methods.pairs import Pairs
from xmodal_kd.modalities.diffusion.models.denoiser import Denoiser, Sampling
from xmodal_kd.modalities.diffusion.models.paths import Edm, Flow
from xmodal_kd.modalities.diffusion.models.process import Process
from xmodal_kd.objective.objective import Objective
from xmodal_kd.recipe.recipe import Optimizer, Train
from xmodal_kd.runtime.distributed import Ranks
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.runtime.timing import StepTimer
from xmodal_kd.training.method import Context, Stage

PROCESSES = [Process.cosine(64), Edm(steps=64), Flow(steps=64)]
EVERY = pytest.mark.parametrize("process", PROCESSES, ids=["vp", "edm", "flow"])
CTX = Context(Stage("matching", 4, frozenset({"student"})), 1, 0, Streams(1), StepTimer(torch.device("cpu")), Ranks())
AT = ("net.body", "net.h*")


def method(kind: Any, train: Train | None = None, **params: Any) -> Any:
    train = train or Train(steps=4, batch_size=6)
    return kind(Adapter(), Objective(()), train, Streams(1), params=kind.Params(**params))


def made(process: Process, seed: int, width: int = 12) -> Denoiser:
    built = denoiser((2, 3), seed=seed, width=width, process=process, prediction=process.natural).double()
    built.sampling = Sampling("ddim", 4)
    return built


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def begun(process: Process, width: int = 12, **params: Any) -> tuple[Any, dict[str, nn.Module], dict[str, Tensor], Any]:
    one = method(Ladd, Train(steps=4, batch_size=4, optimizer=Optimizer(lr_scale={"student.net.head*": 0.1})),
                 at=AT, **params)  # fmt: skip
    teacher = made(process, 1).eval().requires_grad_(False)
    roles: dict[str, nn.Module] = {"teacher": teacher, "student": made(process, 2, width)}
    batch = {"ids": torch.arange(4), "x": draw(4, 2, 3, seed=0), "noise": draw(4, 2, 3, seed=1), "u": torch.rand(4)}
    return one, roles, batch, one.begin(one.own_stages()[0], roles, batch)


def noisy(process: Process, u: float, mean: float, std: float) -> tuple[float, float, float]:
    """Level, alpha and sigma by the oracle."""
    s = min(oracle.logit_normal_level(u, mean, std), float(level(process, torch.tensor(63))))
    t = process.time_of(torch.tensor([s / (1 - s)], dtype=torch.float64))
    return s, float(process.alpha(t)), float(process.sigma(t))


@EVERY
def test_levels_have_a_normal_logit(process: Process) -> None:
    one, u = method(Ladd, mean=0.3, std=0.7), torch.tensor([0.01, 0.3, 0.5, 0.9])
    for t, draw_ in zip(one.times_of(process, u), u.tolist(), strict=True):
        assert float(level(process, t[None])) == pytest.approx(noisy(process, draw_, 0.3, 0.7)[0], rel=1e-6)


@EVERY
def test_the_critic_is_the_oracle_s(process: Process) -> None:
    """Hinge of each head on features of noisy samples, and the squared gradient by those of real ones."""
    one, roles, batch, _ = begun(process, r1=0.5, mean=0.0)
    x, teacher = draw(4, 2, 3, seed=5), roles["teacher"]
    assert isinstance(teacher, Denoiser) and len(one.head) == 2 and isinstance(one.fake, nn.Module)
    with torch.no_grad():
        for head in one.head:
            head.out.weight.mul_(5)
    out = one.critic_loss(teacher, one.asked(teacher), x, batch, CTX, 1)
    (noise, u), other = one.noisy(batch, CTX, 1), one.normal(batch, CTX, "real", 1)
    told, slopes = [], []
    for i in range(4):
        s, alpha, sigma = noisy(process, float(u[i]), 0.0, 1.0)
        t = process.time_of(torch.tensor([s / (1 - s)], dtype=torch.float64))
        logits, features = [], []
        for samples, n in ((batch["x"], other), (x, noise)):
            z = (alpha * samples[i] + sigma * n[i])[None]
            features.append(features_at(teacher, ["net.body", "net.head"], z, t, None))
            with torch.no_grad():
                logits.append([float(head(f)) for head, f in zip(one.head, features[-1], strict=True)])
        told.append(oracle.hinge(*logits))

        def called(head: nn.Module) -> Any:
            return lambda value: float(head(torch.tensor(value)[None]).detach())

        slopes.append(oracle.r1([called(h) for h in one.head], [f[0].numpy() for f in features[0]]))
    assert out.parts["discriminator"].total.item() == pytest.approx(sum(told), rel=1e-6)
    assert out.parts["r1"].weight == 0.5 and out.parts["r1"].total.item() == pytest.approx(sum(slopes), rel=1e-4)


@EVERY
def test_the_student_is_moved_by_the_heads_and_the_teacher(process: Process) -> None:
    one, roles, batch, _ = begun(process, distil=2.5)
    teacher = roles["teacher"]
    assert isinstance(teacher, Denoiser)
    leaf = draw(4, 2, 3, seed=5).requires_grad_()
    out = one.student_loss(teacher, one.asked(teacher), leaf, batch, CTX)
    noise, u = one.noisy(batch, CTX, "judged")
    found = one.logits(one.read(one.asked(teacher), leaf, None, noise, u))
    assert out.parts["ladd"].total.item() == pytest.approx(-found.mean(dim=0).sum().item(), rel=1e-9)
    noise, u = one.noisy(batch, CTX, "student")
    expected = 0.0
    for i in range(4):
        t = int(u[i] * 64)

        def sees(z: np.ndarray, at: oracle.Level, t: int = t) -> np.ndarray:
            with torch.no_grad():
                return teacher.predict_x(torch.tensor(z)[None], torch.tensor([t]))[0].numpy()

        at = (float(process.alpha(t)), float(process.sigma(t)))
        expected += oracle.add_distance(leaf[i].detach().numpy(), sees, noise[i].numpy(), at)
    assert out.parts["distil"].weight == 2.5
    assert out.parts["distil"].total.item() == pytest.approx(expected, rel=1e-6)
    out.value().backward()
    assert leaf.grad is not None and bool(leaf.grad.any())
    assert all(p.grad is None and p.requires_grad for p in one.head.parameters())


@pytest.mark.parametrize("width", [12, 5])
def test_each_turn_moves_its_own_and_the_features_rest(width: int) -> None:
    """The teacher's own where the student has its network, else a copy of the student as it starts, in eval mode."""
    one, roles, batch, optimizers = begun(PROCESSES[0], width, critic=2, critic_lr=0.5, r1=1e-3, distil=1.0)
    one.check({**roles, "student": made(PROCESSES[0], 2)})
    teacher, student = roles["teacher"], roles["student"]
    assert isinstance(one.fake, Still) == (width == 5) and "fake" in one.modules()
    reader = one.asked(teacher)
    assert reader.net is (one.fake.model.net if width == 5 else teacher.net)
    for module in one.modules().values():
        module.train()  # as the engine does
    assert not reader.net.training
    student.sampling = Sampling("lcm", 2, 64)
    heads = {id(p) for group in optimizers["fake"].param_groups for p in group["params"]}
    assert heads == {id(p) for p in one.head.parameters()}
    turns = []
    for name, out in one.losses(batch, roles, CTX):
        out.value().backward()
        learns, rests = (one.head, student) if name == "fake" else (student, one.head)
        assert all(p.grad is not None for p in learns.parameters())
        assert all(p.grad is None for p in [*rests.parameters(), *reader.parameters()])
        for model in (one.head, student):
            model.zero_grad()
        turns.append((name, [part for part in out.parts if "masked" not in part]))
    assert turns == [("fake", ["discriminator", "r1"])] * 2 + [("student", ["ladd", "distil"])]


def test_a_guided_teacher_s_features_are_unguided() -> None:
    """Guidance would ask about each sample twice."""
    process = PROCESSES[2]
    teacher = denoiser((2, 3), process=process, prediction="flow_prediction", classes=3)
    teacher.null, teacher.guidance = torch.tensor([2]), 3.0
    reader = method(Ladd).asked(teacher)
    z, labels = torch.randn(5, 2, 3), torch.tensor([0, 1, 0, 1, 0])
    assert [len(f) for f in features_at(reader, ["net.body"], z, torch.full((5,), 9), labels)] == [5]
    assert teacher.guidance == 3.0


@EVERY
def test_pairs_are_the_teacher_s_and_regress_the_student(process: Process) -> None:
    teacher, student = made(process, 1).eval().requires_grad_(False), made(process, 2)
    roles: dict[str, nn.Module] = {"teacher": teacher, "student": student}
    batch = {"ids": torch.arange(4), "x": draw(4, 2, 3, seed=0), "noise": draw(4, 2, 3, seed=1), "u": torch.rand(4)}
    dmd = method(Dmd2, Train(steps=4, batch_size=5), regression=0.25, pairs=9, critic=1)
    dmd.check(roles)
    dmd.begin(dmd.stages()[0], roles, batch)
    assert isinstance(dmd.pairs, Pairs) and dmd.modules()["pairs"] is dmd.pairs
    torch.testing.assert_close(dmd.pairs.x, teacher.sample(dmd.pairs.noise), rtol=1e-6, atol=1e-6)
    *_, (name, out) = dmd.losses(batch, roles, CTX)
    noise, x, _ = dmd.pairs.some(5, CTX.generator("pairs"))
    assert len(dmd.pairs.x) == 9 and name == "student"
    expected = 0.0
    with torch.no_grad():
        for n, y in zip(noise, x, strict=True):
            seen = student.consistency(process.start * n[None], torch.tensor([63]))[0]
            expected += oracle.apart(seen.numpy(), y.numpy(), "l2", 0.0)
    assert out.parts["regression"].weight == 0.25
    assert out.parts["regression"].total.item() == pytest.approx(expected, rel=1e-6)
    out.value().backward()
    assert all(p.grad is not None for p in student.parameters())


@pytest.mark.parametrize(
    ("kind", "params", "told"),
    [
        (Ladd, {}, "no module 'net.down_blocks.?'"),
        (Dmd2, {"regression": 0.25, "steps": 2}, "a student of 2 steps does so once: set method.params.steps to 1"),
    ],
)
def test_what_cannot_be_is_refused(kind: Any, params: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=re.escape(told)):
        method(kind, **params).check({"teacher": made(PROCESSES[2], 1), "student": made(PROCESSES[2], 2)})
