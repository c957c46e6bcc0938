"""Small signals for tests of the objective: rows that are padded and ragged, losses that count differently."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from xmodal_kd.losses import LOSSES, loss
from xmodal_kd.objective.objective import Objective
from xmodal_kd.recipe.recipe import Term
from xmodal_kd.signals.signals import Layout, Signals

NAN = float("nan")
LENGTHS = torch.tensor([4, 2, 0, 3])
STEPS = 5

if "test_scorer" not in LOSSES:

    @loss("test_scorer", reduction="rows", family="test", paper="", year=2026, needs="features")
    class Scorer(nn.Module):
        """A learned scale of the squared difference."""

        def __init__(self, student_width: int, teacher_width: int, *, start: float = 2.0) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.full((teacher_width,), start))
            self.mix = nn.Linear(teacher_width, teacher_width)

        def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
            return (self.scale * (self.mix(student) - teacher)).square().mean(-1)

    @loss("test_row_ce", reduction="rows", family="test", paper="", year=2026)
    def ce(student: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(student, labels, reduction="none")

    @loss("test_taught_ce", reduction="rows", family="test", paper="", year=2026)
    def taught_ce(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(student - teacher, labels, reduction="none")

    @loss("test_tokens", reduction="items", family="test", paper="", year=2026)
    def tokens(student: Tensor, item: Tensor, items: int, labels: Tensor, label_item: Tensor) -> tuple[Tensor, Tensor]:
        """Sum of an item's labels times its first channel; items without labels are not counted."""
        rows = student.new_zeros(items).index_add(0, item, student[:, 0])
        summed = torch.zeros(items, dtype=student.dtype).index_add(0, label_item, labels.to(student.dtype))
        return rows * summed, torch.bincount(label_item, minlength=items) > 0


def padded(rows: Tensor, junk: float = 0.0) -> Tensor:
    """``(b, t, c)`` of ragged rows ``(n, c)``, with `junk` in the padding."""
    out = torch.full((len(LENGTHS), STEPS, rows.shape[1]), junk, dtype=rows.dtype)
    mask = torch.arange(STEPS) < LENGTHS[:, None]
    out[mask] = rows.detach()
    return out


def ragged_layout() -> Layout:
    return Layout.ragged("frame", torch.arange(len(LENGTHS)).repeat_interleave(LENGTHS), len(LENGTHS))


def padded_layout() -> Layout:
    return Layout.padded("frame", LENGTHS, STEPS)


def says(rows: Tensor, layout: Layout, name: str = "logits") -> Signals:
    return Signals(torch.arange(layout.items)).add(name, rows, layout)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def single(name: str, **params: Any) -> Objective:
    return Objective([Term(loss=name, params=params)])


N = int(LENGTHS.sum())
ROWS = [name for name in ("kd", "logit_mse", "hint", "at", "cka", "dist") if name in LOSSES]


# ---------------------------------------------------------------- modules


def features(width: int, seed: int = 0, name: str = "f", rows: int = 8) -> Signals:
    return says(randn(rows, width, seed=seed), Layout.samples(rows), name)
