"""Quantisation-aware training (Jacob et al., CVPR 2018) with torch's fake quantisation: weights and activations.

Ranges of activations are running averages of each step's extremes over all of its micro-batches and ranks, taken once
the step is over: so they are the same for any accumulation and number of processes, and a step is quantised by the
ranges of those before it, the first one not at all.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ..adapter.adapter import Adapter, Strict
from ..models.weight_swap import weight_swap_of
from ..runtime.distributed import Ranks
from ..training.role_plan import RolePlan
from . import packed
from .base import COMPRESSIONS, record
from .quantise import Codes, InCodes, chosen, settle

#: Names of the tensors of activations in a packed file: one scale and one zero point a layer.
SCALE, ZERO = "activation_scale", "activation_zero"


class Aware(Strict):
    bits: Literal[4, 8] = 8
    """Of each weight, symmetric, with a scale for each output channel."""
    activations: Literal[8] | None = 8
    """Bits of what the layers take in, with a range for each layer; None: activations stay float32."""
    layers: dict[str, Literal[4, 8]] = Field(default_factory=dict)
    """``first``, ``last`` or globs of weights or modules with other bits; the first match counts."""
    full: tuple[str, ...] = ()
    """What stays float32: ``first``, ``last``, globs of weights or modules. Vectors always do."""
    averaging: float = Field(0.01, gt=0, le=1)
    """Share of a step's own extremes in the running ranges, as of torch's moving-average observer."""


def scale_of(weight: Tensor, bits: int) -> Tensor:
    """``(rows,)``: the greatest absolute weight of an output channel becomes the greatest whole number."""
    most = float(2 ** (bits - 1) - 1)
    return weight.detach().flatten(1).abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).eps) / most


class FakeWeights(Codes):
    """Stands before weights, by `torch.fake_quantize_per_channel_affine`, and before what their layers take in.

    Args:
        layers: paths of the layers, one for each range.
    """

    held: Tensor

    def __init__(self, bits: Mapping[str, int], layers: tuple[str, ...], averaging: float) -> None:
        super().__init__(list(bits))
        self.bits, self.layers, self.averaging = dict(bits), layers, averaging
        # float32 held as its bits: an average of the weights takes ranges as they are, infinite ones too
        empty = torch.tensor([torch.inf, -torch.inf]).repeat(2)[:, None].repeat(1, len(layers))
        self.register_buffer("held", empty.view(torch.int32))

    @property
    def ranges(self) -> Tensor:
        """``(2, layers)`` lowest and highest value, running; without one, the lowest is above the highest."""
        return self.held.view(torch.float32)[:2]

    @property
    def seen(self) -> Tensor:
        """``(2, layers)`` lowest and highest value of this step so far."""
        return self.held.view(torch.float32)[2:]

    def attach(self, model: nn.Module) -> None:
        super().attach(model)
        for number, path in enumerate(self.layers):
            model.get_submodule(path).register_forward_pre_hook(_Input(self, number))

    def detach(self, model: nn.Module) -> None:
        super().detach(model)
        for path in self.layers:
            unhook(model.get_submodule(path))

    def coded(self, name: str, weight: Tensor) -> packed.Scaled:
        bits, scale = self.bits[name], scale_of(weight, self.bits[name])
        most = 2 ** (bits - 1) - 1
        whole = torch.round(weight.detach().flatten(1) * (1 / scale)[:, None]).clamp(-most, most)
        return packed.Scaled((whole + most).to(torch.uint8).flatten(), scale, tuple(weight.shape), bits)

    def made(self, name: str, weight: Tensor) -> Tensor:
        most, scale = 2 ** (self.bits[name] - 1) - 1, scale_of(weight, self.bits[name])
        zeros = torch.zeros(len(scale), dtype=torch.int32, device=weight.device)
        return torch.fake_quantize_per_channel_affine(weight, scale, zeros, 0, -most, most)

    def taken(self, number: int, x: Tensor) -> Tensor:
        """What a layer takes in, noted while training, quantised where there is a range."""
        if self.training and torch.is_grad_enabled():  # not in a dry run
            with torch.no_grad():
                low, high = torch.where(x.isfinite(), x, 0.0).float().aminmax()  # padding may hold anything
                self.seen[0, number] = torch.minimum(self.seen[0, number], low)
                self.seen[1, number] = torch.maximum(self.seen[1, number], high)
        low, high = self.ranges[:, number]
        return quantised(x, *affine(low, high)) if bool(low <= high) else x

    @torch.no_grad()
    def settle(self, ranks: Ranks) -> None:
        every = ranks.gather_rows(self.seen[None])
        new = torch.stack([every[:, 0].amin(dim=0), every[:, 1].amax(dim=0)])
        fresh, met = self.ranges[0] > self.ranges[1], new[0] <= new[1]  # a layer that was not called has nothing new
        moved = torch.where(fresh, new, self.ranges + self.averaging * (new - self.ranges))
        self.ranges.copy_(torch.where(met, moved, self.ranges))
        self.seen.copy_(torch.tensor([torch.inf, -torch.inf])[:, None])


def affine(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero point of 8 bits from 0 to 255 over a range that holds 0, as torch's observers have it."""
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    scale = ((high - low) / 255.0).clamp(min=torch.finfo(torch.float32).eps)
    return scale, (-torch.round(low / scale)).clamp(0, 255).to(torch.int32)


def quantised(x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """Activations as 8 bits would have them; the gradient ends where the range does."""
    out = torch.fake_quantize_per_tensor_affine(x.float(), scale.to(x.device), zero.to(x.device), 0, 255)
    return out.to(x.dtype)


class _Input:
    """A layer's hook while its model learns; an object, so that a copy of the model has a copy of it."""

    def __init__(self, swap: FakeWeights, number: int) -> None:
        self.swap, self.number = swap, number

    def __call__(self, layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self.swap.taken(self.number, args[0]), *args[1:])


class Fixed:
    """A layer's hook once its model has learnt."""

    def __init__(self, scale: Tensor, zero: Tensor) -> None:
        self.scale, self.zero = scale, zero

    def __call__(self, layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (quantised(args[0], self.scale, self.zero), *args[1:])


def unhook(layer: nn.Module) -> None:
    """Take our hooks off a layer."""
    hooks = layer._forward_pre_hooks
    for key in [key for key, hook in hooks.items() if isinstance(hook, _Input | Fixed)]:
        del hooks[key]


def fix(model: nn.Module, layers: tuple[str, ...], scales: Tensor, zeros: Tensor) -> None:
    """From now on the layers take in what 8 bits would have; a layer of scale 0 was never called."""
    for path, scale, zero in zip(layers, scales, zeros, strict=True):
        if scale > 0:
            model.get_submodule(path).register_forward_pre_hook(Fixed(scale, zero))


def unpack(model: nn.Module, path: Path) -> None:
    """Give a model the weights of a packed file, and the ranges of activations if it holds some.

    Raises:
        UserError: as `packed.read`.
    """
    noted = record(model)
    noted.coded, noted.more = packed.read(path, model)
    for layer in model.modules():
        unhook(layer)
    if SCALE in noted.more:
        fix(model, _owners(noted.coded), noted.more[SCALE], noted.more[ZERO])


def _owners(names: Iterable[str]) -> tuple[str, ...]:
    """Paths of the layers that hold weights, each once."""
    return tuple(dict.fromkeys(name.rpartition(".")[0] for name in names))


@COMPRESSIONS.register("qat")
class Qat(InCodes):
    """Weights and activations as whole numbers, trained through torch's fake quantisation.

    Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR
    2018: 8 bits, weights symmetric by output channel, what layers take in by running ranges. An ONNX file holds the
    weights as trained; its own ranges of activations are calibrated anew.
    """

    Params: ClassVar[type[Strict]] = Aware
    paper = "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference"
    year = 2018

    @classmethod
    def start(
        cls, params: Any, adapter: Adapter, role_plan: RolePlan, model: nn.Module, roles: Mapping[str, nn.Module]
    ) -> nn.Module:
        bits = chosen(model, params.bits, params.layers, params.full)
        FakeWeights(bits, _owners(bits) if params.activations else (), params.averaging).attach(model)
        return model

    @classmethod
    def finish(cls, params: Any, model: nn.Module) -> None:
        swap = weight_swap_of(model)
        assert isinstance(swap, FakeWeights)
        called = swap.ranges[0] <= swap.ranges[1]
        scales, zeros = affine(*swap.ranges)
        scales = torch.where(called, scales, 0.0)
        settle(model)
        record(model).more = {SCALE: scales, ZERO: torch.where(called, zeros, 0)} if swap.layers else {}
        fix(model, swap.layers, scales, zeros)

    @classmethod
    def restore(cls, params: Any, model: nn.Module, folder: Path) -> None:
        unpack(model, folder / packed.PACKED)

    @classmethod
    def plain(cls, params: Any, model: nn.Module) -> nn.Module:
        """A copy that takes in activations as they are: a rounding that falls the other way is no error of a file."""
        plain = copy.deepcopy(model)
        for layer in plain.modules():
            unhook(layer)
        return plain
