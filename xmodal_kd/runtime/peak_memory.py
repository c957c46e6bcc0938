"""Peak memory of a computation: exact on the CPU as on a GPU, as far as tensors go."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Counting(TorchDispatchMode):
    """Counts the bytes of live storages that operations make, at each of them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live, self.peak = 0, 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id_of(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and id_of(tensor) not in self.known | given:
                self._add(tensor)
        self.peak = max(self.peak, self.live)
        return out

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = id_of(tensor), storage.nbytes()
        self.known.add(key)
        self.live += size
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size


def id_of(tensor: Tensor) -> int:
    """The storage's address in memory."""
    return int(tensor.untyped_storage()._cdata)


def peak_bytes(fn: Callable[[], Any], device: torch.device | str = "cpu") -> int:
    """Most bytes of tensors that `fn` holds beside those that were there before.

    On a GPU by the allocator; on the CPU by watching operations, without what a kernel takes and gives back within
    itself.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        fn()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device) - before)
    counting = _Counting()
    with counting:
        fn()
    return counting.peak
