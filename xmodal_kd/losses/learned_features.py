"""Feature losses with a learned map of the student's rows, one position at a time."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from .base import Positive, item_sum, loss
from .connectors import NormKind, RowNorm, built_for, over_ranks
from .guards import direction

Margin = Annotated[float, Field(ge=0)]
#: Below 0 by construction: the mean of what a ReLU cuts off.
Margins = Annotated[tuple[Annotated[float, Field(le=0)], ...], Field(min_length=1)]


@loss(
    "vid", reduction="rows", family="features", year=2019, needs="features", properties="widths_differ",
    paper="Ahn et al.: Variational Information Distillation for Knowledge Transfer",
)  # fmt: skip
class Vid(nn.Module):
    """``0.5 mean_c [(t_c - mu_c(s))^2 / var_c + log var_c]``: the teacher's row as a Gaussian around a prediction.

    mu is three linear maps of the student with ReLU between them, var a learned number a channel, `variance` at the
    start. Can be negative. Serves noisy pairs: a channel that cannot be predicted loses its weight. Published with a
    weight of 1 on all intermediate layers.
    """

    def __init__(self, student_width: int, teacher_width: int, *, variance: Positive = 5.0, eps: Positive = 1e-5):
        super().__init__()
        if variance <= eps:
            raise ValueError(f"vid: the initial variance {variance} is not above its floor eps {eps}")
        self.widths, self.eps = (student_width, teacher_width), eps
        widths = (student_width, teacher_width, teacher_width, teacher_width)
        maps = [nn.Linear(a, b, bias=False) for a, b in pairwise(widths)]
        self.regressor = nn.Sequential(maps[0], nn.ReLU(), maps[1], nn.ReLU(), maps[2])
        self.raw = nn.Parameter(torch.full((teacher_width,), math.log(math.expm1(variance - eps))))

    def forward(self, student: Float[Tensor, "n c"], teacher: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        built_for(student, teacher, *self.widths)
        variance = F.softplus(self.raw) + self.eps
        squared = (teacher - self.regressor(student)).square()
        values: Tensor = 0.5 * (squared / variance + variance.log()).mean(dim=-1)
        return values


class Connected(nn.Module):
    """A linear map of the student's rows to the teacher's width and a norm, without an activation."""

    def __init__(self, student_width: int, teacher_width: int, norm: NormKind) -> None:
        super().__init__()
        self.widths = student_width, teacher_width
        self.connector = nn.Linear(student_width, teacher_width, bias=False)
        self.norm = RowNorm(norm, teacher_width)

    def connected(self, student: Tensor, teacher: Tensor) -> Tensor:
        built_for(student, teacher, *self.widths)
        out: Tensor = self.norm(self.connector(student))
        return out


@loss(
    "ab", reduction="items", family="features", year=2019, needs="features pre_activation",
    paper="Heo et al.: Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons",
    properties="widths_differ batch_statistics",
)  # fmt: skip
class Ab(Connected):
    """``sum (s + m)^2 [s > -m, t <= 0] + (s - m)^2 [s <= m, t > 0]`` over an item's rows and channels.

    Only on which side of 0 a unit lies is learnt, with a margin. Features of both sides are taken *before* the ReLU; s
    is the student's behind a linear map and a norm. For nets of ReLUs. Published as an initialisation of 30 epochs
    (then weight 0), 3/1000 times 2^(l - L) at layer l of L.
    """

    def __init__(self, student_width: int, teacher_width: int, *, margin: Margin = 1.0, norm: NormKind = "batch"):
        super().__init__(student_width, teacher_width, norm)
        self.margin = margin

    def forward(
        self, student: Float[Tensor, "n c"], teacher: Float[Tensor, "n d"], item: Int[Tensor, " n"], items: int
    ) -> tuple[Float[Tensor, " b"], Tensor]:
        s, m, active = self.connected(student, teacher), self.margin, teacher > 0
        squared = torch.where(active, F.relu(m - s), F.relu(s + m)).square()
        return item_sum(squared.sum(dim=-1), item, items), torch.bincount(item, minlength=items) > 0


@loss(
    "ofd", reduction="items", family="features", year=2019, needs="features pre_activation",
    paper="Heo et al.: A Comprehensive Overhaul of Feature Distillation", properties="widths_differ batch_statistics",
)  # fmt: skip
class Ofd(Connected):
    """``sum (s - t')^2 [not s <= t' <= 0]`` over an item's rows and channels, ``t' = max(t, m_c)``.

    What the teacher's ReLU cuts off need not be copied: it is pulled up to the channel's margin, the mean of its
    negative values, and costs nothing where the student is below it already. Features are taken *before* the ReLU; s is
    the student's behind a linear map and a norm. Published with a weight of 0.001 for this sum, and 2^(l - L) at layer
    l of L.

    Args:
        margins: m, one a channel: `relu_margins` of the batch normalisation before that ReLU, say. None takes each
            channel's mean negative value over the rows of the batch.
    """

    def __init__(
        self, student_width: int, teacher_width: int, *, margins: Margins | None = None, norm: NormKind = "batch"
    ):
        super().__init__(student_width, teacher_width, norm)
        self.margins: Tensor | None
        if margins is not None and len(margins) != teacher_width:
            raise ValueError(f"ofd: {len(margins)} margins for a teacher of {teacher_width} channels")
        self.register_buffer("margins", None if margins is None else torch.tensor(margins, dtype=torch.float64))

    def forward(
        self, student: Float[Tensor, "n c"], teacher: Float[Tensor, "n d"], item: Int[Tensor, " n"], items: int
    ) -> tuple[Float[Tensor, " b"], Tensor]:
        s = self.connected(student, teacher)
        t = torch.maximum(teacher, mean_negative(teacher) if self.margins is None else self.margins)
        squared = (s - t).square() * ((s > t) | (t > 0))
        return item_sum(squared.sum(dim=-1), item, items), torch.bincount(item, minlength=items) > 0


@torch.no_grad()
def mean_negative(rows: Float[Tensor, "n c"]) -> Float[Tensor, " c"]:
    """Mean of each channel's negative values over all ranks' rows, 0 where it has none."""
    negative = rows < 0
    total, count = over_ranks((rows * negative).sum(dim=0)), over_ranks(negative.sum(dim=0).to(rows.dtype))
    return total / count.clamp(min=1)


def relu_margins(weight: Float[Tensor, " c"], bias: Float[Tensor, " c"]) -> Float[Tensor, " c"]:
    """Margins of `ofd` from the batch normalisation before the ReLU: ``E[x | x < 0]`` of N(bias, weight^2).

    Where hardly anything is negative (less than 0.001) they are three deviations below 0.
    """
    b, g = bias.double(), weight.double().abs().clamp(min=1e-12)
    below = torch.special.ndtr(-b / g)
    density = torch.exp(-0.5 * (b / g).square()) / math.sqrt(2 * math.pi)
    return torch.where(below > 1e-3, b - g * density / below.clamp(min=1e-300), -3 * g).to(weight.dtype)


@loss(
    "distilhubert", reduction="rows", family="transformers", year=2022, needs="features", confidence="B",
    paper="Chang, Yang, Lee: DistilHuBERT: Speech Representation Learning by Layer-wise Distillation of "
    "Hidden-unit BERT",
    properties="widths_differ",
)  # fmt: skip
class DistilHubert(nn.Module):
    """``mean_l [|h_l - p_l(s)|_1 / D - cosine log sigmoid(cos(h_l, p_l(s)))]`` over layers h_l of the teacher.

    Each of the teacher's layers has a head p_l of its own that predicts it: a linear map, GELU, a linear map, both to
    the layer's width D. ``on: {student: LAST, teacher: [layers.3, layers.7, layers.11]}`` is the paper's: all heads
    read the student's last block; with as many blocks as layers each reads its own, by number (as FitHuBERT's hints).
    The paper adds layers up, here and in the release they are averaged. The heads are dropped with the objective.

    Args:
        cosine: weight of the second part, 1 in the paper.
    """

    def __init__(self, student_width: list[int], teacher_width: list[int], *, cosine: Margin = 1.0) -> None:
        super().__init__()
        if len(student_width) not in (1, len(teacher_width)):
            raise ValueError(
                f"distilhubert: {len(student_width)} blocks of the student predict {len(teacher_width)} layers: name "
                "one block, or one for each layer"
            )
        self.cosine = cosine
        mine = student_width * len(teacher_width) if len(student_width) == 1 else student_width
        self.widths = list(zip(mine, teacher_width, strict=True))
        self.heads = nn.ModuleList(nn.Sequential(nn.Linear(a, b), nn.GELU(), nn.Linear(b, b)) for a, b in self.widths)

    def forward(self, student: list[Float[Tensor, "n _"]], teacher: list[Float[Tensor, "n _"]]) -> Float[Tensor, " n"]:
        read = student * len(teacher) if len(student) == 1 else student
        for s, t, widths in reversed(list(zip(read, teacher, self.widths, strict=True))):
            built_for(s, t, *widths)
        values = [self._apart(head(s), t) for head, s, t in zip(self.heads, read, teacher, strict=True)]
        return torch.stack(values).mean(dim=0)

    def _apart(self, predicted: Float[Tensor, "n d"], layer: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        alike = (direction(predicted) * direction(layer)).sum(dim=-1)
        return (layer - predicted).abs().mean(dim=-1) - self.cosine * F.logsigmoid(alike)


@loss(
    "dphubert", reduction="rows", family="transformers", year=2023, needs="features",
    paper="Peng, Sudo, Muhammad, Watanabe: DPHuBERT: Joint Distillation and Pruning of Self-Supervised Speech Models",
    properties="widths_differ",
)  # fmt: skip
class DpHubert(nn.Module):
    """``mean_l [l1 |h_l - p_l(s_l)|_1 / D + cosine c_l]``: each layer of the student against the teacher's beside it.

    c is ``-cos(h, p)`` (`form: raw`, the release's script) or ``-log sigmoid(cos(h, p))`` (`log_sigmoid`, its other
    choice, as of `distilhubert`). p is a linear map that starts as the identity: one of its own for each of the `apart`
    first layers, one that all others of equal widths share. Published for the input of the first layer and three
    layers:
    ``on: {student: [hubert.feature_projection.dropout, hubert.encoder.layers.3, ...], teacher: [...]}``. The paper adds
    the layers up, the release takes their mean, which this does. Can be negative with `raw`.

    Args:
        cosine, l1: weights of the parts, 1 in the release.
        apart: how many of the first layers have a map of their own, 1 in the release.
    """

    def __init__(
        self, student_width: list[int], teacher_width: list[int], *, l1: Margin = 1.0, cosine: Margin = 1.0,
        form: Literal["raw", "log_sigmoid"] = "raw", apart: Annotated[int, Field(ge=0)] = 1,
    ) -> None:  # fmt: skip
        super().__init__()
        if len(student_width) != len(teacher_width):
            raise ValueError(
                f"dphubert: {len(student_width)} layers of the student against {len(teacher_width)} of the teacher: "
                "name one for each"
            )
        self.widths = list(zip(student_width, teacher_width, strict=True))
        self.l1, self.cosine, self.form = l1, cosine, form
        shared = list(dict.fromkeys(self.widths[apart:]))
        self.maps = nn.ModuleList(nn.Linear(a, b) for a, b in [*self.widths[:apart], *shared])
        self.which = [at if at < apart else apart + shared.index(one) for at, one in enumerate(self.widths)]
        for name, parameter in self.maps.named_parameters():
            (nn.init.eye_ if name.endswith("weight") else nn.init.zeros_)(parameter)

    def forward(self, student: list[Float[Tensor, "n _"]], teacher: list[Float[Tensor, "n _"]]) -> Float[Tensor, " n"]:
        values = []
        for at, (s, t, widths) in enumerate(zip(student, teacher, self.widths, strict=True)):
            built_for(s, t, *widths)
            said = self.maps[self.which[at]](s)
            alike = (direction(said) * direction(t)).sum(dim=-1)
            apart = -alike if self.form == "raw" else -F.logsigmoid(alike)
            values.append(self.l1 * (said - t).abs().mean(dim=-1) + self.cosine * apart)
        return torch.stack(values).mean(dim=0)
