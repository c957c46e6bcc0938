"""Gradients of the true mean over micro-batches and ranks, from sums and counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from .objective import LossOut, Part, safe
from .ranks import Ranks


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
        self.counts: dict[str, tuple[Tensor, Tensor]] = {}
        # dropped here and not after the last step: the backward pass that follows takes the same memory again, where a
        # large model otherwise pays 17 % of its step for new pages
        for parameter in parameters:
            parameter.grad = None

    def add(self, out: LossOut) -> None:
        if self.micros == 1:
            self.counts = self._over_ranks(out.parts)
            terms = [_weighted(part) / safe(self.counts[name][1]) for name, part in out.parts.items() if part.weight]
            self.scale(torch.stack(terms).sum()).backward()
            return
        units: dict[str, list[Tensor]] = {}
        for name, part in out.parts.items():
            if part.weight:
                units.setdefault(part.unit, []).append(_weighted(part))
            before = self.sums.get(name)
            total, count = part.total.detach(), part.count.detach()
            if before is not None:
                total, count = total + before.total, count + before.count
            self.sums[name] = replace(part, total=total, count=count)
        for i, (unit, terms) in enumerate(units.items()):
            loss = self.scale(torch.stack(terms).sum())
            more = i + 1 < len(units)
            grads = torch.autograd.grad(loss, self.parameters, retain_graph=more, allow_unused=True)
            before_grads = self.kept.get(unit, [None] * len(grads))
            self.kept[unit] = [_plus(a, b) for a, b in zip(before_grads, grads, strict=True)]

    def finish(self) -> dict[str, Tensor]:
        """The parts' global means, for the log."""
        if self.micros > 1:
            self.counts = self._over_ranks(self.sums)
            self._combine({part.unit: self.counts[name][1] for name, part in self.sums.items()})
        self.ranks.sum_gradients(self.parameters)
        return {name: total / safe(count) for name, (total, count) in self.counts.items()}

    def _over_ranks(self, parts: Mapping[str, Part]) -> dict[str, tuple[Tensor, Tensor]]:
        """Totals and counts, in one exchange."""
        if self.ranks.world == 1:
            return {name: (part.total.detach(), part.count) for name, part in parts.items()}
        both = torch.stack([torch.stack([p.total.detach().float(), p.count.float()]) for p in parts.values()])
        both = self.ranks.sum(both)
        return {name: (both[i, 0], both[i, 1]) for i, name in enumerate(parts)}

    def _combine(self, counts: Mapping[str, Tensor]) -> None:
        for i, parameter in enumerate(self.parameters):
            parameter.grad = None
            for unit, grads in self.kept.items():
                if (grad := grads[i]) is not None:
                    parameter.grad = _plus(parameter.grad, grad / safe(counts[unit]).to(grad.dtype))


def _weighted(part: Part) -> Tensor:
    return part.total if part.weight == 1 else part.weight * part.total


def _plus(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    return a + b
