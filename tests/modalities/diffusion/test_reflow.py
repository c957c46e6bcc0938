"""Reflow: lines between the teacher's own noise and samples, round by round."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles import few_step as oracle
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from toy_samples import Adapter, Source, denoiser

from xmodal_kd.modalities.diffusion.methods.intervals import level, mean_velocity
from xmodal_kd.modalities.diffusion.methods.reflow import Pairs, Reflow
from xmodal_kd.modalities.diffusion.models.denoiser import Denoiser, Sampling
from xmodal_kd.modalities.diffusion.models.paths import Flow
from xmodal_kd.modalities.diffusion.models.process import Process
from xmodal_kd.objective.objective import Objective
from xmodal_kd.recipe.recipe import Train
from xmodal_kd.runtime.device import make_accelerator
from xmodal_kd.runtime.distributed import Ranks
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.runtime.timing import StepTimer
from xmodal_kd.training.engine import Engine
from xmodal_kd.training.method import Context, Stage


def method(**params: Any) -> Reflow:
    params = {"pairs": 7, **params}
    return Reflow(Adapter(), Objective(()), Train(steps=2, batch_size=6), Streams(1), params=Reflow.Params(**params))


def context(stage: Stage) -> Context:
    return Context(stage, 1, 0, Streams(1), StepTimer(torch.device("cpu")), Ranks())


def made(process: Process, seed: int) -> Denoiser:
    return denoiser((2, 3), seed=seed, process=process, prediction=process.natural).double()


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def begun(process: Process, **params: Any) -> tuple[Reflow, dict[str, nn.Module], dict[str, Tensor]]:
    one = method(**params)
    roles: dict[str, nn.Module] = {"teacher": made(process, 1), "student": made(process, 2)}
    batch = {"x": draw(5, 2, 3, seed=0), "u": torch.linspace(0, 0.99, 5).double()}
    one.check(roles)
    one.begin(one.stages()[0], roles, batch)
    roles["student"].load_state_dict(made(process, 2).state_dict())
    return one, roles, batch


def test_pairs_are_where_the_teacher_starts_and_arrives() -> None:
    process = Flow(steps=64)
    one, roles, _ = begun(process)
    teacher, pairs = roles["teacher"], one.pairs
    assert isinstance(teacher, Denoiser) and isinstance(pairs, Pairs) and len(pairs.x) == 7
    torch.testing.assert_close(pairs.x, teacher.sample(pairs.noise))
    assert teacher.sampling == Sampling("ddim", 8)


@pytest.mark.parametrize("steps", [1, 4])
def test_reflow_is_the_oracle_s(steps: int) -> None:
    process = Flow(steps=64)
    one, roles, batch = begun(process, steps=steps)
    student, pairs = roles["student"], one.pairs
    assert isinstance(student, Denoiser) and isinstance(pairs, Pairs)

    def velocity(y: np.ndarray, s: float) -> np.ndarray:
        t = process.time_of(torch.tensor([s / (1 - s) if s < 1 else torch.inf], dtype=torch.float64))
        with torch.no_grad():
            return mean_velocity(student, torch.tensor(y)[None], t, None)[0].numpy()  # type: ignore[arg-type]

    for stage in one.stages():
        ctx = context(stage)
        values = one.values(batch, roles, ctx)
        chosen = torch.randint(7, (5,), generator=ctx.generator("pairs"))
        times = torch.tensor(process.grid(steps)[:-1])
        for i in range(5):
            u = float(batch["u"][i])
            t = times[int(u * steps)] if stage.name == "distil" else torch.tensor(int(u * 64))
            pair = pairs.noise[chosen[i]].numpy(), pairs.x[chosen[i]].numpy()
            expected = oracle.reflow_loss(velocity, *pair, float(level(process, t)))
            assert values[i].item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("process", [Process.cosine(64), Flow(steps=64)], ids=["vp", "flow"])
def test_a_student_that_is_its_teacher_s_straight_line_has_no_loss(process: Process) -> None:
    """Of a teacher that sees one point wherever it looks, lines and paths are the same, on any process."""
    one, roles, batch = begun(process)
    student = roles["student"]
    assert isinstance(student, Denoiser)
    point = torch.zeros(2, 3, dtype=torch.float64)
    student.predict = lambda target, z, t, labels=None: process.convert(  # type: ignore[method-assign]
        point.expand(z.shape), z, t, "sample", target
    )
    one.pairs = Pairs(draw(7, 2, 3, seed=3), point.expand(7, 2, 3).clone(), None)
    values = one.values(batch, roles, context(one.stages()[0]))
    assert float(values.max()) < 1e-20


def test_rounds_teach_by_the_student_before_and_the_last_stage_at_its_own_times(tmp_path: Path) -> None:
    one = method(rounds=2, steps=2, pairs=9, distil=1.5)
    roles: dict[str, nn.Module] = {
        "teacher": denoiser((3,), seed=1, classes=2),
        "student": denoiser((3,), seed=2, classes=2),
    }
    taught, begin = [], one.begin

    def watched(stage: Stage, now: Any, batch: Any) -> Any:
        before = {k: v.clone() for k, v in now["student"].state_dict().items()}
        optimizers = begin(stage, now, batch)
        same = all(torch.equal(v, before[k]) for k, v in now["teacher"].state_dict().items())
        taught.append((stage.name, stage.steps, same, now["teacher"].sampling.steps))
        assert isinstance(one.pairs, Pairs) and one.pairs.told is not None and len(one.pairs.told) == 9
        torch.testing.assert_close(one.pairs.x, now["teacher"].sample(one.pairs.noise, one.pairs.told))
        return optimizers

    one.begin = watched  # type: ignore[method-assign]
    built = Engine(
        one, Source((3,), Streams(1), classes=2), roles, one.train, streams=Streams(1), quiet=True, folder=tmp_path,
        accelerator=make_accelerator("cpu", "fp32"),
    )  # fmt: skip
    built.fit()
    assert taught == [("reflow-1", 2, False, 8), ("reflow-2", 2, True, 8), ("distil", 3, True, 8)]
    assert built.roles["student"].sampling == Sampling("ddim", 2)


def test_steps_that_are_not_equally_long_are_refused() -> None:
    roles: dict[str, nn.Module] = {"teacher": made(Flow(steps=64), 1), "student": made(Flow(steps=64), 2)}
    with pytest.raises(UserError, match=r"method\.params\.steps: 5 does not divide the 64 timesteps: take 4"):
        method(steps=5).check(roles)
