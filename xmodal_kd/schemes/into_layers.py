"""Other rows into what a module of a network says, whatever its own tensor looks like."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..losses.base import full_precision
from ..runtime.errors import UserError
from ..signals.signals import Layout, Signal
from .rows import dense_rows

#: Rows ``(n, c)`` of a layout as a module lays out its tensor.
Order = Callable[[Tensor, Layout], Tensor]


def _as_rows(rows: Tensor, layout: Layout) -> Tensor:
    return rows


def _valid(rows: Tensor, layout: Layout) -> Tensor:
    return rows[layout.mask]


def _last(rows: Tensor, layout: Layout) -> Tensor:
    return rows.reshape(layout.items, *(layout.grid or ()), rows.shape[1])


def _first(rows: Tensor, layout: Layout) -> Tensor:
    return _last(rows, layout).movedim(-1, 1)


def _time_first(rows: Tensor, layout: Layout) -> Tensor:
    return _last(rows, layout).transpose(0, 1)


#: ``(n, c)`` with or without rows that are not valid, ``(b, *grid, c)``, ``(b, c, *grid)``, ``(t, b, c)``.
ORDERS: tuple[Order, ...] = (_as_rows, _valid, _last, _first, _time_first)


def order_of(said: Tensor, signal: Signal, path: str) -> Order:
    """How the module at `path` lays out the rows that its adapter makes of what it `said`, found by comparing them.

    Raises `UserError` where it is none of `ORDERS`: the adapter makes other rows of it.
    """
    valid, rows = signal.layout.mask[:, None], dense_rows(signal)
    for order in ORDERS:
        if order is not _as_rows and order is not _valid and signal.layout.grid is None:
            continue
        there, placed = order(valid, signal.layout), order(rows, signal.layout)
        if placed.shape == said.shape and torch.equal(torch.where(there, full_precision(said), 0.0), placed):
            return order
    raise UserError(
        f"scheme: {path!r} says {tuple(said.shape)}, of which the modality makes {tuple(signal.rows.shape)} rows in a "
        "way that cannot be undone: name another layer"
    )


@contextmanager
def mixed_into(
    model: nn.Module, path: str, order: Order, rows: Float[Tensor, "n c"], share: Float[Tensor, "n 1"], layout: Layout
) -> Iterator[None]:
    """Within the block the module at `path` says ``(1 - share) h + rows``; of several tensors the first one is mixed.

    It raises `UserError` where its rows are not those of `layout`.
    """

    def mix(module: nn.Module, given: Any, said: Any) -> Any:
        if isinstance(said, tuple):
            return mix(module, given, said[0]), *said[1:]
        flows, taken = (order(one, layout).to(said) for one in (rows, share))
        if flows.shape != said.shape:
            raise UserError(
                f"scheme: {path!r} says {tuple(said.shape)} and what flows into it is {tuple(flows.shape)}: teachers "
                "must see the student's rows"
            )
        return said * (1 - taken) + flows

    hook = model.get_submodule(path).register_forward_hook(mix)
    try:
        yield
    finally:
        hook.remove()


__all__ = ["ORDERS", "Order", "mixed_into", "order_of"]
