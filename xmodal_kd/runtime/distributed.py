"""The processes of a run, as far as the loop and a loss over a whole batch need them.

Gradients are summed here rather than by DistributedDataParallel: a distillation step may run a model twice, leave
parameters unused, train projectors beside it and capture features by module path, and each of these breaks a wrapper.
What is lost is the overlap of communication with the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn

from .gradient_sum import NOBODY, GradientSum
from .shards import is_shard

T = TypeVar("T")


class Ranks:
    """This process alone."""

    world, rank = 1, 0

    @property
    def main(self) -> bool:
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        return values

    def sum_number(self, value: int) -> int:
        return value

    def summing(self, parameters: Sequence[nn.Parameter]) -> GradientSum:
        """What adds up all ranks' gradients of `parameters`, once."""
        return NOBODY

    def gather_rows(self, rows: Tensor) -> Tensor:
        """All ranks' rows, this rank's with their graph."""
        return rows

    def agree(self, modules: Iterable[nn.Module]) -> None:
        """Rank 0's parameters and buffers everywhere; what is spread over ranks stays."""

    def any(self, flag: bool) -> bool:
        return flag

    def share(self, value: T) -> T:
        """Rank 0's value everywhere."""
        return value

    def share_tensors(self, tensors: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """Rank 0's tensors everywhere, on the CPU; the others give None."""
        return dict(tensors or {})

    def gather(self, value: T) -> list[T]:
        """Every rank's value, by rank."""
        return [value]

    def barrier(self) -> None: ...


class ProcessRanks(Ranks):
    """The processes of ``torch.distributed``, started by ``accelerate launch`` or ``torchrun``."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.world, self.rank = dist.get_world_size(), dist.get_rank()

    def sum(self, values: Tensor) -> Tensor:
        out = values.detach().clone()
        dist.all_reduce(out)
        return out

    def sum_number(self, value: int) -> int:
        return int(self.sum(torch.tensor(value, device=self.device)).item())

    def summing(self, parameters: Sequence[nn.Parameter]) -> GradientSum:
        return GradientSum([parameter for parameter in parameters if not is_shard(parameter)])

    def gather_rows(self, rows: Tensor) -> Tensor:
        lengths = self._gather(torch.tensor([len(rows)], device=rows.device))
        longest = int(max(lengths))
        padded = rows.detach().new_zeros((longest, *rows.shape[1:]))
        padded[: len(rows)] = rows.detach()
        pieces: Sequence[Tensor] = [p[: int(n)] for p, n in zip(self._gather(padded), lengths, strict=True)]
        return torch.cat([rows if i == self.rank else piece for i, piece in enumerate(pieces)])

    def _gather(self, value: Tensor) -> list[Tensor]:
        out = [torch.empty_like(value) for _ in range(self.world)]
        dist.all_gather(out, value)
        return out

    def agree(self, modules: Iterable[nn.Module]) -> None:
        with torch.no_grad():
            for module in modules:
                for tensor in (*module.parameters(), *module.buffers()):
                    if not is_shard(tensor):
                        dist.broadcast(tensor, 0)

    def any(self, flag: bool) -> bool:
        return bool(self.sum(torch.tensor([float(flag)], device=self.device)).item() > 0)

    def share(self, value: T) -> T:
        box = [value]
        dist.broadcast_object_list(box, 0)
        return box[0]

    def share_tensors(self, tensors: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        given = tensors or {}
        about = self.share([(name, tuple(one.shape), one.dtype) for name, one in given.items()])
        return {name: self._sent(given.get(name), shape, dtype) for name, shape, dtype in about}

    def _sent(self, tensor: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """As bytes, for not every backend sends every type."""
        whole = (torch.empty(shape, dtype=dtype) if tensor is None else tensor.detach().cpu()).contiguous()
        if whole.numel():
            sent = whole.reshape(-1).view(torch.uint8).to(self.device)
            dist.broadcast(sent, 0)
            whole = sent.cpu().view(dtype).reshape(shape)
        return whole

    def gather(self, value: T) -> list[T]:
        found: list[T] = [value] * self.world
        dist.all_gather_object(found, value)
        return found

    def barrier(self) -> None:
        dist.barrier()


def ranks_of(accelerator: Accelerator) -> Ranks:
    """This run's processes, or this process alone."""
    return ProcessRanks(accelerator.device) if accelerator.num_processes > 1 else Ranks()
