"""Self-distillation of hidden rows: what an average of the student says of the whole is told from a masked input."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..adapter.adapter import Adapter, Batch, Source, Strict
from ..objective.parts import LossOut, Part
from ..runtime.errors import UserError
from ..signals.signals import Signal, Signals
from ..training.method import Context, Roles
from .base import SCHEMES
from .dino import MEAN, Count, Share, WithoutLabels, averaged
from .rows import dense_rows

Norm = Literal["instance", "layer", "none"]
#: Added to variances.
EPS = 1e-5


class Data2vecParams(Strict):
    on: str
    """Module whose output is the representation; what lies behind it learns labels."""
    at: str
    """Module of which the student is given masked outputs, one row a frame or patch: a front end."""
    layers: tuple[str, ...] = Field(min_length=1)
    """Modules of the average whose outputs, normalised, are averaged: those of the last K blocks."""
    masked: Share = 0.65
    """About the share of an item's rows that spans would cover, did they not overlap."""
    span: Count = 10
    """Rows of a span."""
    norm: Norm = "instance"
    """Of each layer: over an item's rows, a channel each, or over the channels of a row."""
    norm_mean: Norm = "none"
    """Of their mean."""
    beta: float = Field(0.0, ge=0)
    """Where the squared error becomes an absolute one; 0: nowhere, and without the factor 1/2, as released."""
    scale: float | None = Field(None, gt=0)
    """Of the sum over channels; None: one over the root of their number."""
    momentum: tuple[Share, Share] = (0.999, 0.9999)
    """Of the average, at the beginning and from `anneal` on; 0.9 and 0.99 for short trainings."""
    anneal: Share = 0.075
    """Share of the steps in which it rises."""
    shared: tuple[str, ...] = ()
    """Modules that the average has of the student: a front end, places."""
    neighbours: int = Field(0, ge=0)
    """As `DinoParams.neighbours`, of modalities whose samples have a class."""
    whole: bool = False
    """As `DinoParams.whole`."""


class Prediction(nn.Module):
    """The student's linear map to targets, and what stands in the place of masked rows."""

    def __init__(self, width: int, masked: int, out: int) -> None:
        super().__init__()
        self.out = nn.Linear(width, out)
        self.instead = nn.Parameter(torch.rand(masked))

    def forward(self, rows: Float[Tensor, "n c"]) -> Float[Tensor, "n d"]:
        return self.out(rows)  # type: ignore[no-any-return]


@SCHEMES.register("data2vec")
class MaskedRows(WithoutLabels):
    """A masked input tells what an average of the student says inside of the whole one; no label is needed.

    Baevski et al., "data2vec: A General Framework for Self-supervised Learning in Speech, Vision and Language", ICML
    2022, as its release for speech: y is the mean over `layers` of the average's outputs, each normalised; in the
    student the rows that spans cover are one learned vector, where `at` puts them out; the loss is ``sum_c (W s - y)^2
    / sqrt(c)``, a mean over the covered rows, W a linear map of what the student says at `on`. The release takes of a
    block what its feed-forward part says before it is added; its front end and places are `shared`. Rows of `layers`
    are those of `at`, behind class tokens where there are more. Padding is in no norm, where the release has it in.

    As in `dino`, the objective trains what lies behind `on` by the labels that there are, of the input as it is, and
    reaches nothing before it; the control learns from labels alone, with all of its layers.
    """

    Params: ClassVar[type[Strict]] = Data2vecParams
    name: ClassVar[str] = "data2vec"
    paper = "data2vec: A General Framework for Self-supervised Learning in Speech, Vision and Language"
    year = 2022

    @classmethod
    def source(cls, params: Any, source: Source, adapter: Adapter) -> Source:
        return source

    def check(self, roles: Mapping[str, nn.Module]) -> None:
        super().check(roles)
        self.find(roles[self.role], [self.params.at, *self.params.layers, *self.params.shared])

    def widths(self, roles: Roles, batch: Batch) -> Sequence[int]:
        said = self.forward_features(MEAN, roles, batch, [self.params.at, *self.params.layers])
        found = [said.rows(path).shape[1] for path in self.params.layers]
        if len(set(found)) > 1:
            raise UserError(
                f"scheme data2vec: layers of {', '.join(map(str, found))} channels have no mean: name some of one width"
            )
        return [said.rows(self.params.at).shape[1], found[0]]

    def made(self, *widths: int) -> tuple[nn.Module, nn.Module | None]:
        return Prediction(*widths), None

    def compared(self, batch: Batch, roles: Roles, ctx: Context) -> LossOut:
        layers, head = self.params.layers, self.heads["student"]
        with ctx.timer.time("teacher"), torch.no_grad():
            whole = self.forward_features(MEAN, roles, batch, [self.params.at, *layers])
            valid = whole.layout(self.params.at).mask.reshape(in_items(whole[self.params.at], self.params.at).shape[:2])
            rows = [self.behind(whole, path, valid.shape[1]) for path in layers]
            target = targets(rows, valid, self.params.norm, self.params.norm_mean)
            covered = torch.from_numpy(self.covered(batch, valid.cpu().numpy(), ctx)).to(valid.device)
        with ctx.timer.time("student"):
            with instead(roles[self.role], self.params.at, covered, valid, head.instead):  # type: ignore[arg-type]
                said = self.forward_features(self.role, roles, batch, [self.params.on])
            mine = head(self.behind(said, self.params.on, valid.shape[1])[covered])
        with ctx.timer.time("loss"):
            values = missed(mine, target[covered], self.params.beta, self.params.scale)
            return LossOut({"data2vec": Part(values.sum(), float(len(values)), 1.0, "covered rows")})

    def behind(self, said: Signals, path: str, rows: int) -> Float[Tensor, "b m c"]:
        """The last rows of every item, as many as are masked."""
        found = in_items(said[path], path)
        if found.shape[1] < rows:
            raise UserError(
                f"scheme data2vec: {path!r} has {found.shape[1]} rows an item and {self.params.at!r} {rows}: name "
                "layers of one resolution (on, at, layers)"
            )
        return found[:, found.shape[1] - rows :]

    def covered(self, batch: Batch, valid: np.ndarray[Any, Any], ctx: Context) -> np.ndarray[Any, Any]:
        """Bool as `valid`: the rows that are masked, of step and sample, whatever the micro-batch."""
        out = np.zeros_like(valid)
        for i, number in enumerate(batch["ids"].tolist()):
            places = np.flatnonzero(valid[i])
            draw = ctx.streams.numpy("masks", ctx.stage.name, ctx.step, number)
            out[i, places[spans(len(places), self.params.masked, self.params.span, draw)]] = True
        return out

    def momentum(self, ctx: Context) -> float:
        first, last = self.params.momentum
        return rising_to(last, first, ctx.step, self.params.anneal * ctx.stage.steps)

    @torch.no_grad()
    def follow(self, roles: Roles, ctx: Context) -> None:
        averaged(roles[MEAN], roles[self.role], self.momentum(ctx), self.params.shared)


def in_items(signal: Signal, path: str) -> Float[Tensor, "b m c"]:
    """Rows of a grid by item, 0 where they are not valid."""
    rows, layout = signal
    if layout.grid is None:
        raise UserError(f"scheme data2vec: {path!r} has {layout.kind} rows that form no grid: name another layer")
    return dense_rows(signal).reshape(layout.items, -1, rows.shape[1])


def spans(rows: int, share: float, span: int, draw: np.random.Generator) -> np.ndarray[Any, Any]:
    """Numbers of the rows that spans cover: ``share * rows / span`` of them, rounded at random, at least one."""
    if rows == 0:
        return np.zeros(0, np.int64)
    span = min(span, max(1, rows // 2))
    starts = rows - span + 1
    count = min(starts, max(1, int(share * rows / span + draw.random())))
    first = draw.choice(starts, count, replace=False)
    return np.unique(first[:, None] + np.arange(span))


@contextmanager
def instead(
    model: nn.Module, path: str, covered: Bool[Tensor, "b m"], valid: Bool[Tensor, "b m"], vector: Float[Tensor, " c"]
) -> Iterator[None]:
    """Within the block `vector` stands for covered rows of what the module at `path` says: ``(b, m, c)``, maps ``(b, c,
    h, w)``, or valid rows alone ``(n, c)``; of several tensors in the first one.

    The module raises `UserError` where items are not the first axis.
    """

    def by_mask(module: nn.Module, given: Any, said: Any) -> Any:
        if isinstance(said, tuple):
            return by_mask(module, given, said[0]), *said[1:]
        if said.ndim == 2:
            return torch.where(covered[valid][:, None], vector.to(said), said)
        if len(said) != len(covered):
            raise UserError(
                f"scheme data2vec: {path!r} gives {tuple(said.shape)} of {len(covered)} items, which are not its first "
                "axis: name a module in front of it (at)"
            )
        first = said.ndim == 4
        rows = said.movedim(1, -1) if first else said
        flat = rows.reshape(len(rows), -1, rows.shape[-1])
        here = F.pad(covered, (0, max(0, flat.shape[1] - covered.shape[1])))[:, : flat.shape[1]]
        kept = torch.where(here[..., None], vector.to(flat), flat).reshape(rows.shape)
        return kept.movedim(-1, 1) if first else kept

    hook = model.get_submodule(path).register_forward_hook(by_mask)
    try:
        yield
    finally:
        hook.remove()


def targets(
    layers: Sequence[Float[Tensor, "b m c"]], valid: Bool[Tensor, "b m"], norm: Norm, norm_mean: Norm
) -> Float[Tensor, "b m c"]:
    """The mean of the normalised layers, normalised."""
    return normalised(torch.stack([normalised(rows, valid, norm) for rows in layers]).mean(dim=0), valid, norm_mean)


def normalised(rows: Float[Tensor, "b m c"], valid: Bool[Tensor, "b m"], norm: Norm) -> Float[Tensor, "b m c"]:
    """Mean 0 and variance 1 over an item's valid rows, a channel each (``instance``), or over channels (``layer``)."""
    if norm == "none":
        return rows
    if norm == "layer":
        return F.layer_norm(rows, rows.shape[-1:], eps=EPS)
    there = valid[..., None].to(rows)
    count = there.sum(dim=1, keepdim=True).clamp(min=1)
    centred = rows - (rows * there).sum(dim=1, keepdim=True) / count
    variance = (centred.square() * there).sum(dim=1, keepdim=True) / count
    return centred / (variance + EPS).sqrt()


def missed(
    predicted: Float[Tensor, "n c"], target: Float[Tensor, "n c"], beta: float, scale: float | None
) -> Float[Tensor, " n"]:
    """Of each row the sum over channels of the squared error, or of the smooth absolute one, times `scale`."""
    scale = 1 / math.sqrt(target.shape[1]) if scale is None else scale
    error = F.mse_loss if beta == 0 else lambda a, b, reduction: F.smooth_l1_loss(a, b, reduction=reduction, beta=beta)
    return scale * error(predicted, target, reduction="none").sum(dim=1)


def rising_to(last: float, first: float, step: int, over: float) -> float:
    """From `first` to `last` on a line, over so many steps."""
    return last if step >= over else last - (last - first) * (1 - step / over)


__all__ = ["MaskedRows", "instead", "missed", "normalised", "rising_to", "spans", "targets"]
