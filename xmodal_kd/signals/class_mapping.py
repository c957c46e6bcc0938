"""A teacher of other classes than the student's, matched by their names."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..runtime.errors import UserError


def columns(ours: Sequence[str], theirs: Sequence[str], who: str) -> tuple[int, ...]:
    """Of each of our classes the number among theirs, -1 for one that they do not know; what else they know is left.

    Raises:
        UserError: fewer than two classes in common, among which there is nothing to tell apart; it names `who`.
    """
    found = tuple(theirs.index(name) if name in theirs else -1 for name in ours)
    if sum(number >= 0 for number in found) < 2:
        raise UserError(f"{who}: of its {len(theirs)} classes fewer than two are the student's: map its names to these")
    return found


def map_classes(scores: Tensor, wanted: Sequence[int], dim: int = -1) -> Tensor:
    """`scores` of their classes as scores of ours: -inf of what they do not know.

    >>> map_classes(torch.tensor([[1.0, 2.0]]), (1, -1, 0))
    tensor([[2., -inf, 1.]])
    """
    held = torch.tensor(wanted, device=scores.device)
    taken = scores.index_select(dim, held.clamp(min=0))
    unknown = (held < 0).reshape([-1 if axis == dim % scores.ndim else 1 for axis in range(scores.ndim)])
    return taken.masked_fill(unknown, -torch.inf)


def answering(model: nn.Module, classes: Sequence[str], every: tuple[str, ...]) -> nn.Module:
    """`model`, whose outputs ``(b, c, ...)`` mean `classes`, answering in scores of `every` class: -inf of what it does
    not know."""
    if tuple(classes) == every:
        return model
    wanted = columns(every, classes, "the teacher")
    model.register_forward_hook(lambda module, inputs, scores: map_classes(scores, wanted, dim=1))
    return model
