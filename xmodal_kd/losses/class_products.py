"""The sums of `mlkd` from products of classes, in memory that grows neither with rows x rows nor classes x classes.

With x and y the probabilities of student and teacher ``(n, c)``, d = x - y and s = x + y, differences of Gram matrices
are sums of products of d and s, so no difference of large numbers is taken::

    x_i . x_j - y_i . y_j = (d_i . s_j + s_i . d_j) / 2         and         x'x - y'y = (s'd + d's) / 2

The matrices of products are made for a block of classes at a time, over chunks of rows. The gradient is written out, so
that all temperatures and blocks add to one tensor: autograd would hold one such tensor for each of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from . import blocks


def by_classes(
    student: Tensor, teacher: Tensor, temperatures: Sequence[float], rows: Tensor | None, classes: Tensor | None
) -> Tensor:
    """``(3,)``, each summed over the temperatures T and over the rows k that the mask `rows` keeps::

        T^2 sum_k KL(y_k || x_k),    sum_kj (x_k . x_j - y_k . y_j)^2,    sum_ab (x'x - y'y)_ab^2

    with a only among `classes`. For more rows than classes; memory beside the inputs and the gradient: some tensors of
    `blocks.BLOCK` elements.
    """
    sums: Tensor = _ByClasses.apply(student, teacher, tuple(temperatures), rows, classes)
    return sums


class _ByClasses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, temperatures: tuple[float, ...], rows: Tensor | None,
        classes: Tensor | None,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(student, teacher, rows, classes)
        ctx.temperatures = temperatures
        levels = [_Level(student, teacher, temperature, rows, classes) for temperature in temperatures]
        return torch.stack([level.sums() for level in levels]).sum(dim=0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Any, ...]:
        student, teacher, rows, classes = ctx.saved_tensors
        grad = torch.zeros_like(student)
        for temperature in ctx.temperatures:
            _Level(student, teacher, temperature, rows, classes).add_gradient(grad, outer[0])
        return grad, None, None, None, None


class _Products(NamedTuple):
    """``s's``, ``s'd``, ``d's`` and ``d'd`` of all classes with those of a block, each ``(c, block)``."""

    ss: Tensor
    sd: Tensor
    ds: Tensor
    dd: Tensor


class _Level:
    """One temperature."""

    def __init__(
        self, student: Tensor, teacher: Tensor, temperature: float, rows: Tensor | None, classes: Tensor | None
    ) -> None:
        self.student, self.teacher, self.temperature = student, teacher, temperature
        self.rows, self.classes = rows, classes
        self.c = student.shape[1]

    def sums(self) -> Tensor:
        alike, between_rows, between_classes = self.student.new_zeros(3).unbind()
        for part in self._chunks():
            log_x, log_y = (F.log_softmax(z[part] / self.temperature, dim=-1) for z in (self.student, self.teacher))
            each = F.kl_div(log_x, log_y, reduction="none", log_target=True).sum(dim=-1)
            alike = alike + (each if self.rows is None else each * self.rows[part]).sum()
        for block in self._blocks():
            all_rows, kept = self._products(block)
            pairs = kept.dd * all_rows.ss + kept.ss * all_rows.dd + 2 * kept.ds * all_rows.sd
            between_rows = between_rows + 0.25 * pairs.sum()
            gaps = (0.5 * (all_rows.sd + all_rows.ds)).square().sum(dim=0)
            between_classes = between_classes + (gaps if self.classes is None else gaps * self.classes[block]).sum()
        return torch.stack([self.temperature**2 * alike, between_rows, between_classes])

    def add_gradient(self, grad: Tensor, outer: Tensor) -> None:
        """Add the gradient of ``outer . sums`` to `grad`: through the probabilities, ``x (g - g . x) / T``.

        Blocks of classes give columns of g; what they add to ``g . x`` is known after the last of them.
        """
        inner = self.student.new_zeros(len(self.student))
        for block in self._blocks():
            all_rows, kept = self._products(block)
            own = _towards_rows(all_rows, outer[1])  # from a row's own differences, which count where it is kept
            others = _towards_rows(kept, outer[1]) + self._towards_classes(all_rows, block, outer[2])
            for part in self._chunks():
                x, both = self._probabilities(part)
                mine = both @ own
                g = both @ others + (mine if self.rows is None else mine * self.rows[part, None])
                weighted = g * x[:, block]
                inner[part] += weighted.sum(dim=1)
                grad[part, block] += weighted / self.temperature
        for part in self._chunks():
            x, both = self._probabilities(part)
            alike = outer[0] * self.temperature * both[:, self.c :]
            alike = alike if self.rows is None else alike * self.rows[part, None]
            grad[part] += alike - x * (inner[part, None] / self.temperature)

    def _chunks(self) -> Iterator[slice]:
        n, size = len(self.student), max(1, blocks.BLOCK // self.c)
        return (slice(start, min(start + size, n)) for start in range(0, n, size))

    def _blocks(self) -> Iterator[slice]:
        """Classes whose four matrices of products are as large as a chunk of rows."""
        size = max(1, blocks.BLOCK // (4 * self.c))
        return (slice(start, min(start + size, self.c)) for start in range(0, self.c, size))

    def _probabilities(self, part: slice) -> tuple[Tensor, Tensor]:
        """x ``(m, c)``, and s and d side by side ``(m, 2 c)``, of a chunk."""
        x, y = (torch.softmax(z[part] / self.temperature, dim=-1) for z in (self.student, self.teacher))
        return x, torch.cat([x + y, x - y], dim=1)

    def _products(self, block: slice) -> tuple[_Products, _Products]:
        """Over all rows, and over those that are kept."""
        width = block.stop - block.start
        totals = self.student.new_zeros(1 if self.rows is None else 2, 2 * self.c, 2 * width)
        for part in self._chunks():
            both = self._probabilities(part)[1]
            right = torch.cat([both[:, block], both[:, self.c + block.start : self.c + block.stop]], dim=1)
            totals[0].addmm_(both.T, right)
            if self.rows is not None:
                totals[1].addmm_(both.T, right * self.rows[part, None])
        all_rows, kept = (
            _Products(
                total[: self.c, :width], total[: self.c, width:], total[self.c :, :width], total[self.c :, width:]
            )
            for total in (totals[0], totals[-1])
        )
        return all_rows, kept

    def _towards_classes(self, of: _Products, block: slice, weight: Tensor) -> Tensor:
        """``(2 c, block)``: what s and d are multiplied by for the part of g that is due to the classes' sum."""
        gaps = weight * (of.sd + of.ds)
        if self.classes is not None:
            gaps = gaps * 0.5 * (self.classes[:, None] + self.classes[block])
        return torch.cat([gaps, gaps])


def _towards_rows(of: _Products, weight: Tensor) -> Tensor:
    """The same for the part that is due to the rows' sum."""
    return 0.5 * weight * torch.cat([of.ds + of.dd, of.ss + of.sd])
