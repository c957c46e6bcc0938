"""The trainings of a run: who learns, from whom, by which method, from which weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ..adapter.adapter import Strict
from ..recipe.recipe import Term, Train
from ..recipe.yaml_reader import Path_
from .method import Distil

#: Of a fresh model and the roles of earlier trainings: what is trained in its place, which may be the same object.
Start = Callable[[nn.Module, Mapping[str, nn.Module]], nn.Module]


@dataclass(frozen=True)
class RolePlan:
    """One training of a run, or one model that it loads.

    Attributes:
        role: ``teacher``, ``teacher-<name>``, ``control``, ``student``, ``self_training``, or what a scheme calls it.
        model: name of what is built, of which `params` are the parameters, checked where the recipe has them: `at`.
        train: None where it is loaded from `path`.
        teachers: roles that teach it, all of earlier trainings and frozen; the first one teaches in `Distil`.
        path: folder of a saved model.
        init: stream of its initial weights; what shares one starts alike.
        method: what trains it, and its parameters.
        starts: what makes its initial weights of fresh ones, in order.
        data: key and content of a data section among the scheme's parameters, where it learns another task.
        peers: roles of the same model that learn beside it and are not kept; the initial weights of each are its own.
    """

    role: str
    model: str | None
    params: Mapping[str, Any]
    at: Path_
    terms: tuple[Term, ...] = ()
    train: Train | None = None
    teachers: tuple[str, ...] = ()
    path: Path | None = None
    init: str = "student"
    method: type[Any] = Distil
    settings: Strict | None = None
    starts: tuple[Start, ...] = ()
    peers: tuple[str, ...] = ()
    data: tuple[str, Mapping[str, Any]] | None = None

    @property
    def steps(self) -> Train:
        """How it is trained; a loaded role is not."""
        assert self.train is not None
        return self.train
