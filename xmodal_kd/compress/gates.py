"""Gates on groups of units of a network: open by chance while it learns, closed for good where it does without them.

A gate is hard concrete (Louizos, Welling, Kingma, "Learning Sparse Neural Networks through L0 Regularization", ICLR
2018): a stretched and clipped logistic variable that is exactly 0 and exactly 1 with a chance above 0, and lets
gradients through in between. Its expected number of open units has a closed form, so the expected number of weights
has, and a target for it is a constraint that two multipliers watch over (Wang, Wohlwend, Lei, "Structured Pruning of
Large Language Models", EMNLP 2020).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..models.weight_swap import WeightSwap
from ..runtime.errors import UserError, nearest

#: Where the stretched variable begins and ends, its temperature, and how much sharper a gate is once nothing is drawn.
LOW, HIGH, TEMPERATURE, SHARPER = -0.1, 1.1, 2 / 3, 0.8
#: Uniform numbers are drawn as far from 0 and 1.
MARGIN = 1e-6
#: Deviation of the initial logits.
SPREAD = 0.01


@dataclass(frozen=True)
class Units:
    """Units of one kind in one place, each of which can be taken out: heads of a layer, channels of a convolution.

    Attributes:
        name: by which a recipe chooses them.
        count: how many there are.
        parts: by weight the dimension along which the units lie, each as many entries as any other.
        read: of these the weights that read what the units say: a gate multiplies their entries.
        drop: the share that the initial logits stand for: their mean is ``log((1 - drop) / drop)``.
    """

    name: str
    count: int
    parts: Mapping[str, int]
    read: str
    drop: float = 0.01


@runtime_checkable
class Prunable(Protocol):
    """A network that says what can be taken out of it."""

    def units(self) -> Sequence[Units]:
        """All units, none of them in one dimension of one weight with others."""
        ...

    def narrowed(self, counts: Mapping[str, int]) -> None:
        """Told, when weights were cut, how many units of each name are left: sizes it keeps elsewhere, its card."""
        ...


def units_of(model: nn.Module, patterns: Sequence[str]) -> list[Units]:
    """The units whose names one of `patterns` matches.

    Raises:
        UserError: the model declares none, or a pattern matches none.
    """
    if not isinstance(model, Prunable):
        raise UserError(
            f"compress l0_prune: {type(model).__name__} does not say what can be taken out of it (units): take "
            "width_prune, or a model that does"
        )
    every = model.units()
    for pattern in patterns:
        if not any(fnmatchcase(one.name, pattern) for one in every):
            found = nearest(pattern, [one.name for one in every])
            raise UserError(f"compress l0_prune: units: {pattern!r} matches none of {type(model).__name__}{found}")
    return [one for one in every if any(fnmatchcase(one.name, pattern) for pattern in patterns)]


# ---------------------------------------------------------------- one gate


def initial(drop: float) -> float:
    """The logit whose sigmoid keeps with chance ``1 - drop``."""
    return math.log(1 - drop) - math.log(drop)


def drawn(log_alpha: Float[Tensor, " n"], uniform: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """``clip(LOW + (HIGH - LOW) sigmoid((log u - log(1 - u) + log_alpha) / TEMPERATURE), 0, 1)``."""
    open_ = torch.sigmoid((uniform.log() - (-uniform).log1p() + log_alpha) / TEMPERATURE)
    return (LOW + (HIGH - LOW) * open_).clamp(0, 1)


def chances(log_alpha: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """``P(z > 0) = sigmoid(log_alpha - TEMPERATURE log(-LOW / HIGH))``."""
    return torch.sigmoid(log_alpha - TEMPERATURE * math.log(-LOW / HIGH))


@torch.no_grad()
def settled(log_alpha: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Gates when nothing is drawn: as many are 0 as are expected to be, one at least is not, the others are soft."""
    closed = min(round(len(log_alpha) - float(chances(log_alpha).sum())), len(log_alpha) - 1)
    soft = torch.sigmoid(SHARPER * log_alpha / TEMPERATURE)
    return soft.index_fill(0, soft.argsort(stable=True)[: max(0, closed)], 0.0)


# ---------------------------------------------------------------- all gates of a network


def expected(
    shapes: Mapping[str, torch.Size], units: Sequence[Units], left: Mapping[str, Tensor | float]
) -> Tensor | float:
    """How many weights a network has when ``left[name]`` units of each name are.

    Gates are independent, so a weight between two kinds of units counts by the product of both shares.
    """
    shares: dict[str, list[Tensor | float]] = {}
    for one in units:
        for name in one.parts:
            shares.setdefault(name, []).append(left[one.name] / one.count)
    return sum(_product(shape.numel(), shares.get(name, ())) for name, shape in shapes.items())


def _product(number: int, shares: Sequence[Tensor | float]) -> Tensor | float:
    found: Tensor | float = float(number)
    for share in shares:
        found = found * share
    return found


class Gates(WeightSwap):
    """Stands before the weights that read from gated units.

    Attributes:
        log_alpha: of each of `units` the logits of its gates.
        multipliers: of the constraint and of its square; both begin at 0 and ascend (`constraint`).
    """

    def __init__(self, model: nn.Module, units: Sequence[Units]) -> None:
        super().__init__([one.read for one in units])
        self.units = tuple(units)
        self.shapes = {name: value.shape for name, value in model.named_parameters()}
        self.whole = sum(shape.numel() for shape in self.shapes.values())
        self.log_alpha = nn.ParameterList(
            nn.Parameter(initial(one.drop) + SPREAD * torch.randn(one.count)) for one in units
        )
        self.multipliers = nn.Parameter(torch.zeros(2))
        self._readers = {one.read: (number, one.parts[one.read]) for number, one in enumerate(units)}
        self._open: list[Tensor] = []

    def _before(self, model: nn.Module, args: Any) -> None:
        if self._depth == 0:  # one draw for a forward pass
            self._open = [self._gate(logits) for logits in self.log_alpha]
        super()._before(model, args)

    def _gate(self, log_alpha: Tensor) -> Tensor:
        if not self.training:
            return settled(log_alpha)
        uniform = torch.empty_like(log_alpha).uniform_(MARGIN, 1 - MARGIN)
        return drawn(log_alpha.float(), uniform.float())

    def made(self, name: str, weight: Tensor) -> Tensor:
        number, dim = self._readers[name]
        return _times(weight, self._open[number], dim)

    def sparsity(self) -> Tensor:
        """The share of the network's weights that is expected to be gone."""
        left = {one.name: chances(logits).sum() for one, logits in zip(self.units, self.log_alpha, strict=True)}
        return 1 - torch.as_tensor(expected(self.shapes, self.units, left)) / self.whole


def constraint(sparsity: Tensor, target: float, multipliers: Float[Tensor, " 2"]) -> Tensor:
    """``m_1 (s - t) + m_2 (s - t)^2``, whose gradient ascends in the multipliers and descends in all else."""
    over = sparsity - target
    powers = torch.stack([over, over.square()])
    fixed, gone = multipliers.detach(), powers.detach()
    return (fixed * powers).sum() - ((multipliers - fixed) * gone).sum()


# ---------------------------------------------------------------- taking out


@torch.no_grad()
def cut(model: nn.Module, gates: Gates) -> dict[str, int]:
    """Take out of `model` what its settled gates close, and multiply what is left into the weights that read it.

    Weights stay the same parameters with less in them, so that who holds them need not be told.

    Returns:
        How many units of each name are left.
    """
    held, counts = _held(model), {}
    for one, logits in zip(gates.units, gates.log_alpha, strict=True):
        gate = settled(logits)
        stay = gate.nonzero().flatten()
        held[one.read].data = _times(held[one.read].data, gate, one.parts[one.read])
        for name, dim in one.parts.items():
            size = held[name].shape[dim] // one.count
            entries = (stay[:, None] * size + torch.arange(size, device=stay.device)).flatten()
            held[name].data = held[name].data.index_select(dim, entries.to(held[name].device)).contiguous()
            held[name].grad = None
        counts[one.name] = len(stay)
    model.narrowed(counts)  # type: ignore[operator]
    return counts


@torch.no_grad()
def resize(model: nn.Module, counts: Mapping[str, int]) -> None:
    """Give a model the shapes that `cut` left with so many units of each name, and zeros in them."""
    held = _held(model)
    for one in model.units():  # type: ignore[operator]
        for name, dim in one.parts.items() if one.name in counts else ():
            shape = list(held[name].shape)
            shape[dim] = shape[dim] // one.count * counts[one.name]
            held[name].data = held[name].data.new_zeros(shape)
            held[name].grad = None
    model.narrowed(counts)  # type: ignore[operator]


def _held(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_buffers()), **dict(model.named_parameters())}


def _times(weight: Tensor, gate: Tensor, dim: int) -> Tensor:
    """Entries of a weight along `dim` times the gates of their units."""
    each = gate.to(weight).repeat_interleave(weight.shape[dim] // len(gate))
    return weight * each.reshape([-1 if at == dim % weight.dim() else 1 for at in range(weight.dim())])
