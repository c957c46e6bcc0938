"""Losses that find by attention which rows of the teacher a student's row belongs to, and the other way round."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from .base import Positive, item_sum, loss
from .blocks import side_by_side
from .logits import kl


@loss(
    "dskd_cma", reduction="items", family="logits", year=2024, needs="logits features head own_head",
    paper="Zhang et al.: Dual-Space Knowledge Distillation for Large Language Models (cross-model attention)",
    properties="widths_differ tied_widths labelled_lists batch_statistics other_tokens selective held_weight",
)  # fmt: skip
class DskdCma(nn.Module):
    """``CE(S(a), y) + [argmax S(a) = y] KL(S(a) || z_s)`` a row, ``+ KL(z_t || T(b))`` a row of the teacher: `dskd` of
    a teacher whose texts are of other tokens, or of more.

    Rows of an item attend to those of the other side: ``A = Q(e_s) . e_t / sqrt(2 d)``, e the embeddings of the token
    that is read and of the next one, behind one another, the teacher's over their deviation. a mixes by softmax over
    the teacher's rows ``P(h_t / std + e_t(next) / std)``, b by softmax over the student's ``R(h_s)``. S and T are the
    heads, as in `dskd`; the KLs are at `temperature`, without its square, and a student's row whose S(a) is wrong has
    no first one. All is summed and divided by the student's rows. ``on`` lists the logits z, the features h that the
    heads are given and the embeddings e, which learn nothing where an adapter gives them without gradient. Published
    with weights of a half of this and of the cross-entropy, at temperature 2. The deviations are of the rows that
    count, where the release takes padding, too.
    """

    def __init__(self, student_width: list[int], teacher_width: list[int], *, temperature: Positive = 2.0):
        super().__init__()
        if len(student_width) != 3 or len(teacher_width) != 3:
            raise ValueError("dskd_cma asks for logits, what each head is given, and embeddings: on: [z, h, e]")
        (_, mine, read), (_, theirs, known) = student_width, teacher_width
        if known != 2 * theirs:
            raise ValueError(
                f"dskd_cma adds the teacher's embeddings of next tokens to its features: twice {theirs} columns are "
                f"needed, of the token that is read and of the next one, not {known}"
            )
        self.temperature, self.widths = temperature, ([mine, read], [theirs, known])
        self.query = nn.Linear(read, known)
        self.to_student, self.to_teacher = nn.Linear(theirs, mine), nn.Linear(mine, theirs)

    def forward(
        self, student: list[Float[Tensor, "n _"]], teacher: list[Float[Tensor, "m _"]], labels: Int[Tensor, " n"],
        item: list[Int[Tensor, " n"]], teacher_item: list[Int[Tensor, " m"]], items: int,
        head: Callable[[Tensor], Tensor], own_head: Callable[[Tensor], Tensor],
    ) -> tuple[Float[Tensor, " b"], Tensor]:  # fmt: skip
        for side, at, widths in zip((student, teacher), (item, teacher_item), self.widths, strict=True):
            if [len(x) for x in side] != [len(at[0])] * 3 or [x.shape[1] for x in side[1:]] != widths:
                shapes = " and ".join(str([tuple(x.shape) for x in one]) for one in (student, teacher))
                raise ValueError(
                    f"dskd_cma: student and teacher {shapes} are not three signals of as many rows each, the last two "
                    f"of the widths {self.widths} that it was built for"
                )
        counts, theirs = (torch.bincount(one[0], minlength=items) for one in (item, teacher_item))
        both = (counts > 0) & (theirs > 0)
        mine, theirs = (_in_order(one[0], both) for one in (item, teacher_item))
        (z_s, h_s, e_s), (z_t, h_t, e_t) = ([x[mine] for x in student], [x[theirs] for x in teacher])
        labels, own, other = labels[mine], item[0][mine], teacher_item[0][theirs]
        following = e_t[:, e_t.shape[1] // 2 :]
        query, there = side_by_side(self.query(e_s), own, items)
        key, real = side_by_side(e_t / _deviation(e_t), other, items)
        score = query @ key.mT / key.shape[2] ** 0.5
        values = self.to_student(h_t / _deviation(h_t) + following / _deviation(following))
        seen = own_head(_mixed(score, side_by_side(values, other, items)[0], real)[there])
        told = head(_mixed(score.mT, side_by_side(self.to_teacher(h_s), own, items)[0], there)[real])
        log_s, log_seen, log_t, log_told = (
            F.log_softmax(z / self.temperature, dim=-1) for z in (z_s, seen.detach(), z_t, told)
        )
        right = (seen.argmax(dim=-1) == labels).to(z_s.dtype)
        rows = F.cross_entropy(seen, labels, reduction="none") + right * kl(log_seen, log_s)
        sums = item_sum(rows, own, items) + item_sum(kl(log_t, log_told), other, items)
        return sums, counts * both


def _in_order(item: Tensor, wanted: Tensor) -> Tensor:
    """Rows of the wanted items, item by item."""
    order = item.argsort(stable=True)
    return order[wanted[item[order]]]


def _deviation(rows: Tensor) -> Tensor:
    """Of all numbers together, unbiased; of too few the least."""
    return rows.std().clamp(min=1e-6) if rows.numel() > 1 else rows.new_tensor(1e-6)


def _mixed(score: Tensor, values: Tensor, real: Tensor) -> Tensor:
    """``(b, n, c)`` of values ``(b, m, c)`` by the softmax of ``(b, n, m)`` over those that are real ``(b, m)``."""
    return score.masked_fill(~real[:, None], -1e9).softmax(dim=-1) @ values
