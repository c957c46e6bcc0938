"""Lists of a million entries whose entries are made when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar, overload

from numpy.typing import NDArray

T = TypeVar("T")


class Made(Sequence[T], Generic[T]):
    """`make` of each number in `rows`.

    >>> Made(str, range(3, 6))[1:]
    ['4', '5']
    """

    def __init__(self, make: Callable[[int], T], rows: Sequence[int] | NDArray[Any]) -> None:
        self.make, self.rows = make, rows

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, at: int) -> T: ...
    @overload
    def __getitem__(self, at: slice) -> list[T]: ...
    def __getitem__(self, at: int | slice) -> T | list[T]:
        if isinstance(at, slice):
            return [self.make(int(row)) for row in self.rows[at]]
        return self.make(int(self.rows[at]))


class Batches(Sequence[list[int]]):
    """The batches of an epoch as two arrays, eight bytes a sample in the place of forty.

    Args:
        order: the samples.
        starts: where in `order` each batch begins.
        sizes: and how many it has.

    >>> import numpy as np
    >>> Batches(np.array([3, 1, 2]), np.array([1, 0]), np.array([2, 1]))[0]
    [1, 2]
    """

    def __init__(self, order: NDArray[Any], starts: NDArray[Any], sizes: NDArray[Any]) -> None:
        self.order, self.starts, self.sizes = order, starts, sizes

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, at: int) -> list[int]: ...
    @overload
    def __getitem__(self, at: slice) -> Batches: ...
    def __getitem__(self, at: int | slice) -> list[int] | Batches:
        if isinstance(at, slice):
            return Batches(self.order, self.starts[at], self.sizes[at])
        start = self.starts[at]
        found: list[int] = self.order[start : start + self.sizes[at]].tolist()
        return found

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]


def at_least(batches: Sequence[Sequence[int]], size: int) -> Sequence[Sequence[int]]:
    """Those of so many samples or more."""
    if isinstance(batches, Batches):
        large = batches.sizes >= size
        return Batches(batches.order, batches.starts[large], batches.sizes[large])
    return [batch for batch in batches if len(batch) >= size]


__all__ = ["Batches", "Made", "at_least"]
