"""The `Method` protocol carries more than one teacher and one student: two more methods, each a page long.

`Progressive` is the skeleton of progressive and consistency distillation: at each stage the student becomes the
teacher, the optimizer is fresh, and a target follows the student. `Matching` is that of distribution matching: a
critic and a student take turns within one step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from scheme_runs import resumed, stop_after
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from toy import CLASSES, ToyAdapter, adapter, engine, roles

from xmodal_kd.adapter.adapter import Batch
from xmodal_kd.objective.parts import LossOut
from xmodal_kd.recipe.recipe import Train
from xmodal_kd.recipe.schedules import Schedule
from xmodal_kd.runtime.checkpoint import digest
from xmodal_kd.training.engine import Engine, Interrupted
from xmodal_kd.training.method import Context, Ema, Method, Roles, Stage, probe


def valid(toy: ToyAdapter, role: str, roles: Roles, batch: Batch) -> Tensor:
    rows, layout = toy.signals(role, roles[role], batch)["logits"]
    return rows[layout.mask]


class Progressive:
    """Each stage's student is the next one's teacher; a noisy student meets what its own average says."""

    def __init__(self, toy: ToyAdapter, steps: int, stages: int, noise: float = 0.1) -> None:
        self.toy, self.steps, self.count, self.noise = toy, steps, stages, noise

    def stages(self) -> Sequence[Stage]:
        return [
            Stage(
                f"stage{i}", self.steps, frozenset({"student"}), saves=frozenset({"teacher"}),
                ema={"target": Ema("student", 0.9)} if i else {},
            )
            for i in range(self.count)
        ]  # fmt: skip

    def begin(self, stage: Stage, roles: Roles, batch: Batch) -> Mapping[str, Optimizer]:
        if stage.name != "stage0":
            roles["teacher"].load_state_dict(roles["student"].state_dict())
        return {"student": torch.optim.AdamW(roles["student"].parameters(), lr=1e-2)}

    def losses(self, batch: Batch, roles: Roles, ctx: Context) -> Iterator[tuple[str, LossOut]]:
        with torch.no_grad():
            aim = valid(self.toy, "teacher", roles, batch)
            if "target" in ctx.stage.ema:
                aim = 0.5 * (aim + valid(self.toy, "target", roles, batch))
        noise = torch.randn(batch["x"].shape, generator=ctx.generator("noise"))
        said = valid(self.toy, "student", roles, {**batch, "x": batch["x"] + self.noise * noise})
        yield "student", LossOut.mean("distance", (said - aim).square().mean(dim=1))

    def modules(self) -> Mapping[str, nn.Module]:
        return {}

    def state_dict(self) -> Mapping[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class Matching:
    """A critic learns to tell the student's rows from the teacher's, then the student learns to please it."""

    def __init__(self, toy: ToyAdapter, steps: int, dropout: float = 0.1) -> None:
        self.toy, self.steps, self.dropout = toy, steps, dropout
        self.critic: nn.Module = nn.Module()
        self.seen = 0

    def stages(self) -> Sequence[Stage]:
        return [Stage("matching", self.steps, frozenset({"student"}))]

    def begin(self, stage: Stage, roles: Roles, batch: Batch) -> Mapping[str, Optimizer]:
        with self.toy.streams.forked("critic"):
            self.critic = nn.Sequential(nn.Linear(CLASSES, 8), nn.GELU(), nn.Dropout(self.dropout), nn.Linear(8, 1))
        if self.toy.config.double:
            self.critic.double()
        return {
            "critic": torch.optim.Adam(self.critic.parameters(), lr=1e-2),
            "student": torch.optim.SGD(roles["student"].parameters(), lr=1e-2, momentum=0.9),
        }

    def losses(self, batch: Batch, roles: Roles, ctx: Context) -> Iterator[tuple[str, LossOut]]:
        with torch.no_grad():
            real = valid(self.toy, "teacher", roles, batch)
        made = valid(self.toy, "student", roles, batch)
        doubt = F.softplus(self.critic(made.detach())) + F.softplus(-self.critic(real))
        before = self._weights()
        yield "critic", LossOut.mean("critic", doubt.squeeze(1))
        self.stepped = not torch.equal(before, self._weights())  # the engine has taken the critic's step by now
        if ctx.micro == 0:
            self.seen += 1
        yield "student", LossOut.mean("student", F.softplus(-self.critic(made)).squeeze(1))

    def _weights(self) -> Tensor:
        return torch.cat([p.detach().clone().flatten() for p in self.critic.parameters()])

    def modules(self) -> Mapping[str, nn.Module]:
        return {"critic": self.critic}

    def state_dict(self) -> Mapping[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.seen = state["seen"]


STEPS, STAGES = 4, 3
METHODS: dict[str, tuple[Callable[[ToyAdapter], Method], int]] = {
    "progressive": (lambda toy: Progressive(toy, STEPS, STAGES), STEPS * STAGES),
    "matching": (lambda toy: Matching(toy, 6), 6),
}
BOTH = pytest.mark.parametrize("name", list(METHODS))


def made(folder: Path, name: str, **more: Any) -> Engine:
    double = bool(more.pop("double", False))
    stop = more.pop("stop", None)
    toy = adapter(batch_size=6, double=double)
    models = roles(toy, student={"width": 24, "dropout": 0.0 if double else 0.2})
    method = METHODS[name][0](toy)
    config = Train(steps=STEPS, batch_size=6, schedule=Schedule(), checkpoint_every=1, **more)
    built = engine(folder, config, toy=toy, models=models, method=method)
    if stop is not None:
        stop_after(built, stop)
    return built


def weights(built: Engine) -> dict[str, str]:
    owners = {**built.roles, **built.method.modules()}
    return {name: digest(model.state_dict().items()) for name, model in owners.items()}


@BOTH
def test_runs_and_learns(tmp_path: Path, name: str) -> None:
    built = made(tmp_path, name)
    before = weights(built)
    at = built.fit()
    after = weights(built)
    assert at.total == METHODS[name][1]
    assert after["student"] != before["student"]
    assert (after["teacher"] != before["teacher"]) == (name == "progressive")


def test_roles_swap_between_stages(tmp_path: Path) -> None:
    built = made(tmp_path, "progressive")
    students, optimizers, targets = [], [], []
    begin = built.method.begin

    def watched(stage: Stage, models: Roles, batch: Batch) -> Mapping[str, Optimizer]:
        students.append(digest(models["student"].state_dict().items()))
        optimizers.append(begin(stage, models, batch))
        targets.append("target" in models)
        assert not any(p.requires_grad for p in models["teacher"].parameters())
        return optimizers[-1]

    built.method.begin = watched
    built.fit()
    assert digest(built.roles["teacher"].state_dict().items()) == students[-1]
    assert len({id(o["student"]) for o in optimizers}) == STAGES
    assert all(s["step"] == STEPS for o in optimizers for s in o["student"].state.values())
    assert targets == [False, True, True]
    assert not built.roles["target"].training


def test_a_target_starts_as_what_begin_made_of_its_source(tmp_path: Path) -> None:
    class Restarted(Progressive):
        def begin(self, stage: Stage, roles: Roles, batch: Batch) -> Mapping[str, Optimizer]:
            for parameter in roles["student"].parameters():
                nn.init.constant_(parameter, 0.25)
            return super().begin(stage, roles, batch)

        def losses(self, batch: Batch, roles: Roles, ctx: Context) -> Iterator[tuple[str, LossOut]]:
            if "target" in roles and ctx.step == 0 and ctx.stage.name == "stage1":
                assert all((p == 0.25).all() for p in roles["target"].parameters())
            return super().losses(batch, roles, ctx)

    built = made(tmp_path, "progressive")
    built.method.__class__ = Restarted
    built.fit()


def test_turns_alternate_and_leave_the_others_alone(tmp_path: Path) -> None:
    built = made(tmp_path, "matching")
    built.fit()
    assert built.method.stepped and built.method.seen == 6
    mine = {id(p) for p in built.method.critic.parameters()}
    assert {id(p) for g in built.optimizers["critic"].param_groups for p in g["params"]} == mine


@BOTH
def test_accumulation_gives_the_same_weights(tmp_path: Path, name: str) -> None:
    """Without noise and dropout, which are drawn for each micro-batch."""

    def trained(accumulate: int) -> Mapping[str, Tensor]:
        built = made(tmp_path / str(accumulate), name, accumulate=accumulate, double=True)
        built.method.noise = built.method.dropout = 0.0
        built.fit()
        return built.roles["student"].state_dict()

    one, three = trained(1), trained(3)
    for key, value in one.items():
        torch.testing.assert_close(three[key], value, rtol=1e-8, atol=1e-10)


@BOTH
@pytest.mark.parametrize("accumulate", [1, 2])
def test_resumes_to_the_bit_from_any_step(tmp_path: Path, name: str, accumulate: int) -> None:
    """In the middle of any stage, and between two."""
    whole = made(tmp_path / "whole", name, accumulate=accumulate)
    whole.fit()
    expected = weights(whole)
    for step in range(1, METHODS[name][1] + 1):
        again = resumed(lambda step=step: made(tmp_path / f"stopped{step}", name, accumulate=accumulate), step)
        assert weights(again) == expected, step
        if name == "matching":
            assert again.method.seen == 6


@BOTH
def test_probe_sees_every_turn(tmp_path: Path, name: str) -> None:
    built = made(tmp_path, name)
    source = built.source
    batch = source.collate([source.sample(i, 0) for i in range(6)])
    built.method.begin(built.method.stages()[0], built.roles, batch)
    found = probe(built.method, built.roles, batch, built.streams)
    assert found.keys() == ({"critic", "student"} if name == "matching" else {"student"})


def staged(folder: Path, stop: int | None = None) -> tuple[Engine, list[tuple[str, str]], list[str]]:
    """Each stage does best at its second step of four; what it leaves, and what the next one's teacher is."""
    built = made(folder, "progressive", eval_every=1, stop=stop)
    built.evaluate = lambda model: {"loss": float(abs(built.at.step - 2))}
    left: list[tuple[str, str]] = []
    taught: list[str] = []
    built.finished = lambda stage, model: left.append((stage.name, digest(model.state_dict().items())))
    begin = built.method.begin

    def watched(stage: Stage, models: Roles, batch: Batch) -> Mapping[str, Optimizer]:
        out = begin(stage, models, batch)
        taught.append(digest(models["teacher"].state_dict().items()))
        return out

    built.method.begin = watched
    return built, left, taught


def test_every_stage_ends_with_its_own_best_which_teaches_the_next(tmp_path: Path) -> None:
    built, left, taught = staged(tmp_path)
    built.fit()
    assert [name for name, _ in left] == ["stage0", "stage1", "stage2"]
    assert taught[1:] == [weights_ for _, weights_ in left[:-1]]
    for name, weights_ in left:
        tensors, state = built.checkpoints.read(built.checkpoints.best(name))
        assert digest(tensors.items()) == weights_ and state["loss"] == 0


def test_the_best_of_a_stage_survives_a_stop_anywhere(tmp_path: Path) -> None:
    """Also where the next stage has a best already, and no checkpoint yet."""
    whole, left, _ = staged(tmp_path / "whole")
    whole.fit()
    for step in range(1, STEPS * STAGES):
        with pytest.raises(Interrupted):
            staged(tmp_path / str(step), stop=step)[0].fit()
        again, later, _ = staged(tmp_path / str(step))
        again.fit(resume=True)
        assert weights(again) == weights(whole) and later == left[-len(later) :], step


def test_a_best_of_the_next_stage_is_not_taken_for_this_one(tmp_path: Path) -> None:
    """Killed right after the second stage's first evaluation: the last checkpoint is the first stage's end."""
    whole, _, _ = staged(tmp_path / "whole")
    whole.fit()
    killed, _, _ = staged(tmp_path / "killed")
    save = killed.save

    def once() -> None:
        if killed.at.stage == 1:
            raise RuntimeError("killed")
        save()

    killed.save = once
    with pytest.raises(RuntimeError, match="killed"):
        killed.fit()
    assert killed.checkpoints.best("stage1").exists() and killed.at.stage == 1
    again, _, _ = staged(tmp_path / "killed")
    again.fit(resume=True)
    assert weights(again) == weights(whole)
