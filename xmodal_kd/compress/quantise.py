"""Quantised distillation (Polino, Pascanu, Alistarh, ICLR 2018): a student that computes with few-bit weights."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ..adapter.adapter import Adapter, Strict
from ..models.weight_swap import WeightSwap, owner_of, weight_swap_of
from ..recipe.recipe import Recipe
from ..runtime.errors import RunError, UserError, nearest
from ..training.role_plan import RolePlan
from . import packed
from .base import COMPRESSIONS, Compression, earlier, record
from .buckets import Coded, decode, encode, encode_at, quantiles, straight_through

Bits = Literal[2, 4, 8]


class Quantised(Strict):
    bits: Bits = 4
    """Of each weight."""
    layers: dict[str, Bits] = Field(default_factory=dict)
    """``first``, ``last`` or globs of weights or modules (``blocks.0.*``) with other bits; the first match counts."""
    points: Literal["even", "learned"] = "even"
    """``even``: method 1, the gradient goes straight through to weights that are trained. ``learned``: method 2, the
    weights stay as they start and the points that they are rounded to are trained."""
    bucket: int = Field(256, gt=0)
    """Weights that share a range."""
    rounding: Literal["nearest", "stochastic"] = "nearest"
    """Of training, to ``even`` points: ``stochastic`` rounds up or down by chance, so that the mean is the weight. What
    is measured and saved is rounded to the nearest."""
    huffman: bool = False
    """Whether the packed file has codes by Huffman's code, shorter where they come more often."""
    full: tuple[str, ...] = ("first", "last")
    """What stays float32: the first and the last layer, globs of weights or modules. Vectors always do."""


class Codes(WeightSwap):
    """Stands before weights that are computed with as codes."""

    @abstractmethod
    def coded(self, name: str, weight: Tensor) -> Coded | packed.Scaled:
        """The codes that a weight is written as."""


class Even(Codes):
    """Polino et al., section 3 (method 1): ``Q(w)`` forward, the gradient of ``Q(w)`` for ``w``."""

    def __init__(self, bits: Mapping[str, int], bucket: int, *, stochastic: bool = False) -> None:
        super().__init__(list(bits))
        self.bits, self.bucket, self.stochastic = dict(bits), bucket, stochastic

    def coded(self, name: str, weight: Tensor) -> Coded:
        return encode(weight, self.bits[name], self.bucket)

    def made(self, name: str, weight: Tensor) -> Tensor:
        by_chance = self.stochastic and self.training
        drawn = torch.rand(weight.numel(), dtype=weight.dtype, device=weight.device) if by_chance else None
        return straight_through(weight, decode(encode(weight, self.bits[name], self.bucket, drawn)))


class Learned(Codes):
    """Polino et al., section 4 (method 2): points are learned, weights stay; each is rounded to the nearest point.

    Args:
        model: whose weights the points start from, at their quantiles.
    """

    def __init__(self, bits: Mapping[str, int], bucket: int, model: nn.Module) -> None:
        super().__init__(list(bits))
        self.bucket = bucket
        weights = dict(model.named_parameters())
        self.points = nn.ParameterList(nn.Parameter(quantiles(weights[n], b, bucket)) for n, b in bits.items())
        for name in bits:
            weights[name].requires_grad_(False)

    def coded(self, name: str, weight: Tensor) -> Coded:
        return encode_at(weight, self.points[self.names.index(name)], self.bucket)

    def made(self, name: str, weight: Tensor) -> Tensor:
        return decode(self.coded(name, weight))


def chosen(model: nn.Module, bits: int, layers: Mapping[str, int], full: Sequence[str]) -> dict[str, int]:
    """Bits of each weight that is quantised: matrices and kernels, in the model's order.

    Raises:
        UserError: a glob of `layers` or `full` matches nothing, or nothing is left.
    """
    weights = [name for name, weight in model.named_parameters() if weight.dim() > 1]
    if not weights:
        raise UserError(f"compress: {type(model).__name__} has no matrices or kernels that could be quantised")
    ends = {"first": weights[0].rpartition(".")[0], "last": weights[-1].rpartition(".")[0]}
    kept = [ends.get(pattern, pattern) for pattern in full]
    other = {ends.get(pattern, pattern): b for pattern, b in layers.items()}
    for pattern in [*kept, *other]:
        if not any(_matches(name, pattern) for name in weights):
            raise UserError(f"compress: {pattern!r} is none of the student's weights{nearest(pattern, weights)}")
    found = {
        name: next((b for pattern, b in other.items() if _matches(name, pattern)), bits)
        for name in weights
        if not any(_matches(name, pattern) for pattern in kept)
    }
    if not found:
        raise UserError("compress: full leaves nothing to quantise: name fewer layers there")
    return found


def _matches(name: str, pattern: str) -> bool:
    """Whether a glob means a weight, or the module that holds it."""
    return fnmatchcase(name, pattern) or fnmatchcase(name.rpartition(".")[0], pattern)


class InCodes(Compression):
    """What all ways to weights of a few bits have in common; each has parameters ``bits``, ``layers`` and ``full``."""

    swaps_weights = True

    @classmethod
    def check(cls, params: Any, adapter: Adapter, model: nn.Module, roles: Mapping[str, nn.Module]) -> None:
        chosen(model, params.bits, params.layers, params.full)

    @classmethod
    def save(cls, params: Any, model: nn.Module, folder: Path) -> None:
        packed.write(folder / packed.PACKED, model, record(model).coded, record(model).more)

    @classmethod
    def export(cls, params: Any, adapter: Adapter, model: nn.Module, folder: Path) -> Mapping[str, Any]:
        return {packed.PACKED: measured(cls, params, adapter, model, folder)}


@COMPRESSIONS.register("quantise")
class Quantise(InCodes):
    """Few-bit weights, trained as they are used: rounded with a straight-through gradient, or to learned points.

    Polino, Pascanu, Alistarh, "Model compression via distillation and quantization", ICLR 2018. The paper's objective
    is 0.3 of the labels' and 0.7 of kd at temperature 2. Learned points need weights that were trained before.
    """

    Params: ClassVar[type[Strict]] = Quantised
    paper, year = "Model compression via distillation and quantization", 2018

    @classmethod
    def plan(cls, params: Any, recipe: Recipe, role_plan: RolePlan) -> RolePlan:
        trained = any(kind.trained for kind in earlier(recipe, cls))
        if params.points == "learned" and not trained:
            raise UserError(
                "compress quantise: learned points stand for weights that were trained before: put pretrained, "
                "layer_copy or width_prune before it, or use points: even"
            )
        if params.points == "learned" and params.rounding == "stochastic":
            raise UserError("compress quantise: rounding: stochastic is of points: even: leave one of the two out")
        return super().plan(params, recipe, role_plan)

    @classmethod
    def start(
        cls, params: Any, adapter: Adapter, role_plan: RolePlan, model: nn.Module, roles: Mapping[str, nn.Module]
    ) -> nn.Module:
        bits = chosen(model, params.bits, params.layers, params.full)
        if params.points == "learned":
            Learned(bits, params.bucket, model).attach(model)
        else:
            Even(bits, params.bucket, stochastic=params.rounding == "stochastic").attach(model)
        return model

    @classmethod
    def finish(cls, params: Any, model: nn.Module) -> None:
        settle(model)

    @classmethod
    def restore(cls, params: Any, model: nn.Module, folder: Path) -> None:
        record(model).coded, _ = packed.read(folder / packed.PACKED, model)

    @classmethod
    def save(cls, params: Any, model: nn.Module, folder: Path) -> None:
        coded, more = record(model).coded, record(model).more
        packed.write(folder / packed.PACKED, model, coded, more, by_huffman=params.huffman)


@torch.no_grad()
def settle(model: nn.Module) -> None:
    """Give a model the weights that it computes with, and keep their codes in its record."""
    codes = weight_swap_of(model)
    assert isinstance(codes, Codes)
    codes.detach(model)
    for name in codes.names:
        owner, key = owner_of(model, name)
        weight: Any = owner._parameters[key]
        coded = codes.coded(name, weight)
        if isinstance(coded, Coded) and coded.points is not None:
            coded = coded._replace(points=coded.points.detach().clone())
        weight.copy_(packed.weight_of(coded))
        record(model).coded[name] = coded


@torch.no_grad()
def measured(kind: type[Compression], params: Any, adapter: Adapter, model: nn.Module, folder: Path) -> dict[str, Any]:
    """Size and test metrics of the packed file in `folder`, read anew into a loaded model.

    Raises:
        RunError: a weight that is read differs from the model's in any bit.
    """
    path = folder / packed.PACKED
    again = adapter.load("student", folder).eval()
    for value in again.state_dict().values():
        value.zero_()  # so that what is measured comes from the packed file
    kind.restore(params, again, folder)
    again = again.to(next(model.parameters()).device)
    for name, value in model.state_dict().items():
        if not torch.equal(value, again.state_dict()[name]):
            raise RunError(f"{path}: {name!r} is read as other numbers than were written")
    size, parameters = path.stat().st_size, sum(parameter.numel() for parameter in model.parameters())
    coded = record(model).coded
    quantised = sum(len(one.codes) for one in coded.values())
    words = packed.bits_by_huffman(coded)
    return {
        "bytes": size,
        "bytes_float32": sum(value.numel() * value.element_size() for value in model.state_dict().values()),
        "quantised": quantised,
        "bits_by_huffman": words / quantised,
        "bytes_by_huffman": -(-words // 8) + 4 * (packed.values_of(coded) + parameters - quantised),
        "parameters": parameters,
        "note": f"{quantised:,} of {parameters:,} parameters as codes, {8 * size / parameters:.1f} bits each in all; "
        f"{words / quantised:.2f} bits a code by Huffman's",
        "metrics": adapter.evaluate("student", again, "test").metrics,
    }
