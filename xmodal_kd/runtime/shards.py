"""Tensors of which each rank holds a part (``DTensor``), beside tensors that are whole."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor


def is_shard(tensor: Tensor) -> bool:
    """Whether `tensor` is one rank's part of a larger one."""
    return hasattr(tensor, "full_tensor")


def local(tensor: Tensor) -> Tensor:
    """This rank's part, in the memory of the whole."""
    return cast(Any, tensor).to_local() if is_shard(tensor) else tensor


def gathered(tensor: Tensor) -> Tensor:
    """The whole of it. All ranks must ask."""
    return cast(Any, tensor).full_tensor() if is_shard(tensor) else tensor


def like(one: Tensor, whole: Tensor) -> Tensor:
    """`whole`, which every rank has, cut as `one` of its shape is; nothing is sent."""
    if not is_shard(one) or one.shape != whole.shape:
        return whole
    from torch.distributed.tensor import distribute_tensor

    held = cast(Any, one)
    placed = whole.to(held.to_local().device)
    return cast(Tensor, distribute_tensor(placed, held.device_mesh, held.placements, src_data_rank=None))


@torch.no_grad()
def norm(gradients: list[Tensor]) -> Tensor:
    """The 2-norm of all `gradients`, of which some are parts of larger ones. All ranks must ask."""
    whole = [gradient for gradient in gradients if not is_shard(gradient)]
    total = torch.nn.utils.get_total_norm(whole)
    parts = [local(gradient) for gradient in gradients if is_shard(gradient)]
    if not parts:
        return total
    import torch.distributed as dist

    squares = torch.nn.utils.get_total_norm([part for part in parts if part.numel()]).to(parts[0].device).square()
    dist.all_reduce(squares)
    return (total.to(squares.device).square() + squares).sqrt()


__all__ = ["gathered", "is_shard", "like", "local", "norm"]
