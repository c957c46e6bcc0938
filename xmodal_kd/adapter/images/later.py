"""An array whose rows are made when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


class Later:
    """Rows ``make(row)`` for each of `rows`, with what of an array is asked of the samples of a split.

    Args:
        make: gives ``shape``, of `dtype`.
        signature: says in bytes what the rows are made of.

    >>> later = Later(lambda row: np.full(2, row), np.array([5, 7, 9]), (2,), np.int64, bytes)
    >>> later.shape, later[[2, 0]].tolist(), later.take([1])[:].tolist()
    ((3, 2), [[9, 9], [5, 5]], [[7, 7]])
    """

    def __init__(
        self, make: Callable[[int], npt.NDArray[Any]], rows: npt.NDArray[np.int64], shape: tuple[int, ...], dtype: Any,
        signature: Callable[[], bytes],
    ) -> None:  # fmt: skip
        self.make, self.rows, self.signature = make, rows, signature
        self.shape, self.dtype = (len(rows), *shape), np.dtype(dtype)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, at: Sequence[int] | npt.NDArray[np.int64] | slice) -> npt.NDArray[Any]:
        """Those at some places, made."""
        rows = self.rows[at if isinstance(at, slice) else np.asarray(at, np.int64)]
        out = np.empty((len(rows), *self.shape[1:]), self.dtype)
        for i, row in enumerate(rows):
            out[i] = self.make(int(row))
        return out

    def take(self, at: Sequence[int] | npt.NDArray[np.int64], axis: int = 0) -> Later:
        """Those at some places, still to be made."""
        return Later(self.make, self.rows[np.asarray(at, np.int64)], self.shape[1:], self.dtype, self.signature)

    def made_by(self, make: Callable[[int], npt.NDArray[Any]]) -> Later:
        """The same rows, made otherwise."""
        return Later(make, self.rows, self.shape[1:], self.dtype, self.signature)

    def content(self) -> bytes:
        """What they are made of, for a digest."""
        return self.signature() + self.rows.tobytes()


def content_of(x: npt.NDArray[Any] | Later) -> bytes | memoryview:
    """The samples as bytes, or what says which they are, for a digest."""
    return x.content() if isinstance(x, Later) else np.ascontiguousarray(x).data


__all__ = ["Later", "content_of"]
