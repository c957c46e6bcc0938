"""Reflow: the teacher's own pairs of noise and sample, between which lines are straighter than its paths.

Rectified flow (Liu et al., 2023): a student learns the velocity along lines between what the teacher starts from and
where it arrives. Lines of pairs that a path joins cross less, so the student's own paths bend less, and one that hardly
bends is gone in few steps. That holds of any process, whose noisy sample is a point of such a line (see `intervals`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from xmodal_kd.adapter.adapter import Batch, Strict
from xmodal_kd.training.method import METHODS, Context, Roles, Stage

from ..models.denoiser import Sampling
from .few_step import STUDENT, FewStep, FewStepParams, denoisers
from .intervals import check_divides
from .pairs import Pairs, draw_pairs

ROUND, DISTIL = "reflow-", "distil"


class ReflowParams(FewStepParams):
    steps: int = Field(1, ge=1)
    """Of the student; must divide the teacher's timesteps."""
    rounds: int = Field(1, ge=1)
    """Of pairs, each round's from the model that the round before it left, in the teacher's number of steps."""
    pairs: int = Field(4096, ge=2)
    """Noise and samples a round, no more than it sees; held in memory and in checkpoints."""
    distil: float = Field(1.0, ge=0)
    """Length of the last stage, at the times of the student's sampler alone, over that of a round; 0: none."""


@METHODS.register("reflow")
class Reflow(FewStep):
    """Rectified flow's reflow (Liu et al., 2023): straight lines between the teacher's own noise and samples."""

    Params: ClassVar[type[Strict]] = ReflowParams

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        #: There are none before a stage begins.
        self.pairs: nn.Module = nn.Module()

    def check(self, roles: Mapping[str, nn.Module]) -> None:
        """Also of the steps."""
        super().check(roles)
        check_divides(denoisers(roles)[0].process, self.params.steps)

    def own_stages(self) -> Sequence[Stage]:
        names = [f"{ROUND}{i + 1}" for i in range(self.params.rounds)]
        stages = [Stage(name, self.train.steps, STUDENT, saves=frozenset({"teacher"})) for name in names]
        if last := round(self.params.distil * self.train.steps):
            stages.append(Stage(DISTIL, last, STUDENT, saves=frozenset({"teacher"})))
        return stages

    def prepare(self, stage: Stage, roles: Roles) -> None:
        teacher, student = denoisers(roles)
        if stage.name != self.own_stages()[0].name:
            after = copy.deepcopy(student).eval().requires_grad_(False)
            after.sampling = teacher.sampling
            roles["teacher"] = after
        student.sampling = Sampling("ddim", self.params.steps)

    def begin(self, stage: Stage, roles: Roles, batch: Batch) -> Mapping[str, Optimizer]:
        optimizers = super().begin(stage, roles, batch)
        if stage in self.own_stages():
            count = min(self.params.pairs, stage.steps * len(batch["x"]))  # a rehearsal sees few
            generator = self.distil.streams.torch("pairs", stage.name)
            self.pairs = draw_pairs(denoisers(roles)[0], count, batch["x"], generator, self.prompts())
        return optimizers

    def values(self, batch: Batch, roles: Roles, ctx: Context) -> Tensor:
        student, pairs = denoisers(roles)[1], self.pairs
        assert isinstance(pairs, Pairs)
        process, u = student.process, batch["u"]
        noise, x, labels = pairs.some(len(u), ctx.generator("pairs"))
        if ctx.stage.name == DISTIL:
            times = torch.tensor(process.grid(self.params.steps)[:-1], device=u.device)
            t = times[(u * len(times)).long().clamp(max=len(times) - 1)]
        else:
            t = (u * process.T).long().clamp(max=process.T - 1)
        with ctx.timer.time("student"):
            said = student.predict(process.natural, process.add_noise(x, noise, t), t, labels)
        return (said - process.truth(process.natural, x, noise, t)).flatten(1).square().mean(dim=1)

    def modules(self) -> Mapping[str, nn.Module]:
        return {**super().modules(), "pairs": self.pairs}


__all__ = ["Reflow", "ReflowParams"]
