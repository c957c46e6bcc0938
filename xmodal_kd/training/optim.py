"""Optimizers from a recipe: parameter groups by name, learning rates as a function of the step."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ..recipe.recipe import Optimizer as Config
from ..recipe.schedules import Schedule
from ..runtime.errors import UserError
from ..runtime.shards import is_shard


def named_parameters(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Parameter]]:
    """``student.head.weight`` and so on, each parameter once, those that learn."""
    seen: set[int] = set()
    for prefix, module in modules.items():
        for name, parameter in module.named_parameters():
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                yield f"{prefix}.{name}", parameter


#: Beginnings of names that are listed where none is meant.
TOLD = 12


def scaling(config: Config, keep: Callable[[str], bool]) -> Config:
    """`config` with only those patterns of its ``lr_scale`` that `keep` accepts."""
    kept = {pattern: scale for pattern, scale in config.lr_scale.items() if keep(pattern)}
    return config.model_copy(update={"lr_scale": kept})


def build_optimizer(config: Config, modules: Mapping[str, nn.Module]) -> Optimizer:
    """One optimizer over `modules`; biases, norms and other vectors are not decayed.

    Raises `UserError` for a ``lr_scale`` pattern that no parameter matches.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    used, starts = set[str](), dict[str, None]()
    for name, parameter in named_parameters(modules):
        starts |= {".".join(name.split(".")[:2]): None}
        pattern = next((p for p in config.lr_scale if fnmatchcase(name, p)), None)
        used |= {pattern} if pattern else set()
        scale = config.lr_scale[pattern] if pattern else 1.0
        decay = config.weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((config.lr * scale, decay), []).append(parameter)
    if unused := set(config.lr_scale) - used:
        pattern, known = sorted(unused)[0], list(starts)
        told = ", ".join(known[:TOLD]) + (f" and {len(known) - TOLD} more" if len(known) > TOLD else "")
        raise UserError(f"train.optimizer.lr_scale: {pattern!r} matches no parameter; their names begin with {told}")
    if not groups:
        raise UserError(f"nothing to train in {', '.join(modules)}")
    listed = [{"params": p, "lr": lr, "weight_decay": decay, "initial_lr": lr} for (lr, decay), p in groups.items()]
    kind: Any = {
        "sgd": torch.optim.SGD, "adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "radam": torch.optim.RAdam,
    }[config.name]  # fmt: skip
    sgd = {"momentum": config.betas[0], "nesterov": config.betas[0] > 0}
    made: Optimizer = kind(listed, **(sgd if config.name == "sgd" else {"betas": config.betas}), **_fused(kind, groups))
    return made


def _fused(kind: type[Optimizer], groups: Mapping[Any, list[nn.Parameter]]) -> dict[str, bool]:
    """Has a step on the CPU go through memory once, in one call. On a GPU torch takes its own best way unasked."""
    every = [parameter for group in groups.values() for parameter in group]
    there = "fused" in inspect.signature(kind).parameters and all(
        p.device.type == "cpu" and p.is_floating_point() and not is_shard(p) for p in every
    )
    return {"fused": True} if there else {}


def set_lr(optimizer: Optimizer, schedule: Schedule, step: int, steps: int) -> float:
    """Learning rates of `step`; returns the first group's. A group keeps its base as ``initial_lr``."""
    factor = schedule(step, steps)
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
    return float(optimizer.param_groups[0]["lr"])


def parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    """Of all groups, in order."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
