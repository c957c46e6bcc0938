"""Contrastive losses: a student's row must be told from others by the teacher's row of the same sample."""

from __future__ import annotations

from math import log
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from .base import Positive, item_mean, item_sum, loss, same_rows, same_shape
from .blocks import block_sum, groups
from .guards import direction

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]


@loss(
    "infonce", reduction="batch", family="contrastive", year=2018, needs="features",
    paper="van den Oord et al.: Representation Learning with Contrastive Predictive Coding (in batch, two directions)",
    properties="scale_invariant",
)  # fmt: skip
def infonce(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"],
    *, temperature: Positive = 0.07, symmetric: bool = True,
) -> Float[Tensor, ""]:  # fmt: skip
    """``-mean_i log softmax_j(cos(s_i, t_j) / temperature)[i]``, and the same over i: which row is whose.

    Every other row of the batch, of all ranks, is a negative, so rows should be samples, regions or a few positions of
    each. Least, but not 0, where rows agree and lie apart. Quadratic in the rows in time, not in memory.

    Args:
        symmetric: mean of both directions (as in CLIP); else only from the student to the teacher's rows.
    """
    same_shape(student, teacher)
    return _contrasted(direction(student), direction(teacher), temperature, symmetric)


def _contrasted(s: Tensor, t: Tensor, temperature: float, symmetric: bool) -> Tensor:
    """Mean cross-entropy of telling rows apart by their products, from `s`, or from both sides."""
    forward = _told_apart(s, t, temperature)
    return (forward + _told_apart(t, s, temperature)) / 2 if symmetric else forward


def _told_apart(anchors: Tensor, others: Tensor, temperature: float) -> Tensor:
    """Mean cross-entropy of finding row i of `others` from row i of `anchors`."""
    n = len(anchors)

    def block(part: slice) -> Tensor:
        scores = anchors[part] @ others.T / temperature
        return F.cross_entropy(scores, torch.arange(n, device=scores.device)[part], reduction="sum")

    return block_sum(block, n, n) / max(n, 1)


@loss(
    "infonce_regions", reduction="batch", family="contrastive", year=2022, needs="features", confidence="B",
    paper="Sautier et al.: Image-to-Lidar Self-Supervised Distillation for Autonomous Driving Data (superpixels)",
    properties="scale_invariant",
)  # fmt: skip
def infonce_regions(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"], item: Int[Tensor, " n"], regions: Int[Tensor, " n"],
    *, temperature: Positive = 0.07, symmetric: bool = True, released: bool = False,
) -> Float[Tensor, ""]:  # fmt: skip
    """`infonce` of regions: rows of one region of one item (superpixel, superpoint, phone) are averaged first.

    Positions within a region are then no negatives of one another. Mean over the regions found in the batch.

    Args:
        released: as SLidR's code has it: every row is brought to length 1 (its networks end so) and a region's vector
            is their mean, ``sum / (count + 1e-6)``, which is *not* brought to length 1 again; only from the student to
            the teacher's regions, whatever `symmetric` says. Regions whose rows disagree then weigh less.
    """
    same_shape(student, teacher)
    found, which = groups(item, regions)
    if released:
        counts = torch.bincount(which, minlength=len(found)).to(student.dtype)[:, None]
        s, t = (item_sum(direction(rows), which, len(found)) / (counts + 1e-6) for rows in (student, teacher))
        return _told_apart(s, t, temperature)
    s, t = (direction(item_mean(rows, which, len(found))) for rows in (student, teacher))
    return _contrasted(s, t, temperature, symmetric)


@loss(
    "crd", reduction="batch", family="contrastive", year=2020, needs="features",
    paper="Tian, Krishnan, Isola: Contrastive Representation Distillation", properties="widths_differ",
)  # fmt: skip
class Contrast(nn.Module):
    """``-[log h(positive) + sum_N log (1 - h(negative))]`` over memories of all samples, in both directions.

    Student and teacher are embedded by a learned linear map each, of norm 1. A sample's embedding g is an anchor to
    the other network's bank m: ``v = exp(g . m / temperature) / Z`` and ``h = v / (v + N / samples)``; the positive
    is the bank's row of the same sample. Z is fixed in the first batch, as the mean of its
    exponentials times `samples`. After the loss the banks follow, ``m = normalise(momentum m + (1 - momentum) g)``.

    One set of N negatives, drawn anew in every step, serves all anchors of the batch, so that the scores are one matrix
    product; an anchor's own sample among them is left out. Give one row a sample. The banks are
    ``2 * samples * width`` numbers in every checkpoint. Published with a weight of 0.8.

    Args:
        samples: of the training set: ids run below it.
        negatives: N.
    """

    called: ClassVar[str] = "crd"
    bank_s: Tensor
    bank_t: Tensor
    z_s: Tensor
    z_t: Tensor
    draws: Tensor

    def __init__(
        self, student_width: int, teacher_width: int,
        *, samples: Count = 50000, negatives: Count = 16384, width: Count = 128, temperature: Positive = 0.07,
        momentum: Share = 0.5,
    ) -> None:  # fmt: skip
        super().__init__()
        self.samples, self.negatives, self.temperature, self.momentum = samples, negatives, temperature, momentum
        self.embed_s, self.embed_t = nn.Linear(student_width, width), nn.Linear(teacher_width, width)
        for side in "st":
            self.register_buffer(f"bank_{side}", direction(torch.randn(samples, width)))
            self.register_buffer(f"z_{side}", torch.zeros(()))
        self.register_buffer("draws", torch.zeros((), dtype=torch.int64))

    def drawn(self) -> Tensor:
        """``(N,)`` negatives of the next call: a function of the number of calls, so alike on all ranks."""
        random = torch.Generator().manual_seed(int(self.draws))
        return torch.randint(self.samples, (self.negatives,), generator=random).to(self.draws.device)

    def forward(
        self, student: Float[Tensor, "n c"], teacher: Float[Tensor, "n d"], item: Int[Tensor, " n"],
        ids: Int[Tensor, " b"],
    ) -> Float[Tensor, ""]:  # fmt: skip
        return self._contrast(student, teacher, ids[item], None)

    def _contrast(self, student: Tensor, teacher: Tensor, own: Tensor, alike: Tensor | None) -> Tensor:
        """`own` is the id of each row; `alike` ``(n, N)`` marks negatives that are none."""
        same_rows(student, teacher)
        if not len(own):
            return 0.0 * student.sum()
        self._check(own)
        g_s, g_t = direction(self.embed_s(student)), direction(self.embed_t(teacher))
        drawn = self.drawn()
        excluded = drawn == own[:, None]
        excluded = excluded if alike is None else excluded | alike
        value = self._told(g_s, self.bank_t, self.z_s, own, drawn, excluded)
        value = value + self._told(g_t, self.bank_s, self.z_t, own, drawn, excluded)
        if self.training and torch.is_grad_enabled():
            self._remember(g_s.detach(), g_t.detach(), own)
        return value / len(own)

    def _check(self, own: Tensor) -> None:
        """Raises ``ValueError`` for several rows of a sample, and for one that the banks have no place for."""
        if len(own.unique()) != len(own):
            several = f"got {len(own)} rows of {len(own.unique())}: pool them"
            raise ValueError(f"{self.called} wants one row a sample, {several}")
        if (last := int(own.max())) >= self.samples:
            raise ValueError(f"{self.called}: sample {last} in banks of {self.samples}: set the parameter samples")

    def _told(self, g: Tensor, bank: Tensor, z: Tensor, own: Tensor, drawn: Tensor, excluded: Tensor) -> Tensor:
        """Minus the log-likelihood of telling each anchor's positive from its negatives, summed."""
        positive = (g * bank[own]).sum(dim=1) / self.temperature
        negative = g @ bank[drawn].T / self.temperature
        with torch.no_grad():
            first = torch.cat([positive[:, None], negative], dim=1).exp().mean() * self.samples
            z.copy_(torch.where(z > 0, z, first))
        share = log(self.negatives / self.samples)
        told = F.softplus(share - (positive - z.log())).sum()  # -log h
        others = F.softplus(negative - z.log() - share).masked_fill(excluded, 0.0)  # -log(1 - h)
        return told + others.sum()

    @torch.no_grad()
    def _remember(self, g_s: Tensor, g_t: Tensor, own: Tensor) -> None:
        for bank, g in ((self.bank_s, g_s), (self.bank_t, g_t)):
            bank[own] = direction(self.momentum * bank[own] + (1 - self.momentum) * g)
        self.draws += 1


@loss(
    "crd_exact", reduction="batch", family="contrastive", year=2020, needs="features",
    paper="Tian, Krishnan, Isola: Contrastive Representation Distillation (negatives of other classes)",
    properties="widths_differ",
)  # fmt: skip
class ExactContrast(Contrast):
    """`crd` with labels: negatives of the anchor's own class are left out, as the release has it by default.

    The class of a sample is known from the first time it was in a batch; before, it counts as of another.
    """

    called = "crd_exact"
    known: Tensor

    def __init__(
        self, student_width: int, teacher_width: int,
        *, samples: Count = 50000, negatives: Count = 16384, width: Count = 128, temperature: Positive = 0.07,
        momentum: Share = 0.5,
    ) -> None:  # fmt: skip
        super().__init__(
            student_width, teacher_width,
            samples=samples, negatives=negatives, width=width, temperature=temperature, momentum=momentum,
        )  # fmt: skip
        self.register_buffer("known", torch.full((samples,), -1))

    def forward(  # type: ignore[override]
        self, student: Float[Tensor, "n c"], teacher: Float[Tensor, "n d"], item: Int[Tensor, " n"],
        ids: Int[Tensor, " b"], labels: Int[Tensor, " n"],
    ) -> Float[Tensor, ""]:  # fmt: skip
        own = ids[item]
        if labels.shape != own.shape:
            raise ValueError(f"{self.called}: labels {tuple(labels.shape)} are not one a row of {tuple(student.shape)}")
        if len(own) and int(own.max()) < self.samples:  # else the loss itself says what is wrong
            self.known[own] = labels
        return self._contrast(student, teacher, own, self.known[self.drawn()] == labels[:, None])
