"""Losses between class scores of a whole and of its parts: tiles of an image, sectors of a scan, spans of speech."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from .base import Positive, item_mean, loss, same_shape
from .logits import kl

PAPER = "Wei et al.: Scale Decoupled Distillation"
Scale = Annotated[int, Field(ge=2)]
Heavier = Annotated[float, Field(ge=0)]


@loss(
    "sdd", reduction="items", family="logits", year=2024, needs="logits maps", paper=PAPER,
    properties="zero_at_teacher shift_invariant",
)  # fmt: skip
def sdd(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"], labels: Int[Tensor, " m"],
    label_item: Int[Tensor, " m"], item: Int[Tensor, " n"], items: int, cell: Int[Tensor, " n"],
    grid: tuple[int, ...],
    *, temperature: Positive = 4.0, scales: tuple[Scale, ...] = (2, 4), complementary: Heavier = 2.0,
    agree: Literal["right", "class"] = "right",
) -> tuple[Float[Tensor, " b"], Tensor]:  # fmt: skip
    """Mean over an item and its tiles of ``w T^2 KL(softmax(teacher/T) || softmax(student/T))``.

    Rows are class scores of positions: a linear head on each position of a map, so that their mean over a tile is the
    head's answer to the pooled tile. A scale s cuts each axis of the grid into s parts (where there are fewer
    positions, each is its own). ``w`` is `complementary` where by the teacher the tile disagrees with the whole,
    else 1.

    Args:
        agree: `right`, the release's: both are right about the item's label, or both wrong. `class`: their most
            probable classes are the same, which needs no label (`sdd_teacher`).

    Items without rows or without a label are not counted.
    """
    same_shape(student, teacher)
    label = labels.new_full((items,), -1).scatter(0, label_item, labels)
    known = label >= 0
    values, counted = _parts(
        student,
        teacher,
        item,
        items,
        cell,
        grid,
        temperature,
        scales,
        complementary,
        label if agree == "right" else None,
    )
    return values * known, counted & known


@loss(
    "sdd_teacher", reduction="items", family="logits", year=2024, needs="logits maps", paper=PAPER, confidence="B",
    properties="zero_at_teacher shift_invariant",
)  # fmt: skip
def sdd_teacher(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"], item: Int[Tensor, " n"], items: int,
    cell: Int[Tensor, " n"], grid: tuple[int, ...],
    *, temperature: Positive = 4.0, scales: tuple[Scale, ...] = (2, 4), complementary: Heavier = 2.0,
) -> tuple[Float[Tensor, " b"], Tensor]:  # fmt: skip
    """`sdd` without labels: a tile disagrees where the teacher's most probable class there is not that of the whole.

    So the paper words it; its release looks whether both are right. It teaches on samples without labels too.
    """
    same_shape(student, teacher)
    return _parts(student, teacher, item, items, cell, grid, temperature, scales, complementary, None)


def _parts(
    student: Tensor, teacher: Tensor, item: Tensor, items: int, cell: Tensor, grid: tuple[int, ...],
    temperature: float, scales: tuple[int, ...], complementary: float, label: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Values ``(b,)``, and which items have rows. `label` ``(b,)``: agreement is about being right."""
    there = torch.bincount(item, minlength=items) > 0
    whole = item_mean(teacher, item, items).argmax(dim=-1)
    total, count = student.new_zeros(items), student.new_zeros(items)
    for tile, of, tiles in _tiles(item, items, cell, grid, (1, *scales)):
        filled = torch.bincount(tile, minlength=tiles) > 0
        t, s = (item_mean(rows, tile, tiles) for rows in (teacher, student))
        log_p, log_q = (F.log_softmax(z / temperature, dim=-1) for z in (t, s))
        answer, expected = t.argmax(dim=-1), whole[of]
        same = answer == expected if label is None else (answer == label[of]) == (expected == label[of])
        weight = torch.where(same, 1.0, complementary).to(student.dtype) * filled
        total = total.index_add(0, of, weight * kl(log_p, log_q))
        count = count.index_add(0, of, filled.to(count.dtype))
    return temperature**2 * total / count.clamp(min=1), there


def _tiles(
    item: Tensor, items: int, cell: Tensor, grid: tuple[int, ...], scales: tuple[int, ...]
) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Of each scale: the tile of each row ``(n,)``, the item of each tile ``(t,)``, and how many tiles there are."""
    places = torch.unravel_index(cell % prod(grid), grid)
    for scale in scales:
        tile = item
        for place, size in zip(places, grid, strict=True):
            tile = tile * scale + place * scale // size
        each = scale ** len(grid)
        yield tile, torch.arange(items * each, device=item.device) // each, items * each


__all__ = ["sdd", "sdd_teacher"]
