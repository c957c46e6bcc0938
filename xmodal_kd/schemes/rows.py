"""Signals made of others: answers in the place of a role's own, features of whole items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ..losses.base import full_precision, item_mean
from ..objective.objective import Objective
from ..objective.parts import LossOut
from ..recipe.recipe import Term
from ..runtime.errors import UserError
from ..signals.signals import Layout, Signal, Signals


def replaced(outputs: Signals, rows: Mapping[str, Tensor], mask: Tensor | None = None) -> Signals:
    """`outputs` with other rows under some names, which lie where the output's or their own did.

    Args:
        mask: ``(n,)`` bool: rows of these signals that are valid only if they are there too.
    """
    out = Signals(outputs.ids)
    out.model, out.labelled = outputs.model, outputs.labelled
    for name in outputs:
        signal = outputs[name]
        out.add(name, rows.get(name, signal.rows), _fewer(signal.layout, mask if name in rows else None))
    return out


def _fewer(layout: Layout, mask: Tensor | None) -> Layout:
    if mask is None:
        return layout
    return Layout(layout.kind, layout.mask & mask, layout.item, layout.items, layout.grid)


def dense_rows(signal: Signal) -> Tensor:
    """Rows in at least float32, 0 where they are not valid: padding may be NaN, whose gradient is NaN even by 0."""
    rows, layout = signal
    rows = full_precision(rows)
    return rows if layout.full else torch.where(layout.mask[:, None], rows, torch.zeros_like(rows))


def pooled(signal: Signal) -> Tensor:
    """``(b, c)``: the mean of each item's valid rows; 0 for an item without any."""
    rows, layout = signal
    valid = full_precision(rows[layout.mask])
    return item_mean(valid, layout.item[layout.mask], layout.items)


def mixed(answers: Sequence[Tensor], weights: Tensor, item: Tensor) -> Tensor:
    """``(n, k)``: sum over answers j of ``weights[item, j]`` times theirs.

    Args:
        answers: ``(n, k)`` each, all finite.
        weights: ``(b, m)`` of every item.
        item: ``(n,)`` the item of each row.
    """
    rows = weights[item]
    return torch.stack([rows[:, j, None] * answer for j, answer in enumerate(answers)]).sum(dim=0)


def answered(head: nn.Module, rows: Tensor, layout: Layout, answers: Layout) -> Tensor:
    """``(n, k)`` what `head` says on the rows of `answers`: of each, or of an item's mean where these lie elsewhere.

    Args:
        rows: of the valid rows of `layout`.
    """
    valid = layout.mask.nonzero().squeeze(1)
    if layout.same_rows(answers):
        said: Tensor = head(rows)
        return said.new_zeros(len(layout), said.shape[1]).index_copy(0, valid, said)
    pooled: Tensor = head(item_mean(rows, layout.item[valid], layout.items))
    return pooled[answers.item]


def row_labels(scheme: str, outputs: Signals) -> Tensor:
    """``(n,)`` the class of each row of scores, -1 where it is not valid or its label may not be looked at.

    Raises `UserError` where rows have no classes of their own.
    """
    layout = outputs.layout("logits") if "logits" in outputs else None
    if layout is None or "labels" not in outputs:
        raise UserError(f"scheme {scheme}: it compares scores by labels of classes, and this data has none: take dml")
    labels = outputs["labels"]
    if not labels.layout.same_rows(layout) or labels.rows.is_floating_point():
        raise UserError(f"scheme {scheme}: the labels are not one a row of the scores: take dml")
    held = labels.layout.mask & layout.mask
    held = held if outputs.labelled is None else held & outputs.labelled[layout.item]
    return torch.where(held, labels.rows, -1)


def diverged(one: Float[Tensor, "n k"], other: Float[Tensor, "n k"], *, of_classes: bool) -> Float[Tensor, " n"]:
    """``KL(softmax one || softmax other)`` of each row; of numbers that of normal distributions of variance 1 there."""
    one, other = full_precision(one), full_precision(other)
    if not of_classes:
        return 0.5 * (one - other).square().sum(dim=-1)
    return F.kl_div(other.log_softmax(dim=-1), one.log_softmax(dim=-1), reduction="none", log_target=True).sum(dim=-1)


# ---------------------------------------------------------------- parts of an objective


def terms_of(objective: Objective, *, with_teacher: bool) -> tuple[Term, ...]:
    """The terms that compare with a teacher, or those that do not."""
    return tuple(term.term for term in objective if term.spec.needs_teacher == with_teacher)


def weighed(out: LossOut, objective: Objective, *, with_teacher: float = 1.0, alone: float = 1.0) -> LossOut:
    """`out` with the weights of the terms with a teacher, and of those without, times a factor each."""
    needs = {term.name: term.spec.needs_teacher for term in objective}

    def factor(part: str) -> float:
        name = next((name for name in sorted(needs, key=len, reverse=True) if part == name or _of(part, name)), None)
        return 1.0 if name is None else with_teacher if needs[name] else alone

    return LossOut({name: replace(part, weight=part.weight * factor(name)) for name, part in out.parts.items()})


def _of(part: str, term: str) -> bool:
    """Whether a part is one teacher's share of a term."""
    return part.startswith(f"{term}/")
