"""Classes that both sides know: a teacher's score of -inf says that it does not know a class, not that it is excluded.

What is compared is then the classes that both know: the others' columns are left out on both sides before a loss sees
the rows, so that probabilities are renormalised, deviations and correlations are of what is left, and the student gets
no gradient for a class of which nothing was said. Labels are numbered anew; a row whose label the teacher does not know
cannot be compared with it.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Labels that are no labels, as everywhere: such a row is no row of its term.
IGNORED = -100


def known_classes(teacher: Tensor) -> Tensor | None:
    """``(c,)`` bool of scores ``(n, c)``; None where all are known (which costs one pass over the scores).

    Raises:
        ValueError: some rows know a class and others do not.
    """
    if teacher.ndim != 2 or not teacher.numel() or not teacher.is_floating_point():
        return None
    least = teacher.detach().amin()
    if bool(torch.isfinite(least)):
        return None
    if bool(torch.isnan(least)):  # of which whoever looks at the loss says which sample brought it
        return None
    missing = teacher.detach() == -torch.inf
    nowhere = missing.all(dim=0)
    if bool(nowhere.all()):
        raise ValueError("the teacher's scores are -inf of every class: it knows none of the student's")
    if mixed := (missing.any(dim=0) & ~nowhere).nonzero().flatten().tolist():
        raise ValueError(
            f"the teacher's scores of class {mixed[0]} are -inf in some rows and not in others: give -inf to a class "
            "that it never knows, and a finite score to one that it excludes; or take the loss uhc"
        )
    return ~nowhere


def relabelled(labels: Tensor, known: Tensor) -> Tensor:
    """Numbers of the labels among the `known` classes; below 0 where they are not."""
    number = torch.where(known, known.cumsum(0) - 1, -1)
    inside = (labels >= 0) & (labels < len(known))
    return torch.where(inside, number[labels.clamp(0, len(known) - 1)], -1)


def outside(labels: Tensor, classes: int) -> str | None:
    """What is wrong with labels of `classes` classes, or `IGNORED` ones; None where nothing is."""
    if labels.is_floating_point() or not labels.numel():
        return None
    wrong = labels[(labels != IGNORED) & ((labels < 0) | (labels >= classes))]
    return f"label {int(wrong[0])} is none of its {classes} classes, which count from 0" if len(wrong) else None


def among_known(
    inputs: dict[str, Tensor], *, numbered: bool, scores: bool
) -> tuple[dict[str, Tensor], Tensor | None]:  # fmt: skip
    """A loss's inputs by name, of the classes that both sides know; and which rows can be compared, None for all.

    Rows whose label is `IGNORED`, or of a class that the teacher does not know, have label -1 and cannot.

    Args:
        numbered: a parameter of the loss speaks of classes by their number.
        scores: the columns are classes, and labels are numbers of columns.

    Raises:
        ValueError: this loss cannot leave classes out, or a label is none.
    """
    student, teacher, out = inputs["student"], inputs.get("teacher"), dict(inputs)
    labels = inputs.get("labels") if scores else None
    labels = None if labels is None or labels.is_floating_point() or len(labels) != len(student) else labels
    alike = teacher is None or teacher.shape == student.shape  # else the loss says what does not fit
    if labels is not None and alike and (wrong := outside(labels, student.shape[1])):
        raise ValueError(f"{wrong}; a row without one is marked by {IGNORED}")
    known = None if teacher is None else known_classes(teacher)
    if teacher is not None and known is not None:
        if reason := cannot_leave_out(student, teacher, known, numbered):
            raise ValueError(reason)
        out |= {"student": student[:, known], "teacher": teacher[:, known]}
        labels = None if labels is None else relabelled(labels, known)
    if labels is None:
        return out, None
    keep = labels >= 0
    return out | {"labels": labels}, None if bool(keep.all()) else keep


def cannot_leave_out(student: Tensor, teacher: Tensor, known: Tensor, numbered: bool) -> str | None:
    """Why a loss cannot compare the `known` classes alone, in a sentence that says what to do; None where it can."""
    has = f"the teacher knows {int(known.sum())} of {len(known)} classes (-inf of class {int((~known).nonzero()[0])})"
    if student.shape[1] != teacher.shape[1]:
        return f"{has}, and the student's rows are {student.shape[1]} wide: compare logits of the same classes"
    if numbered:
        return f"{has}, and a parameter of this loss numbers its classes: take kd or uhc"
    return None
