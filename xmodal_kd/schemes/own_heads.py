"""An old and a new task on one network, each with a last layer and classes of its own (continual schemes).

The old layer is a child of the new one: what averages, keeps and loads the network's weights has it too, and a forward
pass does not know it, but `both`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..adapter.adapter import Adapter, Batch, Evaluation, Overview
from ..runtime.errors import UserError, nearest
from ..signals.signals import Signals

#: The child that an old layer is, its signals' prefix and, in a saved student's folder, the model of the old task.
OLD = "old"
#: Layers whose output is scores, by the axis of the classes.
LAYERS: Mapping[type[nn.Module], int] = {nn.Linear: -1, nn.Conv1d: 1, nn.Conv2d: 1, nn.Conv3d: 1}


def layer_of(model: nn.Module, path: str) -> nn.Module:
    """The last layer. Raises `UserError` where there is none of that path, or it is no layer of scores."""
    paths: dict[str, nn.Module] = dict(model.named_modules())
    if path not in paths:
        raise UserError(f"scheme.params.head: no module {path!r} in {type(model).__name__}{nearest(path, paths)}")
    if type(paths[path]) not in LAYERS:
        kind = type(paths[path]).__name__
        raise UserError(f"scheme.params.head: {path!r} is {kind}: name the linear or convolutional layer of the scores")
    return paths[path]


def classes_of(layer: nn.Module) -> int:
    """How many classes a last layer scores."""
    return len(cast(Tensor, layer.weight))


def give_old(model: nn.Module, path: str, layer: nn.Module) -> None:
    """Put a copy of the old task's last `layer` beside the new one, where it learns with it."""
    layer_of(model, path).add_module(OLD, copy.deepcopy(layer).requires_grad_(True))


def take_old(model: nn.Module, path: str) -> nn.Module:
    """The old task's last layer, taken out again: `model` is one of the new task alone."""
    layer = model.get_submodule(path)._modules.pop(OLD)
    assert layer is not None
    return layer


@contextmanager
def both(model: nn.Module, path: str, old: nn.Module) -> Iterator[None]:
    """While the block runs, scores of the old classes, by the `old` layer, stand behind those of the new ones."""

    def beside(layer: nn.Module, args: tuple[Any, ...], scores: Tensor) -> Tensor:
        return torch.cat([scores, old(*args)], dim=LAYERS[type(layer)])

    handle = layer_of(model, path).register_forward_hook(beside)
    try:
        yield
    finally:
        handle.remove()


def apart(said: Signals, output: str, path: str, classes: int, old: int) -> Signals:
    """Signals whose `output` has new and old classes, with the new ones as `output` and the others as ``old/output``.

    Raises `UserError` where it has another number of columns.
    """
    rows, layout = said[output]
    if rows.shape[-1] != classes + old:
        raise UserError(
            f"scheme.params.head: {path!r} does not give the {output} themselves: of {classes} new and {old} old "
            f"classes there are {rows.shape[-1]} columns: give the path of the last layer"
        )
    return said.add(output, rows[:, :classes], layout).add(f"{OLD}/{output}", rows[:, classes:], layout)


def on_trunk_of(old: nn.Module, model: nn.Module, path: str, layer: nn.Module | None = None) -> nn.Module:
    """The model of the old task that `model` still is: its layers under a last one of the old task.

    Args:
        old: the old model, whose last layer it has unless a `layer` is given.
    """
    made = copy.deepcopy(old)
    weights = {name: x for name, x in model.state_dict().items() if not name.startswith(f"{path}.")}
    made.load_state_dict(weights, strict=False)
    if layer is not None:
        made.get_submodule(path).load_state_dict(layer.state_dict())
    return made.eval()


# ---------------------------------------------------------------- an adapter that knows both


class TwoTasks(Adapter):
    """What a modality's adapter of the new task is besides, where the teacher is the old task's model.

    A teacher is built, loaded, asked and saved by the adapter of the old task; on the new one it answers nothing.
    """

    old: Adapter

    def _of(self, role: str) -> Any:
        return self.old if role in self.elsewhere else super()

    def build(self, role: str, model: str, params: Mapping[str, Any]) -> Any:
        return self._of(role).build(role, model, params)

    def load(self, role: str, folder: Path) -> Any:
        return self._of(role).load(role, folder)

    def save(self, role: str, model: nn.Module, folder: Path) -> None:
        self._of(role).save(role, model, folder)

    def about(self, role: str, model: nn.Module, folder: Path) -> Any:
        return self._of(role).about(role, model, folder)

    def class_names(self, role: str) -> Any:
        return self._of(role).class_names(role)

    def signals(self, role: str, model: nn.Module, batch: Batch, features: Any = ()) -> Any:
        return self._of(role).signals(role, model, batch, features)

    def answer(self, role: str, model: nn.Module, batch: Batch) -> Any:
        return self._of(role).answer(role, model, batch)

    def evaluate(self, role: str, model: nn.Module, split: str) -> Evaluation:
        if role in self.elsewhere:
            return Evaluation({self.metric[0]: None})
        found: Evaluation = self._of(role).evaluate(role, model, split)
        return found

    def overview(self, models: Mapping[str, nn.Module], folder: Path) -> Overview:
        return super().overview(self._here(models), folder)

    def show(self, models: Mapping[str, nn.Module], folder: Path) -> Any:
        return super().show(self._here(models), folder)

    def glimpse(self, role: str, model: nn.Module) -> Any:
        return () if role in self.elsewhere else self._of(role).glimpse(role, model)

    def _here(self, models: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
        return {role: model for role, model in models.items() if role not in self.elsewhere}


def two_tasks(new: Adapter, old: Adapter) -> Adapter:
    """The adapter `new` whose teacher is of the task of `old`."""
    made: Any = copy.copy(new)
    made.__class__ = type("TwoTasks", (TwoTasks, type(new)), {})
    made.old, made.elsewhere = old, frozenset({"teacher"})
    return made  # type: ignore[no-any-return]


__all__ = [
    "OLD",
    "TwoTasks",
    "apart",
    "both",
    "classes_of",
    "give_old",
    "layer_of",
    "on_trunk_of",
    "take_old",
    "two_tasks",
]
