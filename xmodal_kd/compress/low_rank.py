"""Layers of two factors in the place of one weight, and models that hold such, as their saved weights say."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

#: What networks ask a layer for, by the factor that knows it.
DOWN = frozenset({"in_features", "in_channels", "kernel_size", "stride", "padding", "padding_mode", "dilation"})
UP = frozenset({"out_features", "out_channels", "bias", "groups"})


class LowRank(nn.Sequential):
    """What a linear layer or a convolution of rank `rank` computes: ``down``, then ``up``, which has its bias.

    Of a convolution ``down`` has its kernel, stride and padding, and ``up`` is 1 x 1. Its sizes and its bias are known
    by the layer's names for them; a weight it has none.

    >>> import torch
    >>> low = LowRank(nn.Conv2d(6, 8, 3, stride=2, padding=1), 2)
    >>> [tuple(p.shape) for p in low.parameters()], tuple(low(torch.zeros(1, 6, 5, 5)).shape)
    ([(2, 6, 3, 3), (8, 2, 1, 1), (8,)], (1, 8, 3, 3))
    """

    down: nn.Linear | nn.Conv2d
    up: nn.Linear | nn.Conv2d

    def __init__(self, layer: nn.Module, rank: int) -> None:
        like: Any = {"device": layer.weight.device, "dtype": layer.weight.dtype}
        bias = layer.bias is not None
        if isinstance(layer, nn.Linear):
            down: Any = nn.Linear(layer.in_features, rank, bias=False, **like)
            up: Any = nn.Linear(rank, layer.out_features, bias=bias, **like)
        else:
            assert isinstance(layer, nn.Conv2d) and layer.groups == 1
            place: Any = {name: getattr(layer, name) for name in ("stride", "padding", "dilation", "padding_mode")}
            kernel: Any = layer.kernel_size
            down = nn.Conv2d(layer.in_channels, rank, kernel, bias=False, **place, **like)
            up = nn.Conv2d(rank, layer.out_channels, 1, bias=bias, **like)
        super().__init__(OrderedDict(down=down, up=up))

    def __getattr__(self, name: str) -> Any:
        if name in DOWN or name in UP:
            return getattr(self.down if name in DOWN else self.up, name)
        return super().__getattr__(name)


def layers_of(model: nn.Module, rank: int, patterns: Iterable[str] = ("*",)) -> list[str]:
    """Paths of the linear layers and convolutions of which two factors of a rank are fewer weights.

    Not those in groups, nor those whose weight another module holds too or reads by itself (attention of torch).
    """
    held = [id(p) for _, p in model.named_parameters(remove_duplicate=False)]
    found = []
    for path, layer in model.named_modules():
        plain = type(layer) is nn.Linear or (type(layer) is nn.Conv2d and layer.groups == 1)
        if not plain or not path or not any(fnmatchcase(path, pattern) for pattern in patterns):
            continue
        weight: Any = layer.weight
        if held.count(id(weight)) == 1 and rank * (len(weight) + weight[0].numel()) < weight.numel():
            found.append(path)
    return found


def take_apart(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give `model` layers of two factors where its weights `tensors`, by name, hold them; their values are not read."""
    for path, layer in list(model.named_modules()):
        down = tensors.get(f"{path}.down.weight")
        if down is not None and isinstance(layer, nn.Linear | nn.Conv2d):
            model.set_submodule(path, LowRank(layer, len(down)))


__all__ = ["LowRank", "layers_of", "take_apart"]
