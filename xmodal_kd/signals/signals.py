"""What a role says about a batch: named tensors, each on a layout that says what a row is.

Every adapter reduces its modality to rows: an utterance's frames, an image's pixels, a cloud's points, a sample's
pooled embedding. Alignment is the adapter's work, so row i of the teacher stands beside row i of the student, and one
library of losses serves all modalities.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Literal, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from ..runtime.errors import UserError, nearest

Kind = Literal["sample", "frame", "pixel", "point", "region", "token"]
#: What a role answers, by the name of its signal: class scores, or the values of a regression. All else is a feature.
OUTPUTS = frozenset({"logits", "prediction"})
#: Of each of several teachers: how much it counts in a row.
WEIGHT = "weight"


@dataclass(frozen=True)
class Layout:
    """What a row of a signal is.

    Attributes:
        kind: the thing that a row describes.
        mask: ``(n,)`` bool, the valid rows; the others are padding and may hold anything, NaN included.
        item: ``(n,)`` int64, the item of the batch that a row belongs to.
        items: number of items in the batch (an item may have no row at all).
        grid: shape of one item's rows where they form a grid, so that n = items * prod(grid); else None.
        full: every row is known to be valid, so that nothing need be gathered.

    >>> layout = Layout.padded("frame", torch.tensor([2, 1]), 3)  # two items, three rows each, of which 2 and 1 count
    >>> layout.mask.tolist(), layout.item.tolist()
    ([True, True, False, True, False, False], [0, 0, 0, 1, 1, 1])
    """

    kind: Kind
    mask: Tensor
    item: Tensor
    items: int
    grid: tuple[int, ...] | None = None
    full: bool = False

    def __post_init__(self) -> None:
        if self.mask.dtype != torch.bool or self.mask.ndim != 1 or self.mask.shape != self.item.shape:
            raise ValueError(
                f"layout of {self.kind}s: mask {tuple(self.mask.shape)} {self.mask.dtype} and item "
                f"{tuple(self.item.shape)} must be one bool and one int64 vector of equal length"
            )
        if self.grid is not None and self.items * prod(self.grid) != len(self.mask):
            raise ValueError(f"layout of {self.kind}s: {self.items} items of grid {self.grid} are not {len(self.mask)}")

    def __len__(self) -> int:
        return self.mask.shape[0]  # which is sooner told than the length of a tensor

    @classmethod
    def samples(cls, items: int, device: torch.device | str = "cpu") -> Layout:
        """One row an item."""
        return cls.dense("sample", items, (), device)

    @classmethod
    def dense(cls, kind: Kind, items: int, grid: tuple[int, ...], device: torch.device | str = "cpu") -> Layout:
        """Every cell of every item's grid is valid. Equal ones are the same object, as shapes of batches recur."""
        return _dense(kind, items, grid, str(device))

    @classmethod
    def padded(cls, kind: Kind, lengths: Tensor, steps: int) -> Layout:
        """Sequences of ``lengths`` ``(b,)`` rows, each padded to `steps`."""
        items = len(lengths)
        position = torch.arange(steps, device=lengths.device)
        mask = position[None, :] < lengths[:, None]
        item = torch.arange(items, device=lengths.device).repeat_interleave(steps)
        return cls(kind, mask.reshape(-1), item, items, (steps,))

    @classmethod
    def ragged(cls, kind: Kind, item: Tensor, items: int) -> Layout:
        """Rows of several items behind one another, all valid: points of clouds, pixels that a point sees."""
        return cls(kind, torch.ones_like(item, dtype=torch.bool), item, items, full=True)

    def same_rows(self, other: Layout) -> bool:
        """Whether row i means the same thing in both (masks may differ: a loss sees the rows valid in both).

        Grids of as many axes must agree: 4 x 6 cells are as many as 6 x 4, and others. One laid out flat is the same.
        """
        alike = self.grid is None or other.grid is None or len(self.grid) != len(other.grid) or self.grid == other.grid
        return self is other or (
            alike
            and self.kind == other.kind
            and self.items == other.items
            and (self.item is other.item or torch.equal(self.item, other.item))
        )


@lru_cache(maxsize=8)
def _dense(kind: Kind, items: int, grid: tuple[int, ...], device: str) -> Layout:
    item = torch.arange(items, device=device)
    item = item.repeat_interleave(prod(grid)) if grid else item
    return Layout(kind, torch.ones_like(item, dtype=torch.bool), item, items, grid, full=True)


class Signal(NamedTuple):
    """Rows ``(n, c)``, or ``(n,)`` for labels, and what a row is."""

    rows: Tensor
    layout: Layout


class Signals:
    """Named signals of one role on one batch.

    >>> s = Signals().add("logits", torch.zeros(2, 3, 5), Layout.dense("frame", 2, (3,)))
    >>> s.rows("logits").shape, s.maps("logits").shape
    (torch.Size([6, 5]), torch.Size([2, 5, 3]))
    """

    def __init__(self, ids: Tensor | None = None) -> None:
        #: ``(b,)`` int64 ids of the samples in the whole training set, for memory banks and caches.
        self.ids = ids
        #: The model that says this, for losses that run a part of it again (the teacher's head); set by the method.
        self.model: nn.Module | None = None
        #: ``(b,)`` bool, the samples whose labels a loss may look at; None where it may look at all. Set by the method.
        self.labelled: Tensor | None = None
        self._signals: dict[str, Signal] = {}
        self._views: dict[str, Signals] = {}

    def add(self, name: str, tensor: Tensor, layout: Layout) -> Signals:
        """Add a signal given as rows ``(n, c)``, as labels ``(n,)`` or channel-last ``(b, *grid, c)``. Returns self."""
        n = len(layout)
        if tensor.ndim not in (1, 2) or tensor.shape[0] != n:
            if layout.grid is None or tensor.shape[:-1] != (layout.items, *layout.grid):
                of_grid = f" of {layout.items} items on grid {layout.grid}" if layout.grid is not None else ""
                raise ValueError(
                    f"signal {name!r} of shape {tuple(tensor.shape)} does not fit {n} {layout.kind} rows{of_grid}: "
                    "give (n, c) or channels last"
                )
            tensor = tensor.reshape(n, tensor.shape[-1])
        self._signals[name] = Signal(tensor, layout)
        return self

    def add_view(self, tag: str, signals: Signals) -> Signals:
        """Attach the signals of a second augmentation of the same samples. Returns self."""
        self._views[tag] = signals
        return self

    def __getitem__(self, name: str) -> Signal:
        if name not in self._signals:
            raise UserError(f"no signal {name!r} in this batch{nearest(name, self._signals)}")
        return self._signals[name]

    def __contains__(self, name: object) -> bool:
        return name in self._signals

    def __iter__(self) -> Iterator[str]:
        return iter(self._signals)

    def rows(self, name: str) -> Tensor:
        """``(n, c)``, or ``(n,)`` for labels."""
        return self[name].rows

    def layout(self, name: str) -> Layout:
        return self[name].layout

    def maps(self, name: str) -> Tensor:
        """``(b, c, *grid)``: a view of the rows. Raises ``ValueError`` that names a signal without a grid."""
        rows, layout = self[name]
        if layout.grid is None:
            raise ValueError(f"signal {name!r} is ragged ({layout.kind} rows without a grid): it has no maps")
        axes = [f"g{i}" for i in range(len(layout.grid))]
        sizes = dict(zip(axes, layout.grid, strict=True))
        grid = " ".join(axes)
        return rearrange(rows, f"(b {grid}) c -> b c {grid}", b=layout.items, **sizes)

    def view(self, tag: str) -> Signals:
        if tag not in self._views:
            raise UserError(f"no view {tag!r} of this batch{nearest(tag, self._views)}")
        return self._views[tag]

    def detach(self) -> Signals:
        """The same signals cut from the graph: a teacher is never trained through a loss."""
        out = Signals(self.ids)
        out.model, out.labelled = self.model, self.labelled
        for name, (rows, layout) in self._signals.items():
            out.add(name, rows.detach(), layout)
        for tag, view in self._views.items():
            out.add_view(tag, view.detach())
        return out


#: What teaches on a batch: one role's signals, several roles' by name, or nothing.
TeacherSignals = Signals | Mapping[str, Signals] | None


# ---------------------------------------------------------------- signals of one of several teachers


def teacher_name(role: str) -> str:
    """By which terms know a role that teaches beside others: ``camera`` for ``teacher-camera``, else the role."""
    return role.removeprefix("teacher-")


def of_teacher(role: str, signal: str) -> str | None:
    """The module of a teacher that a term's signal means, None where it means another teacher's or no module.

    A path alone is the first teacher's; ``camera/encoder.out`` that of the teacher called so.
    """
    whose, slash, rest = signal.partition("/")
    if slash:
        return rest if whose == teacher_name(role) and rest not in (*OUTPUTS, WEIGHT) else None
    return None if signal in OUTPUTS or role.startswith("teacher-") else signal
