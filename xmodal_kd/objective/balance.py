"""Weights of terms that are learned beside the student.

A recipe's weight and schedule stay what they say: a preference, by which a balanced term is multiplied. With weights of
1 both are as published. Terms keep the values that they have in the log; only their gradients are weighed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..recipe.balance_spec import Balance
from ..runtime.distributed import Ranks
from ..runtime.errors import UserError, nearest
from .parts import Part

Parts = Mapping[str, Part]
#: A weight of GradNorm never falls below this: at 0 its gradient would say nothing more.
LEAST = 1e-3


class Uncertainty(nn.Module):
    """Each term's weight is one over a learned variance (Kendall et al., 2018, eqs. 7 and 10).

    With s = log sigma^2, a parameter of the objective that the optimizer of the student learns, a term L becomes
    ``exp(-s) L + s / 2``. The factor 1/2 that eq. 7 has before a regression's L is an offset of s and is left out.
    """

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = list(names)
        self.log_variance = nn.Parameter(torch.zeros(len(names)))

    def weights(self) -> Tensor:
        return torch.exp(-self.log_variance)

    def forward(self, parts: Parts, student: nn.Module | None, step: int, ranks: Ranks) -> dict[str, Part]:
        """The parts with gradients of what they become. The offset is by count, so its mean is s / 2 on any batch."""
        _not_negative("uncertainty", parts, [part.total for part in parts.values()])
        weights, out = self.weights(), {}
        for name, part in parts.items():
            i = self.names.index(name)
            out[name] = _with_gradient(part, weights[i] * part.total + self.log_variance[i] / 2 * part.count)
        return out


class GradNorm(nn.Module):
    """Weights by which all terms pull alike, those harder that lag behind (Chen et al., 2018, algorithm 1).

    With G_i the norm of term i's weighted gradient in one matrix of the student, and r_i its loss over its first one,
    divided by the terms' mean of that, a step of Adam on ``sum |G_i - mean(G) r_i^alpha|``, the latter held fixed,
    changes the weights, which are then scaled to sum to their number. Gradients and counts are summed over the
    micro-batches and ranks of a step; the next step begins with what they say, as in the paper.
    """

    def __init__(self, config: Balance, names: Sequence[str], path: str, size: int) -> None:
        """`path` of the matrix among the student's parameters, of `size` numbers."""
        super().__init__()
        self.config, self.names, self.path = config, list(names), path
        self.step: int | None = None
        n = len(names)
        for key, value in {
            "weight": torch.ones(n), "first": torch.full((n,), torch.nan), "momentum": torch.zeros(2, n),
            "updates": torch.zeros(n), "gradients": torch.zeros(n, size), "sums": torch.zeros(2, n),
        }.items():  # fmt: skip
            self.register_buffer(key, value)
        self.weight: Tensor
        self.first: Tensor
        self.momentum: Tensor
        self.updates: Tensor
        self.gradients: Tensor
        self.sums: Tensor

    def weights(self) -> Tensor:
        return self.weight

    def forward(self, parts: Parts, student: nn.Module | None, step: int, ranks: Ranks) -> dict[str, Part]:
        """The parts with weighted gradients; on the first micro-batch of a step the weights move."""
        if step != self.step:
            self._move()
            self.step = step
        if torch.is_grad_enabled():
            self._observe(parts, student, ranks)
        weights = self.weight.clone()  # the buffer may change before the backward pass
        return {name: _with_gradient(p, weights[self.names.index(name)] * p.total) for name, p in parts.items()}

    def _observe(self, parts: Parts, student: nn.Module | None, ranks: Ranks) -> None:
        matrix = _model(student).get_parameter(self.path)
        gradients, sums = torch.zeros_like(self.gradients), torch.zeros_like(self.sums)
        for name, part in parts.items():
            i = self.names.index(name)
            if part.total.requires_grad:
                [found] = torch.autograd.grad(part.total, [matrix], retain_graph=True, allow_unused=True)
                if found is not None:
                    gradients[i] = found.flatten()
            sums[0, i], sums[1, i] = part.total.detach(), part.count
        both = ranks.sum(torch.cat([gradients.flatten(), sums.flatten()]))
        self.gradients += both[: gradients.numel()].view_as(gradients)
        self.sums += both[gradients.numel() :].view_as(sums)

    @torch.no_grad()
    def _move(self) -> None:
        """One step of the weights of those terms that counted something."""
        total, count = self.sums
        some = count > 0
        loss = total / count.clamp(min=1e-6)
        norm = self.gradients.norm(dim=1) / count.clamp(min=1e-6)
        self.gradients.zero_()
        self.sums = torch.zeros_like(self.sums)
        if int(some.sum()) < 2:
            return
        if bool((loss[some] < 0).any()):
            raise _negative("gradnorm", self.names[int(torch.where(some, loss, 0.0).argmin())])
        self.first = torch.where(some & self.first.isnan(), loss, self.first)
        tiny = torch.finfo(loss.dtype).tiny
        pull = self.weight * norm
        lag = loss / self.first.clamp(min=tiny)
        aim = pull[some].mean() * (lag / lag[some].mean().clamp(min=tiny)) ** self.config.alpha
        slope = torch.where(some, norm * torch.sign(pull - aim), 0.0)
        self.updates = self.updates + some
        betas = slope.new_tensor([[0.9], [0.999]])
        now = betas * self.momentum + (1 - betas) * torch.stack([slope, slope.square()])
        self.momentum = torch.where(some, now, self.momentum)
        mean, square = self.momentum / (1 - betas ** self.updates.clamp(min=1))
        moved = (self.weight - self.config.rate * mean / (square.sqrt() + 1e-12)).clamp(min=LEAST)
        self.weight = torch.where(some, moved * some.sum() / moved[some].sum(), self.weight)


def make(config: Balance, sides: Mapping[str, Sequence[Tensor]], student: nn.Module | None) -> Uncertainty | GradNorm:
    """What learns the weights of the terms.

    Args:
        sides: of every term the student's rows that it compares, with their graph where gradients are read.
    """
    if config.name == "uncertainty":
        return Uncertainty(list(sides))
    model = _model(student)
    path = _matrix(model, sides) if config.layer is None else _named(model, config.layer, sides)
    return GradNorm(config, list(sides), path, model.get_parameter(path).numel())


def _matrix(model: nn.Module, sides: Mapping[str, Sequence[Tensor]]) -> str:
    """The last of the model's matrices and kernels that every term's rows come from."""
    reached = [_reached(model, rows) for rows in sides.values()]
    common = [name for name, p in model.named_parameters() if p.ndim > 1 and all(name in one for one in reached)]
    if not common:
        raise UserError("balance gradnorm: no matrix of the student is reached by all terms: use balance uncertainty")
    return common[-1]


def _named(model: nn.Module, layer: str, sides: Mapping[str, Sequence[Tensor]]) -> str:
    """The weight of the module at `layer`."""
    modules = {
        name: module for name, module in model.named_modules() if isinstance(getattr(module, "weight", None), Tensor)
    }
    if layer not in modules:
        raise UserError(f"balance.layer: the student has no module {layer!r} with a weight{nearest(layer, modules)}")
    path = f"{layer}.weight"
    for name, rows in sides.items():
        if path not in _reached(model, rows):
            raise UserError(f"balance.layer: term {name!r} does not reach {layer!r}: name a layer that all terms share")
    return path


def _reached(model: nn.Module, rows: Iterable[Tensor]) -> set[str]:
    """Names of the parameters that the rows come from."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    sums = [one.sum() for one in rows if one.requires_grad]
    if not (sums and named):
        return set()
    found = torch.autograd.grad(sums, list(named.values()), retain_graph=True, allow_unused=True)
    return {name for name, gradient in zip(named, found, strict=True) if gradient is not None}


def _model(student: nn.Module | None) -> nn.Module:
    if student is None:
        raise UserError(
            "balance gradnorm reads gradients in the student's weights: set .model of the student's signals"
        )
    return student


def _with_gradient(part: Part, weighed: Tensor) -> Part:
    """`part` with its value and the gradient of `weighed`."""
    return replace(part, total=part.total.detach() + (weighed - weighed.detach()))


def _not_negative(how: str, parts: Parts, totals: Sequence[Tensor]) -> None:
    if bool((torch.stack([total.detach() for total in totals]) < 0).any()):
        raise _negative(how, next(name for name, part in parts.items() if bool(part.total < 0)))


def _negative(how: str, name: str) -> UserError:
    return UserError(f"balance {how} needs losses of at least 0, and term {name!r} fell below: balance fixed takes any")
