"""Gradients of the true mean over micro-batches and ranks, from sums and counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from ..objective.parts import LossOut, Part, safe
from ..runtime.distributed import Ranks
from ..runtime.shards import is_shard, local
from ..runtime.shards import norm as norm_of
from .optim import parameters


@dataclass(slots=True)
class Mean:
    """A part's mean over the global batch, which is not divided before somebody asks."""

    total: Tensor
    count: Tensor | float

    def __float__(self) -> float:
        return float(self.total) / float(safe(self.count))


# docs/decisions/003-one-loop.md
class Turn:
    """One loss of a step: `add` each micro-batch's share, then `finish` leaves the gradient in the parameters.

    A term's mean runs over the global batch, whose count is known only after the last micro-batch. With one
    micro-batch that costs an exchange of counts; with several, the gradients of terms with different counts are kept
    apart until then (one more backward pass for each further count).
    """

    def __init__(
        self, parameters: list[nn.Parameter], micros: int, ranks: Ranks, scale: Callable[[Tensor], Tensor]
    ) -> None:
        self.parameters, self.micros, self.ranks, self.scale = parameters, micros, ranks, scale
        self.sums: dict[str, Part] = {}
        self.kept: dict[str, list[Tensor | None]] = {}
        self.means: dict[str, Mean] = {}
        self.over_ranks = ranks.summing(parameters)
        self.spread = micros > 1 and any(map(is_shard, parameters))
        # dropped here and not after the last step: the backward pass that follows takes the same memory again, where a
        # large model otherwise pays 17 % of its step for new pages
        for parameter in parameters:
            parameter.grad = None

    def add(self, out: LossOut) -> None:
        if self.micros == 1:
            self.means = self._over_ranks(out.parts)
            weighed = [(name, part) for name, part in out.parts.items() if part.weight]
            # a part without a graph adds nothing, unless none has one, of which torch is left to complain
            roots = [one for one in weighed if one[1].total.requires_grad] or weighed
            # what each total is multiplied by stands where its gradient begins: the loss itself nobody needs
            shares = [self.scale(_share(part, self.means[name].count)) for name, part in roots]
            with self.over_ranks.during():
                torch.autograd.backward([part.total for _, part in roots], shares)
            return
        units: dict[str, list[Tensor]] = {}
        for name, part in out.parts.items():
            if part.weight:
                units.setdefault(part.unit, []).append(_weighted(part))
            before = self.sums.get(name)
            total, count = part.total.detach(), _fixed(part.count)
            if before is not None:
                total, count = total + before.total, count + before.count
            self.sums[name] = replace(part, total=total, count=count)
        for i, unit in enumerate(units):
            grads = self._gradients(units, unit, more=i + 1 < len(units))
            before_grads = self.kept.get(unit, [None] * len(grads))
            self.kept[unit] = [_plus(a, b) for a, b in zip(before_grads, grads, strict=True)]

    def _gradients(self, units: Mapping[str, list[Tensor]], unit: str, *, more: bool) -> Sequence[Tensor | None]:
        """Of the terms of one unit; `more` of the same graph will be asked for."""
        if not self.spread:
            loss = self.scale(torch.stack(units[unit]).sum())
            return torch.autograd.grad(loss, self.parameters, retain_graph=more, allow_unused=True)
        # weights that are spread are whole in a pass that comes from the model's answer alone, as that of all terms
        # does: the others count nothing in it. What it found lies beside each rank's part.
        terms = [term * (name == unit) for name, those in units.items() for term in those]
        self.scale(torch.stack(terms).sum()).backward(retain_graph=more)
        grads = [parameter.grad for parameter in self.parameters]
        for parameter in self.parameters:
            parameter.grad = None
        return grads

    def finish(self) -> dict[str, Mean]:
        """The parts' global means, for the log."""
        if self.micros > 1:
            self.means = self._over_ranks(self.sums)
            self._combine({part.unit: self.means[name].count for name, part in self.sums.items()})
        self.over_ranks.finish()
        return self.means

    def _over_ranks(self, parts: Mapping[str, Part]) -> dict[str, Mean]:
        """Totals and counts, in one exchange."""
        if self.ranks.world == 1:
            return {name: Mean(part.total.detach(), _fixed(part.count)) for name, part in parts.items()}
        both = torch.stack([
            torch.stack([p.total.detach().float(), torch.as_tensor(p.count, device=p.total.device).float()])
            for p in parts.values()
        ])  # fmt: skip
        both = self.ranks.sum(both)
        return {name: Mean(both[i, 0], both[i, 1]) for i, name in enumerate(parts)}

    def _combine(self, counts: Mapping[str, Tensor | float]) -> None:
        for i, parameter in enumerate(self.parameters):
            parameter.grad = None
            for unit, grads in self.kept.items():
                if (grad := grads[i]) is not None:
                    parameter.grad = _plus(parameter.grad, (grad / safe(counts[unit])).to(grad.dtype))


def _share(part: Part, count: Tensor | float) -> Tensor:
    """What a part's total is multiplied by in the loss of the global batch, which has `count`: its gradient there."""
    share = part.weight / safe(count)
    if isinstance(share, Tensor):
        return share.to(part.total).expand_as(part.total)
    return torch.full(part.total.shape, share, dtype=part.total.dtype, device=part.total.device)


def _fixed(count: Tensor | float) -> Tensor | float:
    return count.detach() if isinstance(count, Tensor) else count


def _weighted(part: Part) -> Tensor:
    return part.total if part.weight == 1 else part.weight * part.total


def _plus(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    return a + b


def stepped(optimizer: Optimizer, scaler: GradScaler | None, clip: float | None, watched: bool) -> float | None:
    """Clip the gradients of `optimizer` to the norm `clip` and step it, unless the norm is not finite.

    Returns:
        their norm before; None where nothing is clipped and it was not asked for (`watched`), for it takes time.
    """
    if scaler is not None:
        scaler.unscale_(optimizer)
    norm: float | None = None
    if clip is not None or watched:
        learning = parameters(optimizer)
        total = norm_of([p.grad for p in learning if p.grad is not None])
        norm = float(total)
        if clip is not None and norm > clip:
            whole = [p for p in learning if not is_shard(p)]
            nn.utils.clip_grads_with_norm_(whole, clip, total)
            for parameter in learning if len(whole) < len(learning) else ():
                if parameter.grad is not None and is_shard(parameter):
                    local(parameter.grad).mul_(clip / (total + 1e-6))
    if scaler is not None:
        scaler.step(optimizer)
        scaler.update()
    elif norm is None or math.isfinite(norm):
        optimizer.step()
    return norm
