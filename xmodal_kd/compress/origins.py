"""Where a student's initial weights come from: for each of its parameters one of the teacher's, and which part of it.

A student that starts as part of its teacher is the same class with fewer layers (Sanh et al., 2019, section 3: every
other layer), fewer channels, or both; which layer stands for which is said here, which channels in `prune`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from xmodal_kd.runtime.errors import UserError
from xmodal_kd.signals.layer_map import LayerMap, layer_pairs

#: What is kept of each dimension of a tensor: indexes, or None for all.
Kept = tuple[Tensor | None, ...]
#: Which teacher layers a student takes: a rule, or the layers themselves, counted from 0.
Layers = LayerMap | Sequence[int]


@dataclass(frozen=True)
class Origin:
    """The teacher's tensor that a student's comes from."""

    name: str
    kept: Kept = ()

    def take(self, tensor: Tensor) -> Tensor:
        """The kept part of the teacher's tensor."""
        for dim, index in enumerate(self.kept):
            if index is not None:
                tensor = tensor.index_select(dim, index.to(tensor.device))
        return tensor


Origins = Mapping[str, Origin]


def names(student: nn.Module, teacher: nn.Module, layers: Layers = "uniform") -> dict[str, str]:
    """For each tensor of the student's state the teacher's of the same place.

    A stack of layers is an ``nn.ModuleList`` that both have under one path; where the teacher's is longer, `layers`
    says which of its layers are taken. Everything else is found under its own name.

    Raises:
        UserError: the teacher lacks a tensor or is shallower, or the listed layers are not as many as the student's.
    """
    stacks = _stacks(student, teacher, layers)
    owned, found = teacher.state_dict(), {}
    for name in student.state_dict():
        theirs = _renamed(name, stacks)
        if theirs not in owned:
            raise UserError(
                f"the student's {name!r} would start as the teacher's {theirs!r}, which there is not: both must be "
                "the same model, the student with fewer layers or channels"
            )
        found[name] = theirs
    return found


def _stacks(student: nn.Module, teacher: nn.Module, layers: Layers) -> dict[str, list[int]]:
    """Of each stack whose depths differ: the teacher's layer for each of the student's, from 0."""
    theirs, found = dict(teacher.named_modules()), {}
    for path, mine in student.named_modules():
        other = theirs.get(path)
        if not (isinstance(mine, nn.ModuleList) and isinstance(other, nn.ModuleList)) or len(mine) == len(other):
            continue
        if len(mine) > len(other):
            raise UserError(f"the student has {len(mine)} layers in {path!r}, the teacher only {len(other)}")
        found[path] = _chosen(path, len(mine), len(other), layers)
    return found


def _chosen(path: str, mine: int, theirs: int, layers: Layers) -> list[int]:
    if isinstance(layers, str):
        chosen = [n - 1 for _, n in layer_pairs(layers, mine, theirs)]
        if len(chosen) == mine:
            return chosen
        raise UserError(
            f"layers {layers!r} leaves the last of {path!r} without one: say uniform, last, spaced, or which"
        )
    if len(layers) != mine or not all(0 <= n < theirs for n in layers):
        raise UserError(f"layers {list(layers)}: {path!r} needs {mine} of the teacher's 0 to {theirs - 1}")
    return list(layers)


def _renamed(name: str, stacks: Mapping[str, Sequence[int]]) -> str:
    """The name with the teacher's number in the place of the student's, in stacks within stacks too."""
    parts = name.split(".")
    renamed = list(parts)
    for at in range(1, len(parts)):
        chosen = stacks.get(".".join(parts[:at]))
        if chosen is not None and parts[at].isdecimal():
            renamed[at] = str(chosen[int(parts[at])])
    return ".".join(renamed)


@torch.no_grad()
def copy(student: nn.Module, teacher: nn.Module, origins: Origins) -> None:
    """Give the student the teacher's weights.

    Raises:
        UserError: a shape does not agree.
    """
    mine, theirs = student.state_dict(keep_vars=False), teacher.state_dict()
    for name, origin in origins.items():
        taken = origin.take(theirs[origin.name])
        if taken.shape != mine[name].shape:
            raise UserError(
                f"the student's {name!r} is {tuple(mine[name].shape)}, what it would start as {tuple(taken.shape)} "
                f"(the teacher's {origin.name!r}): widths must agree, or compress: width_prune chooses channels, or it "
                "is among layer_copy's leave"
            )
        mine[name].copy_(taken)
