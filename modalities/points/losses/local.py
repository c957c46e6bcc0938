"""PointDistiller: what a network makes of the most important rows beside those that its teacher finds alike."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from xmodal_kd.losses.base import Positive, item_mean, item_sum, loss, same_rows
from xmodal_kd.losses.blocks import neighbours_of, row_numbers
from xmodal_kd.losses.features import log_softmax_over_rows

Count = Annotated[int, Field(ge=1)]


class _Edges(nn.Module):
    """``relu(BN(W [f_j; f_i]))`` of edges from i to j, or of ``[f_i - f_j; f_i]``: one layer of a dynamic graph CNN."""

    def __init__(self, channels: int, width: int, difference: bool) -> None:
        super().__init__()
        self.difference = difference
        self.other, self.own = nn.Linear(channels, width, bias=False), nn.Linear(channels, width, bias=False)
        self.norm = nn.BatchNorm1d(width, track_running_stats=False)

    def forward(self, rows: Tensor, centre: Tensor, neighbour: Tensor) -> Tensor:
        other, own = self.other(rows), self.own(rows)  # of a row once, not of each edge that it is on
        beside = other[centre] - other[neighbour] if self.difference else other[neighbour]
        return F.relu(self.norm(beside + own[centre]))


@loss(
    "pointdistiller", reduction="items", family="features", year=2023, needs="features",
    properties="widths_differ batch_statistics selective",
    paper="Zhang et al.: PointDistiller: Structured Knowledge Distillation Towards Efficient and Compact 3D Detection",
)  # fmt: skip
class PointDistiller(nn.Module):
    """``mean_i w_i mean_jc (g_t - g_s)^2`` over the most important rows i of an item and their graphs (eq. 2).

    A graph is a row and its nearest rows of the item, all found in the teacher's features; ``g(i, j)`` is a linear map
    of ``[f_j; f_i]``, batch norm over all edges and ReLU, one for each side, and both learn beside the student (3.2).
    ``w = N softmax(importance / temperature)`` over the N rows that were chosen.

    The term's ``regions`` names a signal of how many points lie in a row; rows below 0 are left out. The release has
    twice this value, in the term's weight here; for pillars it lets rows of other items be neighbours and softens over
    the whole batch, and in its maps and points the weights are constant by mistake: here they are an item's own.

    Args:
        queries: rows of an item that are chosen, at most. Published: 6000 pillars, 12000 of the smallest student, 256
            cells of a map.
        neighbours: rows of a graph, the chosen one among them; all of the item where there are fewer.
        width: of g. Published: 32, and 16 for the smallest students.
        temperature: of the weights; None: all alike. Published: 1e-2, and 1e-4 of the smallest student: either weighs
            the fullest rows alone, and all of them alike.
        most: points of a row that are counted, at most; None: all. PointPillars holds 32 points of a pillar.
        importance: the signal's count; or features: the row's largest number in the teacher's features chooses it, and
            the largest in its graph's g_t, whose gradient stops, weighs it, as the paper has it for points.
        difference: edges hold f_i - f_j in the place of f_j.
    """

    def __init__(
        self, student_width: int, teacher_width: int,
        *, queries: Count = 6000, neighbours: Count = 128, width: Count = 32, temperature: Positive | None = 1e-2,
        most: Count | None = 32, importance: Literal["count", "features"] = "count", difference: bool = False,
    ):  # fmt: skip
        super().__init__()
        self.queries, self.neighbours, self.temperature = queries, neighbours, temperature
        self.most, self.importance = most, importance
        self.student = _Edges(student_width, width, difference)
        self.teacher = _Edges(teacher_width, width, difference)

    def forward(
        self, student: Float[Tensor, "n c"], teacher: Float[Tensor, "n d"], item: Int[Tensor, " n"], items: int,
        regions: Int[Tensor, " n"],
    ) -> tuple[Float[Tensor, " b"], Tensor]:  # fmt: skip
        same_rows(student, teacher)
        score = teacher.amax(dim=1)
        if self.importance == "count":
            score = (regions if self.most is None else regions.clamp(max=self.most)).to(score)
        chosen, centre, neighbour, graph = self._graphs(teacher, score, item, items)
        of = item[chosen]
        number = torch.bincount(of, minlength=items)
        if len(centre) < 2:  # a single edge has no spread to normalise by
            return item_sum(student.sum(dim=1) * 0.0, item, items), torch.zeros_like(number)
        mine, theirs = self.student(student, centre, neighbour), self.teacher(teacher, centre, neighbour)
        apart = item_mean((theirs - mine).square().mean(dim=1), graph, len(chosen))
        if self.temperature is None:
            return item_sum(apart, of, items), number
        if self.importance == "count":
            score = score[chosen]
        else:
            lowest = theirs.new_zeros(len(chosen))  # g is never below it
            score = lowest.scatter_reduce(0, graph, theirs.detach().amax(dim=1), "amax")
        weight = number[of] * log_softmax_over_rows(score[:, None] / self.temperature, of, items).exp().squeeze(1)
        return item_sum(weight * apart, of, items), number

    def _graphs(self, teacher: Tensor, score: Tensor, item: Tensor, items: int) -> tuple[Tensor, ...]:
        """The chosen rows ``(q,)``; of each edge ``(e,)`` the row it starts from, the one it leads to, its graph."""
        chosen, centre, neighbour = [item[:0]], [item[:0]], [item[:0]]
        sizes = [item[:0]]
        for own in row_numbers(item, items):
            first = score[own].argsort(descending=True, stable=True)[: self.queries]
            near = neighbours_of(teacher[own], min(self.neighbours, len(own)) - 1, first) if len(own) else own[:0, None]
            members = torch.cat([first[:, None], near], dim=1)
            chosen.append(own[first])
            centre.append(own[first].repeat_interleave(members.shape[1]))
            neighbour.append(own[members.flatten()])
            sizes.append(torch.full_like(first, members.shape[1]))
        graph = torch.repeat_interleave(torch.cat(sizes))
        return torch.cat(chosen), torch.cat(centre), torch.cat(neighbour), graph


__all__ = ["PointDistiller"]
