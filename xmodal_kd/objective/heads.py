"""A term's head: the part of teacher or student from features to scores, as a function of rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

from ..losses.base import frozen
from ..recipe.recipe import On, Term
from ..runtime.errors import UserError, nearest
from ..signals.signals import Signals


class Head:
    """A part of a model, modules one after another, as a function of rows.

    Gradients pass but never reach it, unless it is `learning`.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.modules = modules

    def __call__(self, rows: Tensor) -> Tensor:
        for module in self.modules:
            if _pointwise(module):
                bias = None if module.bias is None else module.bias.detach().to(rows.dtype)
                rows = F.linear(rows, module.weight.detach().flatten(1).to(rows.dtype), bias)
            else:
                rows = frozen(module, rows)
        return rows

    def learning(self, rows: Tensor) -> Tensor:
        """The same, and its weights have a gradient."""
        for module in self.modules:
            rows = F.linear(rows, module.weight.flatten(1), module.bias) if _pointwise(module) else module(rows)
        return rows


def _pointwise(module: nn.Module) -> TypeGuard[_ConvNd]:
    """Whether a convolution is a linear map of each position."""
    return isinstance(module, _ConvNd) and set(module.kernel_size) == {1} and module.groups == 1


def head_paths(term: Term, role: str) -> tuple[str, ...]:
    """Paths of the modules that a term names as the head of `role` ("student" or "teacher"); none where it does not."""
    path = getattr(term.head, role) if isinstance(term.head, On) else term.head
    return () if path is None else (path,) if isinstance(path, str) else path


def head_of(name: str, term: Term, role: str, said: Signals | None) -> Head:
    """What a term names as the head of `role`, of the model that `said` its signals.

    Raises `UserError` where it names none, the model is not given, or has no such module.
    """
    if not (paths := head_paths(term, role)):
        raise UserError(f"term {name!r}: its loss runs features through the {role}'s head: say head: <module path>")
    if said is None or said.model is None:
        raise UserError(f"term {name!r}: head {paths[0]!r} belongs to a {role} whose model this method does not give")
    modules = dict(said.model.named_modules())
    for path in paths:
        if path not in modules:
            raise UserError(f"term {name!r}: the {role} has no module {path!r}{nearest(path, modules)}")
    return Head([modules[path] for path in paths])


__all__ = ["Head", "head_of", "head_paths"]
