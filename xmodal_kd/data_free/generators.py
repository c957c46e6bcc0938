"""Methods whose inputs come from a generator that learns beside the student: `dafl`, `zskt`, `dfad`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from ..adapter.adapter import Batch, Input, Strict
from ..losses.base import full_precision
from ..models.generator import Generator
from ..objective.parts import LossOut, Part
from ..runtime.errors import UserError
from ..signals.capture import find_modules
from ..training.method import METHODS, Context, Roles
from ..training.modes import frozen
from ..training.optim import build_optimizer, scaling
from .base import DataFree, MadeParams, like_of, over_ranks

#: Name of the generator among the method's modules and optimizers.
GENERATOR = "generator"


class GeneratorParams(MadeParams):
    noise: int = Field(64, ge=1, le=4096)
    """Numbers that the generator makes an input of."""
    width: int = Field(32, ge=1, le=4096)
    """Its channels."""
    generator_lr: float = Field(0.1, gt=0)
    """Its learning rate, as a multiple of the student's."""


class Generated(DataFree):
    """Base of the methods with a generator, which takes one step for ``student_steps`` of the student's."""

    Params: ClassVar[type[Strict]] = GeneratorParams

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        #: The generator; empty before the stage begins, and of the control.
        self.made = nn.ModuleDict()

    @classmethod
    def draws(cls, params: Any) -> int:
        """Inputs that a sample's numbers are drawn for."""
        return 1

    @classmethod
    def draw(cls, params: Any, asked: Input, generator: torch.Generator) -> dict[str, Tensor]:
        return {"z": torch.randn(cls.draws(params), params.noise, generator=generator)}

    def prepare(self, roles: Roles) -> Mapping[str, Optimizer]:
        asked = self.asked(self.adapter)
        if not self.made:
            with self.streams.forked(GENERATOR):
                self.made[GENERATOR] = Generator(
                    self.params.noise, asked.shape, asked.low, asked.high, width=self.params.width
                )
            self.made.to(like_of(roles[self.role]))
        config = scaling(self.train.optimizer, lambda _: False)
        config = config.model_copy(update={"lr": config.lr * self.params.generator_lr})
        return {GENERATOR: build_optimizer(config, {GENERATOR: self.made[GENERATOR]})}

    def modules(self) -> Mapping[str, nn.Module]:
        return {**super().modules(), "made": self.made}

    def inputs(self, batch: Batch, turn: int = 0) -> Tensor:
        generator = self.made[GENERATOR]
        found: Tensor = generator(batch["z"][:, turn].to(next(generator.parameters())))
        return found

    @abstractmethod
    def generator_loss(self, x: Tensor, roles: Roles, ctx: Context) -> LossOut:
        """What the generator minimises, with the graph to `x`."""

    def generates(self, batch: Batch, roles: Roles, ctx: Context, turn: int = 0) -> tuple[Tensor, LossOut]:
        """Inputs, and the generator's loss on them."""
        with ctx.timer.time("teacher"), frozen(roles[self.role]):
            x = self.inputs(batch, turn)
            return x, self.generator_loss(x, roles, ctx).named(GENERATOR)

    def both(self, x: Tensor, roles: Roles) -> tuple[Tensor, Tensor]:
        """Scores of teacher and student on the rows that are valid in both."""
        (theirs, one), (mine, other) = (self.said(role, roles, x)["logits"] for role in (self.teacher, self.role))
        held = one.mask & other.mask
        return full_precision(theirs[held]), full_precision(mine[held])


# ---------------------------------------------------------------- DAFL


class DaflParams(GeneratorParams):
    on: str = "embedding"
    """Module of the teacher whose activations are to be large: what its last layer is given."""
    one_hot: float = Field(1.0, ge=0)
    """Weight of the cross-entropy with the teacher's own answer."""
    activation: float = Field(0.1, ge=0)
    """Weight of the mean size of the activations; 0: `on` is not looked at."""
    entropy: float = Field(5.0, ge=0)
    """Weight of the entropy of the mean answer."""


@METHODS.register("dafl")
class Dafl(Generated):
    """A generator of inputs that the teacher is sure of, of all classes alike (Chen et al., 2019).

    "Data-Free Learning of Student Networks", ICCV 2019, eq. 4 to 7: one_hot CE(t, argmax t) - activation mean |f| -
    entropy H(mean of softmax t), with the release's reductions, by which its weights hold: the mean over all
    activations (the paper sums them of an input), the entropy by the decimal logarithm. The student is not asked. It
    learns on the same inputs by the terms with a teacher, kd at temperature 1 in the release.
    """

    Params: ClassVar[type[Strict]] = DaflParams
    paper, year = "Data-Free Learning of Student Networks", 2019

    def check(self, roles: Mapping[str, nn.Module]) -> None:
        super().check(roles)
        if self.params.activation > 0:
            try:
                found = find_modules(roles[self.teacher], self.params.on)
            except UserError as error:
                raise UserError(f"method.params.on: {error}, or set method.params.activation to 0") from None
            if len(found) > 1:
                raise UserError(f"method.params.on: {self.params.on!r} names {len(found)} modules of the teacher")

    def turns(self, batch: Batch, roles: Roles, ctx: Context) -> Iterator[tuple[str, LossOut]]:
        x, loss = self.generates(batch, roles, ctx)
        yield GENERATOR, loss
        for _ in range(self.params.student_steps):
            yield self.role, self.learns(x, roles, ctx)

    def generator_loss(self, x: Tensor, roles: Roles, ctx: Context) -> LossOut:
        features = (self.params.on,) if self.params.activation > 0 else ()
        said = self.said(self.teacher, roles, x, features)
        rows, layout = said["logits"]
        logits = full_precision(rows[layout.mask])
        sure = F.cross_entropy(logits, logits.argmax(dim=1), reduction="sum")
        parts = {"one_hot": Part(sure, float(len(logits)), self.params.one_hot, "rows")}
        if self.params.activation > 0:
            some, layout = said[self.params.on]
            size = full_precision(some[layout.mask]).abs()
            parts["activation"] = Part(-size.sum(), float(size.numel()), self.params.activation, "activations")
        if self.params.entropy > 0:
            mean = ctx.ranks.gather_rows(logits.softmax(dim=1)).mean(dim=0)
            value = torch.special.xlogy(mean, mean.clamp(min=1e-30)).sum() / torch.log(mean.new_tensor(10.0))
            parts["entropy"] = Part(*over_ranks(value, ctx.ranks), self.params.entropy, "batch")
        return LossOut(parts)


# ---------------------------------------------------------------- ZSKT


class ZsktParams(GeneratorParams):
    student_steps: int = Field(10, ge=1, le=1000)
    """Steps of the student for one of the generator, all on the same inputs."""


@METHODS.register("zskt")
class Zskt(Generated):
    """A generator of inputs on which student and teacher differ most (Micaelli & Storkey, 2019).

    "Zero-shot Knowledge Transfer via Adversarial Belief Matching", NeurIPS 2019, algorithm 1: the generator raises KL(t
    || s) in one step, the student lowers it in ten on the same inputs. Its terms are kd at temperature 1 and at of
    weight 250 on each pair of blocks. The sum over classes, as in eq. 1, where the release takes their mean.
    """

    Params: ClassVar[type[Strict]] = ZsktParams
    paper, year = "Zero-shot Knowledge Transfer via Adversarial Belief Matching", 2019

    def turns(self, batch: Batch, roles: Roles, ctx: Context) -> Iterator[tuple[str, LossOut]]:
        x, loss = self.generates(batch, roles, ctx)
        yield GENERATOR, loss
        for _ in range(self.params.student_steps):
            yield self.role, self.learns(x, roles, ctx)

    def generator_loss(self, x: Tensor, roles: Roles, ctx: Context) -> LossOut:
        teacher, student = self.both(x, roles)
        apart = F.kl_div(student.log_softmax(dim=1), teacher.log_softmax(dim=1), reduction="sum", log_target=True)
        return LossOut({"divergence": Part(-apart, float(len(teacher)), 1.0, "rows")})


# ---------------------------------------------------------------- DFAD


class DfadParams(GeneratorParams):
    student_steps: int = Field(5, ge=1, le=1000)
    """Steps of the student, each on new inputs, before one of the generator."""
    log: bool = False
    """Whether the generator raises log(1 + D) in the place of the distance D, as for segmentation."""


@METHODS.register("dfad")
class Dfad(Generated):
    """A generator of inputs on which the scores of student and teacher lie farthest apart (Fang et al., 2019).

    "Data-Free Adversarial Distillation", 2019, algorithm 1: five steps of the student, each on new inputs, then one of
    the generator, which raises D, the mean of |t - s| over all scores (eq. 4, over the classes as in the release). The
    student's term is logit_mae.
    """

    Params: ClassVar[type[Strict]] = DfadParams
    paper, year = "Data-Free Adversarial Distillation", 2019

    @classmethod
    def draws(cls, params: Any) -> int:
        return int(params.student_steps) + 1

    def turns(self, batch: Batch, roles: Roles, ctx: Context) -> Iterator[tuple[str, LossOut]]:
        for turn in range(self.params.student_steps):
            with ctx.timer.time("teacher"), torch.no_grad():
                x = self.inputs(batch, turn + 1)
            yield self.role, self.learns(x, roles, ctx)
        yield GENERATOR, self.generates(batch, roles, ctx)[1]

    def generator_loss(self, x: Tensor, roles: Roles, ctx: Context) -> LossOut:
        teacher, student = self.both(x, roles)
        apart = (teacher - student).abs()
        if not self.params.log:
            return LossOut({"distance": Part(-apart.sum(), float(apart.numel()), 1.0, "scores")})
        value = -ctx.ranks.gather_rows(apart.mean(dim=1)).mean().log1p()
        return LossOut({"distance": Part(*over_ranks(value, ctx.ranks), 1.0, "batch")})


__all__ = ["Dafl", "Dfad", "Generated", "GeneratorParams", "Zskt"]
