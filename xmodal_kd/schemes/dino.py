"""Self-distillation without labels: crops of a sample are told by what an average of the student says of others."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from accelerate.utils import send_to_device
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from ..adapter.adapter import Adapter, Batch, Source, Strict
from ..losses.base import full_precision
from ..objective.parts import LossOut
from ..recipe.recipe import Recipe
from ..runtime.errors import UserError
from ..signals.signals import Signals
from ..training.method import Context, Roles, Stage, known_as
from ..training.optim import build_optimizer
from .base import SCHEMES
from .batches import recorded
from .rows import pooled
from .self_distillation import SelfTeaching

#: Role of the average of the student's weights.
MEAN = "mean"
Share = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]


class DinoParams(Strict):
    on: str
    """Module whose output, averaged over a sample's rows, is the representation; what lies behind it learns labels."""
    prototypes: Count = 256
    """K, outputs of the projection; 65,536 in the paper."""
    hidden: Count = 128
    """Width of the projection's two hidden layers; 2,048 in the paper."""
    bottleneck: Count = 32
    """Of its third, whose rows have length 1; 256 in the paper."""
    crops: tuple[Share, Share] = (0.7, 1.0)
    """Shares of an input's sides that the two large crops have, resized to the whole."""
    local: int = Field(4, ge=0)
    """Small crops, which the student alone sees; 8 in the paper."""
    local_crops: tuple[Share, Share] = (0.4, 0.7)
    """Shares of the sides that these have."""
    local_size: Share = 0.75
    """What small crops are resized to: a share of the input's sides, rounded up."""
    temperature: float = Field(0.1, gt=0)
    """Of the student."""
    teacher_temperature: float = Field(0.04, gt=0)
    """Of the average."""
    momentum: float = Field(0.996, ge=0, lt=1)
    """Of the average at the beginning; it rises to 1 by a cosine. 0.99 for short trainings."""
    centre: float = Field(0.9, ge=0, lt=1)
    """Momentum of the centre."""
    neighbours: int = Field(20, ge=0)
    """Training samples whose classes vote on a test sample at the end; 0: none do."""
    whole: bool = False
    """Whether labels reach the layers up to `on`, too."""

    @model_validator(mode="after")
    def _check_order(self) -> DinoParams:
        in_order(self, "crops", "local_crops")
        return self


def in_order(params: Strict, *keys: str) -> None:
    """Raises ``ValueError`` for shares of which the larger one stands first."""
    for key in keys:
        low, high = getattr(params, key)
        if low > high:
            raise ValueError(f"{key}: give the smaller share first, got {low} and {high}")


class Projection(nn.Module):
    """Three layers, rows of length 1, and a layer whose weights are directions: ``(b, c)`` to ``(b, k)``."""

    def __init__(self, width: int, params: DinoParams) -> None:
        super().__init__()
        layers = [nn.Linear(width, params.hidden), nn.GELU(), nn.Linear(params.hidden, params.hidden), nn.GELU()]
        self.layers = nn.Sequential(*layers, nn.Linear(params.hidden, params.bottleneck))
        self.directions = nn.Parameter(torch.randn(params.prototypes, params.bottleneck))
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, rows: Float[Tensor, "b c"]) -> Float[Tensor, "b k"]:
        rows = F.normalize(self.layers(rows), dim=1, eps=1e-12)
        return rows @ F.normalize(self.directions, dim=1).T


class Centre(nn.Module):
    """Of what the average says, with the checkpoint."""

    rows: Tensor

    def __init__(self, prototypes: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(prototypes))


@SCHEMES.register("dino")
class WithoutLabels(SelfTeaching):
    """Crops of a sample are told by what an average of the student says of other crops of it; no label is needed.

    Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", ICCV 2021: the mean over pairs of a
    large crop and any other of the cross-entropy H(softmax((g_t - c) / 0.04), softmax(g_s / 0.1)), g a projection of
    the representation at `on`, t the average of the student's weights, c the running mean of what it says. Crops are
    windows of a training sample as its modality augments it, without the paper's changes of colour; all layers of the
    projection learn from the first step. Beside it the objective trains what lies behind `on`, a linear head of
    classifiers, by the labels that there are, and reaches nothing before it: the accuracy is that of a linear probe,
    and the report has that of the nearest neighbours. The control learns from labels alone, with all of its layers. A
    term with a teacher compares with the average.
    """

    Params: ClassVar[type[Strict]] = DinoParams
    #: As recipes name it, for messages.
    name: ClassVar[str] = "dino"
    paper, year = "Emerging Properties in Self-Supervised Vision Transformers", 2021
    teaches_itself: ClassVar[bool] = True

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options if self.recipe_teacher == "needed" else options | {"teacher": MEAN})
        #: Projections of the student and of its average.
        self.heads = nn.ModuleDict()
        #: What is remembered of what the average says; made of a first batch.
        self.memory: Any = None
        #: What the average said in the step's micro-batches, on large crops.
        self.said: list[Float[Tensor, "b k"]] = []

    @classmethod
    def refuse(cls, recipe: Recipe) -> None:
        super().refuse(recipe)
        if recipe.balance.name != "fixed":
            raise UserError(f"scheme {cls.name}: balance {recipe.balance.name} does not know its crops: leave it out")

    @classmethod
    def source(cls, params: Any, source: Source, adapter: Adapter) -> Source:
        recorded(adapter, f"scheme {cls.name} cuts crops of inputs that have a class each")
        return source

    @classmethod
    def overview(
        cls, params: Any, adapter: Adapter, models: Mapping[str, nn.Module], folder: Path
    ) -> Mapping[str, Any]:  # fmt: skip
        """The accuracy of the nearest neighbours of test samples, by what each role says at `on`."""
        if params.neighbours == 0:
            return {}
        found = {role: by_neighbours(params, adapter, role, model) for role, model in models.items()}
        return {f"accuracy of {params.neighbours} nearest neighbours at {params.on}": found}

    def check(self, roles: Mapping[str, nn.Module]) -> None:
        super().check(roles)
        self.find(roles[self.role], [self.params.on])

    def stages(self) -> Sequence[Stage]:
        return [replace(stage, saves=frozenset({MEAN})) for stage in super().stages()]

    def begin(self, stage: Stage, roles: Roles, batch: Batch) -> Mapping[str, Optimizer]:
        if MEAN not in roles:
            roles[MEAN] = copy.deepcopy(roles[self.role]).eval().requires_grad_(False)
        super().begin(stage, roles, batch)  # builds the objective
        if not self.heads:
            with torch.no_grad(), self.streams.forked("dry run"):
                rows = pooled(self.forward_features(self.role, roles, batch, [self.params.on])[self.params.on])
                widths = rows.shape[1], *self.widths(roles, batch)
            with self.streams.forked("scheme", "projection"):
                head, memory = self.made(*widths)
            self.heads["student"] = head.to(rows)
            if memory is not None:
                self.heads["mean"] = copy.deepcopy(self.heads["student"]).requires_grad_(False)
                self.memory = memory.to(rows)
        learners = {known_as(self.role): roles[self.role], "objective": self.objective, "scheme": self.heads["student"]}
        return {self.role: build_optimizer(self.train.optimizer, learners)}

    def widths(self, roles: Roles, batch: Batch) -> Sequence[int]:
        """Of what else `made` wants to know, beside that of the representation."""
        return ()

    def made(self, *widths: int) -> tuple[nn.Module, nn.Module | None]:
        """The projection, and what is remembered of what the average of both says; None where it has none."""
        return Projection(widths[0], self.params), Centre(self.params.prototypes)

    def modules(self) -> Mapping[str, nn.Module]:
        return {**super().modules(), "heads": self.heads, **({} if self.memory is None else {"memory": self.memory})}

    def losses(self, batch: Batch, roles: Roles, ctx: Context) -> Iterator[tuple[str, LossOut]]:
        first = ctx.micro < ctx.ranks.world  # the first micro-batch of a step
        if first:
            self.said = []
        out = self.compared(batch, roles, ctx)
        with ctx.timer.time("loss"):
            with cut(not self.params.whole, roles[self.role], self.params.on):
                labelled = self.forward_role(self.role, roles, batch)
            out += self.objective(labelled, self._teaching(self.role, roles, batch), step=ctx.step, ranks=ctx.ranks)
        yield self.role, out
        if first:  # the student's step is done
            self.follow(roles, ctx)
        self.settle(roles, ctx)

    def compared(self, batch: Batch, roles: Roles, ctx: Context) -> LossOut:
        """What crops are worth without labels."""
        with ctx.timer.time("student"):
            views = [self.crop(batch, ctx, number) for number in range(2 + self.params.local)]
            student = [self.projected("student", self.role, roles, view) for view in views]
        with ctx.timer.time("teacher"), torch.no_grad():
            teacher = [self.projected("mean", MEAN, roles, view) for view in views[:2]]
            self.said += teacher
        with ctx.timer.time("loss"):
            return LossOut.mean("dino", recognised(student, teacher, self.memory.rows, self.params))

    def projected(self, side: str, role: str, roles: Roles, batch: Batch) -> Tensor:
        """``(b, k)`` of a role's crops."""
        said: Signals = self.adapter.signals(role, roles[role], batch, [self.params.on])
        return full_precision(self.heads[side](pooled(said[self.params.on])))  # type: ignore[no-any-return]

    def crop(self, batch: Batch, ctx: Context, number: int = 0) -> Batch:
        """A crop of every sample: two large ones, then small ones; of (step, sample), whatever the micro-batch."""
        key, _ = recorded(self.adapter, f"scheme {self.name}")
        x, large = batch[key], number < 2
        low, high = self.params.crops if large else self.params.local_crops
        path = ("crops", ctx.stage.name, ctx.step, number)
        draws = [ctx.streams.numpy(*path, i).random(4).tolist() for i in batch["ids"].tolist()]
        drawn = torch.tensor(draws, dtype=torch.float64).reshape(-1, 4)
        share = 1.0 if large else self.params.local_size
        size = tuple(math.ceil(share * side) for side in x.shape[-2:])
        return self.adapter.given(cropped(x, low + (high - low) * drawn[:, :2], drawn[:, 2:], size))

    def momentum(self, ctx: Context) -> float:
        """Of the average in this step."""
        return rising(ctx.step, ctx.stage.steps, self.params.momentum)

    @torch.no_grad()
    def follow(self, roles: Roles, ctx: Context) -> None:
        """The average and its projection move towards the student's, and what the average said is remembered."""
        averaged(roles[MEAN], roles[self.role], self.momentum(ctx))
        if self.memory is not None:
            averaged(self.heads["mean"], self.heads["student"], self.momentum(ctx))
            self.remember(torch.cat(self.said), ctx)

    def remember(self, said: Float[Tensor, "n k"], ctx: Context) -> None:
        """The centre moves towards the mean of what was said on all ranks."""
        mean_row = ctx.ranks.sum(said.sum(dim=0)) / ctx.ranks.sum_number(len(said))
        self.memory.rows.lerp_(mean_row.to(self.memory.rows), 1 - self.params.centre)


def averaged(mean: nn.Module, source: nn.Module, momentum: float, shared: Sequence[str] = ()) -> None:
    """Move the weights of `mean` towards those of `source`; those of modules at `shared` are the source's own."""
    theirs = source.state_dict()
    for name, value in mean.state_dict().items():
        if value.is_floating_point() and not any(name.startswith(f"{path}.") for path in shared):
            value.lerp_(theirs[name], 1 - momentum)
        else:
            value.copy_(theirs[name])


def recognised(
    student: Sequence[Float[Tensor, "b k"]], teacher: Sequence[Float[Tensor, "b k"]], centre: Float[Tensor, " k"],
    params: DinoParams,
) -> Float[Tensor, " b"]:  # fmt: skip
    """The mean over pairs of a crop of the teacher's and another one of the student's of their cross-entropy."""
    log_q = [(one / params.temperature).log_softmax(dim=1) for one in student]
    found = []
    for i, said in enumerate(teacher):
        p = ((said - centre) / params.teacher_temperature).softmax(dim=1)
        found += [-(p * mine).sum(dim=1) for j, mine in enumerate(log_q) if j != i]
    return torch.stack(found).mean(dim=0)


def rising(step: int, steps: int, first: float) -> float:
    """The average's momentum: from `first` to 1 by a cosine."""
    return 1.0 + 0.5 * (first - 1.0) * (1 + math.cos(math.pi * step / steps))


def cropped(x: Tensor, shares: Float[Tensor, "b 2"], places: Float[Tensor, "b 2"], size: tuple[int, ...]) -> Tensor:
    """A window of each sample ``(b, ..., h, w)``, resized to `size` by linear interpolation.

    Args:
        shares: of height and width that the window has.
        places: where it lies: 0 at the upper left, 1 at the lower right.
    """
    maps = x.reshape(len(x), -1, *x.shape[-2:])
    room = (1 - shares) * (2 * places - 1)
    theta = torch.zeros(len(x), 2, 3, dtype=torch.float64)
    theta[:, 0, 0], theta[:, 1, 1] = shares[:, 1], shares[:, 0]
    theta[:, 0, 2], theta[:, 1, 2] = room[:, 1], room[:, 0]
    grid = F.affine_grid(theta.to(maps), [len(x), maps.shape[1], *size], align_corners=False)
    out = F.grid_sample(maps, grid, padding_mode="border", align_corners=False)
    return out.reshape(*x.shape[:-2], *size)


@contextmanager
def cut(cuts: bool, model: nn.Module, path: str) -> Iterator[None]:
    """Where `cuts`, nothing flows back through what the module at `path` says inside the block."""
    if not cuts:
        yield
        return
    hook = model.get_submodule(path).register_forward_hook(lambda module, given, said: said.detach())
    try:
        yield
    finally:
        hook.remove()


# ---------------------------------------------------------------- nearest neighbours


@torch.no_grad()
def by_neighbours(params: Any, adapter: Adapter, role: str, model: nn.Module) -> float:
    """Share of the test samples whose class is that of most of their nearest training samples at ``params.on``, by
    cosine."""
    keys, classes = represented(params, adapter, role, model, "train")
    queries, true = represented(params, adapter, role, model, "test")
    nearest = (queries @ keys.T).topk(min(params.neighbours, len(keys)), dim=1).indices
    votes = F.one_hot(classes[nearest], int(max(classes.max(), true.max())) + 1).sum(dim=1)
    return float((votes.argmax(dim=1) == true).float().mean())


def represented(
    params: Any, adapter: Adapter, role: str, model: nn.Module, split: str
) -> tuple[Float[Tensor, "n c"], Int[Tensor, " n"]]:
    """Representations of length 1 of a split's samples, and their classes."""
    source, device = adapter.data(split), next(model.parameters()).device
    rows, labels = [], []
    for first in range(0, len(source), adapter.batch_size):
        numbers = range(first, min(first + adapter.batch_size, len(source)))
        batch = send_to_device(source.collate([source.sample(i, 0) for i in numbers]), device)
        said = adapter.signals(role, model, batch, [params.on])
        rows.append(F.normalize(pooled(said[params.on]), dim=1))
        labels.append(said.rows("labels"))
        if len(rows[-1]) != len(labels[-1]):
            raise UserError("scheme: a sample has several labels, which no neighbour can vote on: neighbours: 0")
    return torch.cat(rows), torch.cat(labels)


__all__ = ["Projection", "WithoutLabels", "averaged", "by_neighbours", "cropped", "recognised", "rising"]
