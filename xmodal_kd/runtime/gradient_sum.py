"""Gradients added up over ranks while the backward pass goes on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .errors import RunError

#: Bytes of gradients that are sent at once: enough that their number does not count, few enough that the first are on
#: their way early.
BUCKET = 1 << 23
_NOTHING = nullcontext()


# docs/decisions/003-one-loop.md
class GradientSum:
    """The sum over all ranks of the gradients of `parameters`, for one backward pass.

    Buckets are filled from the last parameter to the first, as a backward pass goes, and are sent as soon as they and
    all before them are full: so every rank sends them in one order, whatever it uses. A parameter unused on a rank
    counts as 0 there; one that no rank used keeps no gradient, for an optimizer with momentum would move it by a
    gradient of zeros. Which are used travels behind the gradients of a bucket, one number a parameter.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], size: int = BUCKET) -> None:
        self._buckets = _buckets(parameters, size)
        self._place = {id(p): i for i, bucket in enumerate(self._buckets) for p in bucket}
        self._missing = [{id(p) for p in bucket if p.requires_grad} for bucket in self._buckets]
        self._sent: list[tuple[Tensor, Any]] = []

    def during(self) -> AbstractContextManager[None]:
        """Around the one backward pass after which gradients are whole."""
        return self._listening() if self._buckets else _NOTHING

    @contextmanager
    def _listening(self) -> Iterator[None]:
        hooks = [
            parameter.register_post_accumulate_grad_hook(self._arrived)
            for bucket in self._buckets
            for parameter in bucket
            if parameter.requires_grad
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _arrived(self, parameter: Tensor) -> None:
        bucket = self._place[id(parameter)]
        if bucket < len(self._sent):
            raise RunError(
                "a gradient came twice in one backward pass, after the first was sent to the other ranks (reentrant "
                "activation checkpointing does so): say use_reentrant=False there"
            )
        self._missing[bucket].discard(id(parameter))
        while len(self._sent) < len(self._buckets) and not self._missing[len(self._sent)]:
            self._send()

    def _send(self) -> None:
        bucket = self._buckets[len(self._sent)]
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
        used = grads[0].new_tensor([float(p.grad is not None) for p in bucket])
        flat = torch.cat([*(grad.reshape(-1) for grad in grads), used])
        self._sent.append((flat, dist.all_reduce(flat, async_op=True)))

    def finish(self) -> None:
        """Send what is left, and put the sums in the gradients' places."""
        while len(self._sent) < len(self._buckets):
            self._send()
        for bucket, (flat, work) in zip(self._buckets, self._sent, strict=True):
            work.wait()
            *pieces, ranks_using = flat.split([*(p.numel() for p in bucket), len(bucket)])
            here = all(p.grad is not None for p in bucket)
            used = [True] * len(bucket) if here else (ranks_using > 0).tolist()
            for parameter, piece, somewhere in zip(bucket, pieces, used, strict=True):
                parameter.grad = piece.view_as(parameter) if somewhere else None


def _buckets(parameters: Sequence[nn.Parameter], size: int) -> list[list[nn.Parameter]]:
    """From the last to the first, each of one type on one device and, but for a single larger one, of `size` bytes."""
    found: list[list[nn.Parameter]] = []
    filling: dict[tuple[torch.dtype, torch.device], tuple[int, list[nn.Parameter]]] = {}
    for parameter in reversed(parameters):
        kind, more = (parameter.dtype, parameter.device), parameter.numel() * parameter.element_size()
        held, bucket = filling.get(kind, (size, []))
        if held + more > size:
            held, bucket = 0, []
            found.append(bucket)
        bucket.append(parameter)
        filling[kind] = held + more, bucket
    return found


#: Of a process alone, which has nobody to wait for.
NOBODY = GradientSum(())
