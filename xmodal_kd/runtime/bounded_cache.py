"""A bounded memory of what is costly to compute."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    @property
    def nbytes(self) -> int: ...


T = TypeVar("T", bound=Sized)


class BoundedCache(Generic[T]):
    """Arrays or tensors by key, up to `limit` bytes; past that, values are computed anew on every call.

    Nothing is evicted: an epoch visits every sample once, and there a least-recently-used cache that is a little too
    small would miss always, this one only for the share that does not fit. Each worker process has a memory of its own.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._values: dict[Hashable, T] = {}

    def __contains__(self, key: Hashable) -> bool:
        return key in self._values

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        if (value := self._values.get(key)) is not None:
            return value
        value = make()
        if self.used + value.nbytes <= self.limit:
            self._values[key] = value
            self.used += value.nbytes
        return value
