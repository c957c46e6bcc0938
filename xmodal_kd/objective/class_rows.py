"""Rows of class scores as a term may compare them: of the classes that both sides know, with labels of these alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..losses import LossSpec
from ..losses.known_classes import IGNORED, cannot_leave_out, known_classes
from ..recipe.recipe import Term
from ..runtime.errors import UserError
from ..signals.signals import Layout, Signal

Known = Tensor | None


def compares_scores(term: Term, spec: LossSpec) -> bool:
    """Whether a term compares with a teacher's class scores, some of which may be -inf."""
    if not spec.needs_teacher or "masks_unknown" in spec.properties:
        return False
    return any(path.rpartition("/")[2] == "logits" for path in term.signals("teacher"))


def all_known(rows: Tensor) -> bool:
    """Whether no score is -inf, known without a copy: not where another is NaN."""
    return math.isfinite(rows.detach().amin().item())


def all_classes(labels: Tensor, classes: int | None) -> bool:
    """Whether every label counts: none is left out, and each is one of the `classes`, where these are known."""
    if labels.is_floating_point():
        return True
    if labels.device.type not in ("cpu", "cuda"):
        return False
    low, high = labels.aminmax()
    least, most = (low.item(), high.item()) if low.device.type == "cpu" else torch.stack([low, high]).tolist()
    return least >= 0 and (classes is None or most < classes)


def what_both_know(name: str, term: Term, spec: LossSpec, mine: list[Signal], theirs: list[Signal]) -> Known:
    """``(c,)`` bool, the classes of which the teacher's scores are not -inf; None where that is all of them.

    Raises:
        UserError: names the term, whose loss cannot compare some classes alone, or whose teacher knows a class in some
            rows only.
    """
    for signal in theirs if compares_scores(term, spec) else []:
        rows, layout = signal
        if len(rows) and all_known(rows):
            continue  # nothing is copied where nothing, padding included, is -inf
        rows = rows if layout.full else rows[layout.mask]
        try:
            known = known_classes(rows)
            if known is None:
                continue
            if spec.many:
                reason: str | None = "the teacher knows fewer classes, and this loss compares lists of signals"
            else:
                reason = cannot_leave_out(mine[0].rows, rows, known, "numbered" in spec.properties)
        except ValueError as error:
            reason = str(error)
        if reason:
            raise UserError(f"term {name!r}: {reason}")
        return known
    return None


def only_known(signals: list[Signal], known: Known) -> list[Signal]:
    """Signals with the columns of the `known` classes."""
    return signals if known is None else [Signal(rows[:, known], layout) for rows, layout in signals]


def checked_labels(
    name: str, spec: LossSpec, labels: Signal, classes: int, known: Known, among: Tensor | None = None
) -> Signal:
    """Integer labels, of which `IGNORED` ones and those of classes that the teacher does not know are invalid.

    Args:
        classes: of the student's scores.
        among: ``(n,)`` bool, the rows that the term has; None for all that have a label.

    Raises:
        UserError: names the term and a label that is none of the classes.
    """
    rows, layout = labels
    if rows.is_floating_point() or not len(rows):
        return labels
    if known is None and all_classes(rows, classes if "logits" in spec.needs else None):
        return labels
    ignored = rows == IGNORED
    wrong = layout.mask & ~ignored & ((rows < 0) | (rows >= classes))
    wrong = wrong if among is None else wrong & among
    wrong = wrong if "logits" in spec.needs else torch.zeros_like(wrong)
    some_ignored, some_wrong = torch.stack([(ignored & layout.mask).any(), wrong.any()]).tolist()
    if some_wrong:
        label = int(rows[wrong][0])
        raise UserError(
            f"term {name!r}: label {label} is none of the {classes} classes, which count from 0: mend the labels, or "
            f"write {IGNORED} where a row has none"
        )
    keep = layout.mask & ~ignored if some_ignored else layout.mask
    if known is not None:
        keep = keep & known[rows.clamp(0, classes - 1)]
    if keep is layout.mask:
        return labels
    return Signal(rows, Layout(layout.kind, keep, layout.item, layout.items, layout.grid))
