"""Weights that a network computes with, made of those it learns: put in place for a forward pass, taken out after it.

The network's class, paths and state stay what they are, so adapters, captured features, checkpoints and optimizers need
not know. What has learnable values of its own is a module of the network under the name `NAME` until `detach`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..runtime.distributed import Ranks

#: Under which a network holds what stands between its weights and its forward pass.
NAME = "compressed"


# docs/decisions/013-compression.md
class WeightSwap(nn.Module):
    """Stands between the parameters `names` of a model and its forward pass.

    The swap is the whole model's, not each layer's: a layer may well read the weights of another.
    """

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(names)
        self._places: dict[str, tuple[str, ...]] = {}
        self._held: list[tuple[nn.Module, str, Any]] = []
        self._depth = 0

    @abstractmethod
    def made(self, name: str, weight: Tensor) -> Tensor:
        """What the forward pass sees in the place of `weight`, with its gradient."""

    def attach(self, model: nn.Module) -> None:
        """Bound methods as hooks: a deep copy of the model has a deep copy of this."""
        every = list(model.named_parameters(remove_duplicate=False))
        own = {name: parameter for name, parameter in every if name in self.names}
        self._places = {name: tuple(n for n, p in every if p is own[name]) for name in self.names}
        model.add_module(NAME, self)
        model.register_forward_pre_hook(self._before)
        model.register_forward_hook(self._after, always_call=True)

    def detach(self, model: nn.Module) -> None:
        """Leave the model as it was, but for what `made` its weights have learnt."""
        del model._modules[NAME]
        for hooks in (model._forward_pre_hooks, model._forward_hooks):
            for key in [key for key, hook in hooks.items() if getattr(hook, "__self__", None) is self]:
                del hooks[key]
                model._forward_hooks_always_called.pop(key, None)

    def settle(self, ranks: Ranks) -> None:
        """Told when all losses of a step were computed and all of its optimizers have stepped, on every rank."""

    def _before(self, model: nn.Module, args: Any) -> None:
        self._depth += 1
        if self._depth > 1:  # a model that calls itself
            return
        found = []
        for name, places in self._places.items():
            owner, key = owner_of(model, name)
            value = self.made(name, owner._parameters[key])  # type: ignore[arg-type]
            found += [(*owner_of(model, place), value) for place in places]
        self._held = [(owner, key, owner._parameters[key]) for owner, key, _ in found]
        for owner, key, value in found:
            owner._parameters[key] = value  # type: ignore[assignment]

    def _after(self, model: nn.Module, args: Any, output: Any) -> None:
        self._depth -= 1
        if self._depth:
            return
        for owner, key, parameter in self._held:
            owner._parameters[key] = parameter
        self._held = []


def owner_of(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that holds a parameter, and the parameter's name there."""
    path, _, key = name.rpartition(".")
    return model.get_submodule(path), key


def weight_swap_of(model: nn.Module) -> WeightSwap | None:
    """What stands before a model's weights, if anything does."""
    found = model._modules.get(NAME)
    return found if isinstance(found, WeightSwap) else None
