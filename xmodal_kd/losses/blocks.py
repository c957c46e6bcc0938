"""How losses keep their intermediate tensors small: items side by side, and sums over blocks of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

#: Elements of the largest intermediate tensor of a block: 16 MiB in float32.
BLOCK = 1 << 22


def in_blocks(fn: Callable[[slice], Tensor], rows: int, per_row: int) -> list[Tensor]:
    """``fn(block)`` over consecutive blocks of `rows`, each computed anew in the backward pass.

    `per_row` says how many elements of its intermediate tensors belong to one row, so that a pairwise loss of n rows
    holds (block x n) values at a time and never (n x n). A single block is computed plainly.
    """
    size = max(1, BLOCK // max(per_row, 1))
    if size >= rows:
        return [fn(slice(0, rows))]
    starts = range(0, rows, size)
    return [
        checkpoint(fn, slice(i, min(i + size, rows)), use_reentrant=False, preserve_rng_state=False) for i in starts
    ]


def block_sum(fn: Callable[[slice], Tensor], rows: int, per_row: int) -> Tensor:
    """Sum of the blocks' values."""
    return torch.stack(in_blocks(fn, rows, per_row)).sum(dim=0)


def row_numbers(item: Tensor, items: int) -> list[Tensor]:
    """Row numbers of each item."""
    order = torch.argsort(item, stable=True)
    return list(order.split(torch.bincount(item, minlength=items).tolist()))


def side_by_side(rows: Tensor, item: Tensor, items: int) -> tuple[Tensor, Tensor]:
    """Rows ``(n, c)`` as ``(b, m, c)``, m the most rows of an item, 0 beyond an item's own; and which are its own."""
    counts = torch.bincount(item, minlength=items)
    most = int(counts.max()) if items else 0
    order = torch.argsort(item, stable=True)
    first = counts.cumsum(0) - counts
    sorted_item = item[order]
    place = sorted_item * most + torch.arange(len(item), device=item.device) - first[sorted_item]
    out = rows.new_zeros(items * most, rows.shape[1]).index_copy(0, place, rows[order])
    own = torch.arange(most, device=item.device) < counts[:, None]
    return out.reshape(items, most, rows.shape[1]), own


def distances(a: Tensor, b: Tensor) -> Tensor:
    """``(n, m)`` Euclidean distances, never by way of ``(n, m, c)``; where two rows coincide the gradient is 0."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def groups(*keys: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct tuples of `keys` ``(g, len(keys))`` in ascending order, and each row's number among them ``(n,)``."""
    found, which = torch.unique(torch.stack(keys, dim=1), dim=0, return_inverse=True)
    return found, which


@torch.no_grad()
def neighbours_of(rows: Tensor, nearest: int, of: Tensor | None = None) -> Tensor:
    """``(m, nearest)`` numbers of the rows nearest to each row, nearest first, itself left out.

    Args:
        of: ``(m,)`` numbers of the rows whose neighbours are sought; None: of all.
    """
    sought = torch.arange(len(rows), device=rows.device) if of is None else of

    def block(part: slice) -> Tensor:
        these = sought[part]
        apart = distances(rows[these], rows)
        apart[torch.arange(len(these), device=rows.device), these] = torch.inf
        return apart.topk(nearest, dim=1, largest=False).indices

    return torch.cat(in_blocks(block, len(sought), len(rows)))


RowLoss = Callable[..., Tensor]


def row_by_row(fn: RowLoss, student: Tensor, others: Sequence[Tensor], index: Tensor | None = None) -> Tensor:
    """``fn(student, *others)``, values ``(n,)`` of rows that know nothing of one another, in chunks of rows.

    Beside its inputs and the gradient it returns it holds some tensors of `BLOCK` elements: in the backward pass each
    chunk is computed anew, and no tensor of all rows and classes is kept between. Half-precision rows become float32
    within a chunk only. `index` ``(m,)`` names the rows to take, so that padded rows need not be copied either.
    """
    values: Tensor = _RowByRow.apply(fn, False, student, index, *others)
    return values


def summed_rows(fn: RowLoss, student: Tensor, others: Sequence[Tensor]) -> Tensor:
    """Sum over chunks of rows of ``fn(student, *others)``, which is a statistic of a chunk; memory as `row_by_row`."""
    total: Tensor = _RowByRow.apply(fn, True, student, None, *others)
    return total


class _RowByRow(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, fn: RowLoss, summed: bool, student: Tensor, index: Tensor | None, *others: Tensor) -> Tensor:
        ctx.fn, ctx.summed = fn, summed
        ctx.save_for_backward(student, index, *others)
        parts = (fn(*(x[rows] for x in (student, *others))) for rows, _ in _chunks(student, index))
        return reduce(torch.add, parts) if summed else torch.cat(list(parts))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Any, ...]:
        student, index, *others = ctx.saved_tensors
        grad = torch.empty_like(student) if index is None else torch.zeros_like(student)
        with torch.autocast(student.device.type, enabled=False):
            for rows, place in _chunks(student, index):
                with torch.enable_grad():
                    leaf = student[rows].detach().requires_grad_()
                    values = ctx.fn(leaf, *(x[rows] for x in others))
                grad[rows] = torch.autograd.grad(values, leaf, outer[0] if ctx.summed else outer[0][place])[0]
        return None, None, grad, None, *[None] * len(others)


def _chunks(student: Tensor, index: Tensor | None) -> Iterator[tuple[slice | Tensor, slice]]:
    """Rows of each chunk, at least one of them, and their place among the values."""
    number = len(student) if index is None else len(index)
    size = max(1, BLOCK // max(student.shape[1], 1))
    for start in range(0, max(number, 1), size):
        place = slice(start, min(start + size, number))
        yield (place if index is None else index[place]), place
