"""Progressive adversarial distillation (SDXL-Lightning: Lin, Wang and Yang, 2024): rounds divide a sampler's steps.

A step of the student is to lead where several of its teacher's do. The first round compares the two ends by their
square (eq. 16). Then a discriminator, which begins as the pretrained network, tells them apart: shown where the step
began as well, so that the student keeps to the teacher's flow (eqs. 17 to 22), and then without it (eq. 23), as no
student of few steps can follow every turn of the flow. Times are those of a ladder: rising, the clean sample's -1
first.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from math import lcm
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from xmodal_kd.adapter.adapter import Batch, Strict
from xmodal_kd.objective.parts import LossOut
from xmodal_kd.recipe.recipe import Share
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.training.method import METHODS, Context, Roles, Stage
from xmodal_kd.training.modes import frozen
from xmodal_kd.training.optim import build_optimizer, scaling

from ..data.condition import Condition
from ..models.asked import is_told
from ..models.denoiser import Denoiser, Sampling
from ..models.process import Process, expand
from ..models.solvers import ddim_step
from .discriminator import PairDiscriminator, read_at
from .few_step import FEATURES, STUDENT, FewStep, FewStepParams, denoisers, masked, same_network
from .progressive import PREFIX, check_grids

#: The stage before the last one of a round: its discriminator sees where a step began.
FLOW = "flow-"
#: The role of the teacher's own teacher.
EARLIER = "teacher-earlier"
#: Steps of students that learn at more times than they are sampled at, and from an earlier teacher.
FEWEST = 2
#: Steps from which a round divides them by two and no longer by four.
MANY = 8


class LightningParams(FewStepParams):
    rounds: tuple[int, ...] | None = None
    """Steps of each round's student, a divisor of those before; None: ``data.sampling.steps`` over 4 down to 8, then
    over 2 down to 1."""
    mse: int = Field(1, ge=0)
    """How many of the first rounds compare ends by their square, without a discriminator."""
    relaxed: float = Field(0.5, ge=0)
    """Length of the stage whose discriminator does not see where a step began, over ``train.steps``; 0: none."""
    skip: bool = True
    """Whether students of one and two steps learn in that stage from their teacher's own teacher."""
    starts: int = Field(4, ge=1)
    """Times at which students of one and two steps learn."""
    levels: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (0.01, 0.25, 0.5, 0.75)
    """Shares of the timesteps at which the discriminator looks at what a student of one step makes; none: unnoised."""
    lowest: float = Field(5.0, gt=0)
    """How much oftener the first of them is drawn than another in the stage of `relaxed`."""
    at: str = "net.mid_block"
    """Module whose output is the discriminator's backbone: the teacher's where the student has its network, else that
    of the student as it is when a stage begins."""
    critic: int = Field(1, ge=1)
    """Steps of the discriminator for one of the student."""
    lr: float = Field(0.1, gt=0)
    """Learning rate of stages with a discriminator, over that of the others."""
    critic_lr: float = Field(1.0, gt=0)
    """The discriminator's, over that of its student."""
    betas: tuple[Share, Share] = (0.0, 0.99)
    """Of Adam in these stages."""


class Steps(NamedTuple):
    """How a stage's steps lie on its ladder.

    Attributes:
        fine: rungs of the ladder.
        starts: at how many of them, equally far apart, a student's step may begin.
        stride: rungs of one of its steps.
        taught: rungs of one of the teacher's.
    """

    fine: int
    starts: int
    stride: int
    taught: int

    @property
    def several(self) -> int:
        """Steps of the teacher for one of the student."""
        return self.stride // self.taught


@METHODS.register("lightning")
class Lightning(FewStep):
    """Progressive adversarial distillation (SDXL-Lightning: Lin et al., 2024): a discriminator of a step's two ends."""

    Params: ClassVar[type[Strict]] = LightningParams

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        #: There is none in a round without.
        self.judge: nn.Module = nn.Module()
        #: The round that the roles are in, and the first teacher.
        self.round = 0
        self.pretrained: Denoiser | None = None

    def check(self, roles: Mapping[str, nn.Module]) -> None:
        """Also of the grids of all rounds, and of the module that is read, before anything is trained."""
        super().check(roles)
        process = denoisers(roles)[0].process
        for stage in self.own_stages():
            how = self.steps(stage)
            for rungs in (how.starts, how.fine // how.stride, how.fine // how.taught):
                check_grids(process, rungs, how.fine // rungs)
        read_at(denoisers(roles)[1], self.params.at)

    # ---------------------------------------------------------------- rounds and their stages

    def counts(self) -> list[int]:
        """Steps of the first teacher, and of each round's student."""
        sampling = self.adapter.config.sampling  # type: ignore[attr-defined]
        if sampling.solver != "ddim":
            raise UserError(f"data.sampling.solver: lightning follows ddim, not {sampling.solver}: set it to ddim")
        counts = [int(sampling.steps), *(self.params.rounds or usual_rounds(sampling.steps))]
        for before, after in pairwise(counts):
            if not 1 <= after < before or before % after:
                raise UserError(f"method.params.rounds: {after} steps do not divide {before}: take a divisor")
        if len(counts) == 1:
            raise UserError("data.sampling.steps: a teacher of one step has nothing to divide, two are needed")
        return counts

    def own_stages(self) -> Sequence[Stage]:
        found, length, saves = [], self.train.steps, frozenset({"teacher", EARLIER})
        for number, count in enumerate(self.counts()[1:]):
            names = {f"{PREFIX}{count}": length}
            if number >= self.params.mse and self.params.relaxed:
                names = {f"{FLOW}{count}": length, f"{PREFIX}{count}": max(1, round(self.params.relaxed * length))}
            found += [Stage(name, steps, STUDENT, saves=saves) for name, steps in names.items()]
        return found

    def number(self, stage: Stage) -> int:
        """Of its round, from 0."""
        return self.counts().index(students_steps(stage)) - 1

    def judges(self, stage: Stage) -> bool:
        """Whether it has a discriminator."""
        return bool(self.number(stage) >= self.params.mse)

    def relaxes(self, stage: Stage) -> bool:
        """Whether that does not see where a step began."""
        return self.judges(stage) and bool(self.params.relaxed) and stage.name.startswith(PREFIX)

    def skips(self, stage: Stage) -> bool:
        """Whether the teacher's own teacher teaches; the first teacher has none."""
        few = students_steps(stage) <= FEWEST and self.number(stage) > 0
        return few and bool(self.params.skip) and self.relaxes(stage)

    def steps(self, stage: Stage) -> Steps:
        count, number = students_steps(stage), self.number(stage)
        teacher = self.counts()[number - self.skips(stage)]
        starts = count if count > FEWEST else lcm(count, self.params.starts)
        fine = lcm(starts, teacher)
        return Steps(fine, starts, fine // count, fine // teacher)

    def prepare(self, stage: Stage, roles: Roles) -> None:
        teacher, student = denoisers(roles)
        self.pretrained = self.pretrained or teacher
        while self.round < self.number(stage):  # several where a run is resumed, whose weights are put back then
            self.round += 1
            after = copy.deepcopy(student).eval().requires_grad_(False)
            roles[EARLIER], roles["teacher"] = roles["teacher"], after
        if students_steps(stage) > FEWEST:
            roles.pop(EARLIER, None)  # which none of this round's stages asks
        student.sampling = Sampling("ddim", students_steps(stage))

    def begin(self, stage: Stage, roles: Roles, batch: Batch) -> Mapping[str, Optimizer]:
        optimizers = super().begin(stage, roles, batch)
        if stage.name == FEATURES or not self.judges(stage):
            return optimizers
        config = self.train.optimizer
        config = config.model_copy(update={"lr": config.lr * self.params.lr, "betas": self.params.betas})
        self.judge = judge = self.discriminator(denoisers(roles)[1], stage, batch)
        critic = scaling(config, lambda pattern: False)  # which no pattern of lr_scale knows
        critic = critic.model_copy(update={"lr": config.lr * self.params.critic_lr})
        return {
            "student": build_optimizer(config, {"student": roles["student"]}),
            "discriminator": build_optimizer(critic, {"discriminator": judge}),
        }

    def discriminator(self, student: Denoiser, stage: Stage, batch: Batch) -> PairDiscriminator:
        """A new one for each stage, which begins as the pretrained network, unguided unless that is told the scale."""
        assert self.pretrained is not None
        own = same_network(self.pretrained, student, prediction=False)
        backbone = copy.deepcopy(self.pretrained if own else student)
        backbone.guidance = backbone.guidance if is_told(backbone.net) else 1.0
        with self.distil.streams.forked("discriminator", stage.name):
            return PairDiscriminator(
                backbone, self.params.at, batch["x"], batch.get("labels"), pair=not self.relaxes(stage)
            )

    def modules(self) -> Mapping[str, nn.Module]:
        return {**super().modules(), "judge": self.judge}

    # ---------------------------------------------------------------- what is minimised

    def turns(self, batch: Batch, roles: Roles, ctx: Context) -> Iterator[tuple[str, LossOut]]:
        """The discriminator's turns, each on steps of its own, then the student's."""
        if not self.judges(ctx.stage):
            yield from super().turns(batch, roles, ctx)
            return
        student, labels = denoisers(roles)[1], batch.get("labels")
        for turn in range(self.params.critic):
            z, rung = self.begun(student.process, batch, ctx, turn)
            with ctx.timer.time("teacher"), torch.no_grad():
                real = self.taught(roles, z, rung, labels, ctx.stage)
            with ctx.timer.time("student"), torch.no_grad():
                made = self.arrived(student, z, rung, labels, ctx.stage)
            with ctx.timer.time("critic"):
                told = self.logits([real, made], z, rung, labels, student.process, ctx, turn)
                values = F.softplus(-told[0]) + F.softplus(told[1])
            yield "discriminator", masked("discriminator", values)
        z, rung = self.begun(student.process, batch, ctx, "student")
        with ctx.timer.time("student"):
            made = self.arrived(student, z, rung, labels, ctx.stage)
        with ctx.timer.time("critic"), frozen(self.judge):
            told = self.logits([made], z, rung, labels, student.process, ctx, "student")
        yield "student", masked("lightning", F.softplus(-told[0]))

    def values(self, batch: Batch, roles: Roles, ctx: Context) -> Tensor:
        """``(b,)`` mean squares between the ends of both (eq. 16), of rounds without a discriminator."""
        student, labels = denoisers(roles)[1], batch.get("labels")
        z, rung = self.begun(student.process, batch, ctx, "student")
        with ctx.timer.time("teacher"), torch.no_grad():
            target = self.taught(roles, z, rung, labels, ctx.stage)
        with ctx.timer.time("student"):
            made = self.arrived(student, z, rung, labels, ctx.stage)
        return (made - target).flatten(1).square().mean(dim=1)

    def begun(self, process: Process, batch: Batch, ctx: Context, turn: int | str) -> tuple[Tensor, Tensor]:
        """Where a step begins: z ``(b, ...)`` and its rung ``(b,)``. At the highest it is noise alone (eq. 24)."""
        x, noise, u = batch["x"], batch["noise"], batch["u"]
        if turn != "student":
            noise = torch.randn(x.shape, generator=ctx.generator("start", turn)).to(x)
            u = torch.rand(len(x), generator=ctx.generator("rung", turn)).to(x.device)
        how = self.steps(ctx.stage)
        rung = ((u * how.starts).long().clamp(max=how.starts - 1) + 1) * (how.fine // how.starts)
        z = process.add_noise(x, noise, ladder(process, how.fine, x.device)[rung])
        return torch.where(expand(rung == how.fine, z).bool(), process.start * noise, z), rung

    def taught(self, roles: Roles, z: Tensor, rung: Tensor, labels: Condition | None, stage: Stage) -> Tensor:
        """Where the teacher's steps lead that one of the student's is to be."""
        teacher, how = roles[EARLIER] if self.skips(stage) else roles["teacher"], self.steps(stage)
        assert isinstance(teacher, Denoiser)
        return walk(teacher, z, rung, how.fine, how.taught, how.several, labels)

    def arrived(self, student: Denoiser, z: Tensor, rung: Tensor, labels: Condition | None, stage: Stage) -> Tensor:
        """Where a step of the student leads."""
        how = self.steps(stage)
        return walk(student, z, rung, how.fine, how.stride, 1, labels)

    def logits(
        self, ends: Sequence[Tensor], z: Tensor, rung: Tensor, labels: Condition | None, process: Process, ctx: Context,
        turn: int | str,
    ) -> list[Tensor]:  # fmt: skip
        """``(b,)`` of each of the ends of a step from z, which are at one time, and made noisy alike (eqs. 25, 26)."""
        how, judge = self.steps(ctx.stage), self.judge
        assert isinstance(judge, PairDiscriminator)
        times = ladder(process, how.fine, z.device)
        after = times[(rung - how.stride).clamp(min=0)].clamp(min=0)
        if students_steps(ctx.stage) == 1 and self.params.levels:
            after, noise = self.levels(process, ctx, turn, z)
            ends = [process.add_noise(end, noise, after) for end in ends]
        start = judge.features(z, times[rung], labels) if judge.pair else None
        return [judge(judge.features(end, after, labels), start) for end in ends]

    def levels(self, process: Process, ctx: Context, turn: int | str, like: Tensor) -> tuple[Tensor, Tensor]:
        """Times ``(b,)`` at which the discriminator looks at clean samples, and the noise."""
        shares = torch.tensor(self.params.levels, dtype=torch.float64)
        weights = torch.ones(len(shares))
        weights[0] = self.params.lowest if self.relaxes(ctx.stage) else 1.0
        drawn = torch.multinomial(weights, len(like), replacement=True, generator=ctx.generator("level", turn))
        t = ((shares * process.T).round().long() - 1).clamp(0, process.T - 1)[drawn]
        return t.to(like.device), torch.randn(like.shape, generator=ctx.generator("noise", turn)).to(like)


def usual_rounds(steps: int) -> list[int]:
    """Steps over 4 while there are more than `MANY`, then over 2, down to 1."""
    found = []
    while steps > 1:
        if steps % (by := 4 if steps > MANY else 2):
            raise UserError(f"method.params.rounds: {by} does not divide {steps} steps: name those of all rounds")
        found.append(steps := steps // by)
    return found


def students_steps(stage: Stage) -> int:
    """Steps of the student that the stage trains."""
    return int(stage.name.rpartition("-")[2])


def ladder(process: Process, fine: int, device: torch.device) -> Tensor:
    """``(fine + 1,)`` times, rising from the clean sample's."""
    return torch.tensor(process.grid(fine)[::-1], device=device)


def walk(
    model: Denoiser, z: Tensor, rung: Tensor, fine: int, stride: int, steps: int, labels: Condition | None
) -> Tensor:  # fmt: skip
    """Where DDIM steps of `stride` rungs lead from z ``(b, ...)`` at rungs ``(b,)``: eqs. 7 to 15, none below 0."""
    times = ladder(model.process, fine, z.device)
    for _ in range(steps):
        after = (rung - stride).clamp(min=0)
        t = times[rung].clamp(min=0)
        moved = ddim_step(model.process, z, model.predict_x(z, t, labels), t, times[after])
        z, rung = torch.where(expand(rung > 0, z).bool(), moved, z), after
    return z


__all__ = ["Lightning", "LightningParams", "ladder", "usual_rounds", "walk"]
