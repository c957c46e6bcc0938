"""Losses that several teachers ask for: teachers of other label sets, and orders that most of them agree on."""

from __future__ import annotations

from typing import Annotated

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from .base import Positive, item_mean, loss, same_rows, same_shape
from .blocks import block_sum, distances
from .guards import direction


@loss(
    "uhc", reduction="rows", family="logits", confidence="B", year=2019,
    paper="Vongkulbhisal, Vinayavekhin, Visentini-Scarzanella: Unifying Heterogeneous Classifiers with Distillation",
    properties="zero_at_teacher shift_invariant masks_unknown",
)  # fmt: skip
def uhc(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"], *, temperature: Positive = 1.0
) -> Float[Tensor, " n"]:
    """`kd` on the classes that the teacher knows, the student's probabilities renormalised on them.

    Classes that it does not know have the teacher's score -inf, and get no gradient. Of several teachers the terms are
    added. The factor T^2 is the house's; the paper has none.
    """
    same_shape(student, teacher)
    known = teacher > -torch.inf
    hidden = ~known & known.any(dim=-1, keepdim=True)  # a row of which it knows no class counts 0
    log_p = F.log_softmax((teacher / temperature).where(known | hidden, 0.0), dim=-1)
    log_q = F.log_softmax((student / temperature).masked_fill(hidden, -torch.inf), dim=-1)
    apart = torch.where(known, log_p, 0.0) - torch.where(known, log_q, 0.0)
    return temperature**2 * (log_p.exp() * apart).sum(dim=-1)


@loss(
    "triplet_votes", reduction="batch", family="relations", confidence="B", year=2017, needs="features",
    paper="You et al.: Learning from Multiple Teacher Networks", properties="widths_differ selective",
)  # fmt: skip
def triplet_votes(
    student: list[Float[Tensor, "n c"]], teacher: list[Float[Tensor, "n d"]], item: list[Int[Tensor, " n"]],
    *, margin: Annotated[float, Field(ge=0)] = 0.0,
) -> Float[Tensor, ""]:  # fmt: skip
    """``max(0, d(i, j) - d(i, k) + margin)`` over triplets of samples whose nearer one most teachers agree on.

    An item's embedding is the mean of its rows, brought to length 1 on either side, without which a margin has no
    scale. A teacher to whom j and k are equally far has no vote, and a draw drops the triplet. The mean is over all
    triplets of the batch that are kept (the paper samples some of them), 0 where none is.

    Args:
        student: one signal; the teacher's are as many as there are teachers.
    """
    if len(student) != 1:
        raise ValueError(f"triplet_votes asks for one signal of the student, got {len(student)}")
    for rows in reversed(teacher):
        same_rows(student[0], rows)
    found, which = torch.unique(item[0], return_inverse=True)  # an item without rows is no sample
    n = len(found)
    mine, *theirs = (direction(item_mean(rows, which, n)) for rows in [*student, *teacher])

    def block(part: slice) -> Tensor:
        votes = mine.new_zeros(len(mine[part]), n, n)
        for rows in theirs:
            apart = distances(rows[part], rows)
            votes += torch.sign(apart[:, None, :] - apart[:, :, None])
        anchors = torch.arange(n, device=mine.device)[part]
        row = torch.arange(len(anchors), device=mine.device)
        votes[row, anchors] = votes[row, :, anchors] = 0.0
        apart = distances(mine[part], mine)
        cost = F.relu(apart[:, :, None] - apart[:, None, :] + margin)
        nearer = (votes > 0).to(cost)
        return torch.stack([(cost * nearer).sum(), nearer.sum()])

    sums = block_sum(block, n, n * n)
    return sums[0] / sums[1].clamp(min=1)
