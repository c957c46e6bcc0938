"""Few-sample repair of a student that starts as part of its teacher (Li, Li, Liu, Zhang, FSKD, CVPR 2020)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from ..adapter.adapter import Adapter, Batch, Strict
from ..recipe.recipe import Recipe
from ..runtime.errors import UserError
from ..training.role_plan import RolePlan
from .base import COMPRESSIONS, Compression, earlier, record
from .data import batches
from .origins import Origin

#: Runs a model on a batch.
Forward = Callable[[nn.Module, Batch], Any]
#: Layers into which a matrix on their output can be absorbed: every output is a weighted sum of all inputs, and a bias.
DENSE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Repaired(Strict):
    samples: int = Field(100, gt=0)
    """Training samples whose inputs are used; their labels are not."""
    batch_size: int = Field(10, gt=0)
    ridge: float = Field(1e-5, ge=0)
    """Added to the diagonal of the sums of squares."""
    measure: bool = True
    """Whether the student is scored on test before and after, for the report."""


def solve(
    squares: Float[Tensor, "c c"], products: Float[Tensor, "d c"], ridge: float
) -> Float[Tensor, "d c"]:  # fmt: skip
    """``argmin over Q of sum_n ||t_n - Q s_n||^2 + ridge ||Q||^2`` from ``sum s s^T`` and ``sum t s^T``, float64."""
    wide = squares.double() + ridge * torch.eye(len(squares), dtype=torch.float64, device=squares.device)
    driver = "gelsd" if wide.device.type == "cpu" else None
    found: Tensor = torch.linalg.lstsq(wide, products.double().T, driver=driver).solution
    return found.T


@torch.no_grad()
def absorb(layer: nn.Module, q: Float[Tensor, "d d"]) -> None:
    """``W' = Q W``, ``b' = Q b``: the layer now says what Q makes of what it said."""
    weight: Any = layer.weight
    weight.copy_((q @ weight.double().flatten(1)).reshape(weight.shape))
    if layer.bias is not None:
        bias: Any = layer.bias
        bias.copy_(q @ bias.double())


def rows(layer: nn.Module, output: Tensor) -> Float[Tensor, "n c"]:
    """What a layer put out as rows of channels, in float64."""
    last = output if isinstance(layer, nn.Linear) else output.movedim(1, -1)
    return last.reshape(-1, last.shape[-1]).double()


class _Enough(Exception):
    """The layer has spoken: the rest of a forward pass would be thrown away."""


@contextmanager
def _listening(model: nn.Module, path: str, said: list[Tensor]) -> Iterator[None]:
    """Rows of one layer's first call; the forward pass ends there."""

    def hear(layer: nn.Module, args: Any, output: Tensor) -> None:
        said.append(rows(layer, output))
        raise _Enough

    handle = model.get_submodule(path).register_forward_hook(hear)
    try:
        yield
    except _Enough:
        pass
    finally:
        handle.remove()


def _order(model: nn.Module, forward: Forward, batch: Batch) -> list[str]:
    """Paths of the layers that can absorb a matrix, as they are called; those called twice say two things: left out."""
    forward_features: list[str] = []
    paths = [p for p, m in model.named_modules() if isinstance(m, DENSE) and getattr(m, "groups", 1) == 1]
    handles = [model.get_submodule(p).register_forward_hook(lambda *_, p=p: forward_features.append(p)) for p in paths]
    try:
        forward(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return [path for path in dict.fromkeys(forward_features) if forward_features.count(path) == 1]


@torch.no_grad()
def repair(
    student: nn.Module, teacher: nn.Module, origins: Mapping[str, Origin],
    forward: Forward, inputs: Sequence[Batch], ridge: float,
) -> list[dict[str, Any]]:  # fmt: skip
    """Layer by layer, in the order of the forward pass, make a student say what its teacher says of the same input.

    Each layer's output is brought to the teacher's, of the channels that the student has, by the matrix of least
    squares, which its weights absorb; the next layer is compared with this one repaired.

    Args:
        origins: of the student's weights in the teacher's.
        forward: runs a model on one of `inputs`.

    Returns:
        For each layer ``layer``, and ``before``, ``after``: squared error a row over the teacher's squares.
    """
    found = []
    for path in _order(student, forward, inputs[0]):
        origin = origins[f"{path}.weight"]
        theirs, channels = origin.name.removesuffix(".weight"), origin.kept[0] if origin.kept else None
        sums = _Sums()
        for batch in inputs:
            t = _heard(teacher, theirs, forward, batch)
            sums.add(_heard(student, path, forward, batch), t if channels is None else t[:, channels.to(t.device)])
        q = solve(sums.squares, sums.products, ridge)
        before, after = sums.error(torch.eye(len(q)).to(q)), sums.error(q)
        absorb(student.get_submodule(path), q)
        found.append({"layer": path, "before": before, "after": after})
    return found


def _heard(model: nn.Module, path: str, forward: Forward, batch: Batch) -> Tensor:
    said: list[Tensor] = []
    with _listening(model, path, said):
        forward(model, batch)
    if not said:
        raise UserError(f"fskd: layer {path!r} is not called in a forward pass of the teacher")
    return said[0]


class _Sums:
    """What least squares need of rows that come batch by batch."""

    def __init__(self) -> None:
        self.squares, self.products, self.energy = torch.zeros(()), torch.zeros(()), 0.0

    def add(self, student: Float[Tensor, "n c"], teacher: Float[Tensor, "n d"]) -> None:
        valid = student.isfinite().all(dim=1) & teacher.isfinite().all(dim=1)  # padding may hold anything
        s, t = student[valid], teacher[valid]
        self.squares, self.products = s.T @ s + self.squares.to(s), t.T @ s + self.products.to(s)
        self.energy += float((t**2).sum())

    def error(self, q: Tensor) -> float:
        """``sum ||t - Q s||^2 / sum ||t||^2``."""
        error = self.energy - 2 * float((q * self.products).sum()) + float(((q @ self.squares) * q).sum())
        return max(0.0, error) / max(self.energy, 1e-30)


@COMPRESSIONS.register("fskd")
class Fskd(Compression):
    """Repairs a pruned student with a few unlabelled samples and no training: least squares, layer by layer.

    Li et al., "Few Sample Knowledge Distillation for Efficient Network Compression", CVPR 2020. It stands after
    width_prune or layer_copy in the list. Grouped convolutions and attention's joint projections stay as they are:
    they cannot absorb a matrix.
    """

    Params: ClassVar[type[Strict]] = Repaired
    paper, year = "Few Sample Knowledge Distillation for Efficient Network Compression", 2020
    starts_taught = trained = True

    @classmethod
    def plan(cls, params: Any, recipe: Recipe, role_plan: RolePlan) -> RolePlan:
        if not any(kind.starts_taught for kind in earlier(recipe, cls)):
            raise UserError(
                "compress fskd: it repairs a student that is part of its teacher: put width_prune before it"
            )
        return super().plan(params, recipe, role_plan)

    @classmethod
    @torch.no_grad()
    def start(
        cls, params: Any, adapter: Adapter, role_plan: RolePlan, model: nn.Module, roles: Mapping[str, nn.Module]
    ) -> nn.Module:
        noted, teacher = record(model), roles["teacher"]
        device = next(teacher.parameters()).device
        model = model.to(device).eval()
        measured = params.measure and role_plan.role == "student"
        before = adapter.evaluate("student", model, "test").metrics if measured else {}
        inputs = list(batches(adapter, params.samples, params.batch_size, device))
        modes = {id(module): module.training for module in teacher.modules()}
        teacher.eval()
        layers = repair(
            model,
            teacher,
            noted.origins,
            lambda net, batch: adapter.signals("student", net, batch),
            inputs,
            params.ridge,
        )
        for module in teacher.modules():
            module.training = modes[id(module)]
        noted.facts["fskd"] = {"samples": sum(len(batch["ids"]) for batch in inputs), "layers": layers}
        if measured:
            after = adapter.evaluate("student", model, "test").metrics
            noted.facts["fskd"] |= {"pruned": before, "repaired": after}
        return model
