"""What a training holds that a checkpoint keeps, besides where it is: weights, modules, optimizers, the scaler."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from ..runtime.checkpoint import load_optimizer, load_weights, optimizer_state, prefixed, unprefixed
from ..runtime.errors import UserError
from ..runtime.shards import gathered, is_shard
from .method import Method


@dataclass(frozen=True)
class Held:
    """Of a training at one step.

    Attributes:
        roles: all models; those of `saved` change in some stage and are kept.
    """

    roles: Mapping[str, nn.Module]
    saved: Collection[str]
    method: Method
    optimizers: Mapping[str, Optimizer]
    scaler: GradScaler | None

    def taken(self, keep: bool = True) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors by name, and the JSON beside them.

        Args:
            keep: of tensors that are spread over ranks, all of which must call this, hold the whole.
        """
        tensors: dict[str, Tensor] = {}
        for role in sorted(self.saved):
            tensors |= prefixed(f"roles/{role}", self.roles[role].state_dict())
        for name, module in self.method.modules().items():
            tensors |= prefixed(f"modules/{name}", module.state_dict())
        groups, names = {}, self._names()
        for name, optimizer in self.optimizers.items():
            state, groups[name] = optimizer_state(optimizer, names)
            tensors |= prefixed(f"optimizers/{name}", state)
        scaler = self.scaler.state_dict() if self.scaler is not None else None
        for name in [name for name, tensor in tensors.items() if is_shard(tensor)]:
            whole = gathered(tensors[name])
            tensors[name] = whole.cpu() if keep else whole.new_empty(0)
        return tensors, {"optimizers": groups, "method": dict(self.method.state_dict()), "scaler": scaler}

    def put_back(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any], folder: Path) -> None:
        """Raises `UserError` for a checkpoint, of those in `folder`, that is not of this training."""
        try:
            self._put_back(tensors, state, folder)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
            told = f"{type(error).__name__} {' '.join(str(error).split())}"
            raise UserError(f"{folder}: its checkpoint is not of this training ({told})") from error

    def _put_back(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any], folder: Path) -> None:
        self.method.load_state_dict(state["method"])  # first: it may say what shape the weights have
        for role in self.saved:
            load_weights(self.roles[role], unprefixed(f"roles/{role}", tensors), folder)
        for name, module in self.method.modules().items():
            load_weights(module, unprefixed(f"modules/{name}", tensors), folder)
        names = self._names()
        for name, optimizer in self.optimizers.items():
            load_optimizer(optimizer, names, unprefixed(f"optimizers/{name}", tensors), state["optimizers"][name])
        if self.scaler is not None and state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])

    def _names(self) -> dict[int, str]:
        owners = {**{f"roles.{k}": m for k, m in self.roles.items()}, **self.method.modules()}
        return {id(p): f"{owner}.{name}" for owner, module in owners.items() for name, p in module.named_parameters()}
