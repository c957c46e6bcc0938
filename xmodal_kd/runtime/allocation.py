"""Models whose sizes a file names are bounded while they are made, before their memory is asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from .errors import UserError

#: Tensors that making one model may make; ours make a few thousand.
MANY = 200_000
_NEW = ("empty", "zeros", "ones", "full")
_SIZED = frozenset({*_NEW, "rand", "randn", *(f"new_{name}" for name in _NEW)})
_RANGES = frozenset({"arange", "linspace", "eye"})


def room() -> int:
    """Bytes of this machine's memory."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return 1 << 36


class _Bounded(TorchDispatchMode):
    """Counts what every function that makes a tensor is asked for."""

    def __init__(self, most: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most, self.bytes, self.tensors = most, 0, 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if name in _SIZED or name in _RANGES:
            self._ask(_elements(name, args), (kwargs or {}).get("dtype"))
        return func(*args, **(kwargs or {}))

    def _ask(self, elements: float, dtype: torch.dtype | None) -> None:
        self.tensors += 1
        self.bytes += int(elements * (dtype or torch.get_default_dtype()).itemsize)
        if self.bytes > self.most or self.tensors > MANY:
            raise _TooLarge(self.bytes)


class _TooLarge(Exception):
    pass


def _elements(name: str, args: Sequence[Any]) -> float:
    if name in _RANGES:
        numbers = [float(one) for one in args if isinstance(one, int | float)]
        return max(numbers, default=0.0) ** (2 if name == "eye" else 1)
    size = next((one for one in args if isinstance(one, Sequence)), ())
    return float(prod(max(0, int(one)) for one in size))


@contextmanager
def bounded(what: str) -> Iterator[None]:
    """Inside it, whatever makes tensors of more memory than this machine has is a `UserError` that begins with `what`.

    So is a size that no tensor can have, and a model of hundreds of thousands of tensors.
    """
    most = room()
    try:
        with _Bounded(most):
            yield
    except _TooLarge as error:
        size = f"{min(error.args[0], 1 << 60) / 2**30:,.0f} GiB or more"
        here = f"{most / 2**30:,.0f} GiB"
        raise UserError(f"{what}: it would take {size}, this machine has {here}: make it smaller") from None
    except (RuntimeError, OverflowError, MemoryError, TypeError, ZeroDivisionError) as error:
        told = " ".join(str(error).split("\n")[0].split())[:200]
        raise UserError(f"{what}: no such model can be made ({told or type(error).__name__})") from error
    except RecursionError:
        raise UserError(f"{what}: no such model can be made (nested too deeply)") from None


__all__ = ["bounded", "room"]
