"""Exits from the middle of a model: heads after its stages, and models that answer from one and compute no more."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..runtime.checkpoint import load_weights, read_json, read_tensors, write_json, write_tensors
from ..runtime.errors import UserError

WEIGHTS, CARD = "exits.safetensors", "exits.json"


class Exit(nn.Module):
    """Bottleneck and head after a stage: from its rows to rows like the deepest ones, and to an answer.

    After Zhang et al., "Be Your Own Teacher", ICCV 2019, whose bottleneck is convolutional: this one sees a row alone.

    Args:
        width: of the stage's rows.
        deepest: width of the rows that it imitates.
        answers: classes, or values of a regression.
    """

    def __init__(self, width: int, deepest: int, answers: int) -> None:
        super().__init__()
        self.shape = (width, deepest, answers)
        self.bottleneck = nn.Sequential(
            nn.Linear(width, deepest), nn.LayerNorm(deepest), nn.GELU(), nn.Linear(deepest, deepest)
        )
        self.head = nn.Sequential(nn.LayerNorm(deepest), nn.Linear(deepest, answers))
        #: Where channels lie in what `forward` is given: 1 in maps (b, c, *grid), -1 in rows and sequences.
        self.axis = -1

    def both(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Rows ``(n, width)`` to ``(n, deepest)`` and ``(n, answers)``."""
        features = self.bottleneck(rows)
        return features, self.head(features)

    def forward(self, x: Tensor) -> Tensor:
        """The answer to a stage's output as the model has it, in the same layout."""
        answer: Tensor = self.both(x.movedim(self.axis, -1))[1].movedim(-1, self.axis)
        return answer


@dataclass(frozen=True)
class Route:
    """What lies behind an exit in a model.

    Attributes:
        path: the module after which the model is left.
        passed: modules behind it, which an early answer does not compute.
        head: the module that puts out the model's answer, in whose place the exit's stands.
        axis: see `Exit.axis`.
    """

    path: str
    passed: tuple[str, ...]
    head: str
    axis: int = -1


# docs/decisions/015-students-that-teach.md
class Exits(nn.Module):
    """The exits of a model, in the order in which it comes to them."""

    def __init__(self, paths: Sequence[str], shapes: Sequence[tuple[int, int, int]]) -> None:
        super().__init__()
        self.paths = tuple(paths)
        self.exits = nn.ModuleList(Exit(*shape) for shape in shapes)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> Exit:
        return self.exits[number]  # type: ignore[return-value]

    def save(self, folder: Path, routes: Sequence[Route | None]) -> None:
        """Beside a saved model: weights, and the way to each exit where there is one."""
        write_tensors(folder / WEIGHTS, self.state_dict())
        write_json(folder / CARD, [
            {"path": path, "shape": list(self[i].shape), "route": None if route is None else asdict(route)}
            for i, (path, route) in enumerate(zip(self.paths, routes, strict=True))
        ])  # fmt: skip


class _Passed(nn.Module):
    """Stands for a module that an early answer does not compute."""

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        return x


def leaves(model: nn.Module, path: str, run: Callable[[nn.Module], Any], width: int) -> Route:
    """The way from `path` straight to the answer, found by watching one forward pass.

    Args:
        run: calls the model on a real batch.
        width: channels of what `path` puts out.
    Raises:
        UserError: `path` is called more than once or not at all, or nothing comes after it.
    """
    began: dict[str, int] = {}
    ended: dict[str, list[int]] = {}
    shape: list[tuple[int, ...]] = []
    timer = iter(range(10**9))
    names = {id(module): name for name, module in model.named_modules() if name}

    def enter(module: nn.Module, *_: Any) -> None:
        began.setdefault(names[id(module)], next(timer))

    def leave(module: nn.Module, _: Any, output: Any) -> None:
        name = names[id(module)]
        ended.setdefault(name, []).append(next(timer))
        if name == path and isinstance(output, Tensor):
            shape.append(tuple(output.shape))

    hooks = [m.register_forward_pre_hook(enter) for n, m in model.named_modules() if n]
    hooks += [m.register_forward_hook(leave) for n, m in model.named_modules() if n]
    try:
        run(model)
    finally:
        for hook in hooks:
            hook.remove()
    if len(shape) != 1:
        raise UserError(f"exit {path!r}: the module puts out {len(shape)} tensors in a forward pass: choose another")
    left = ended[path][0]
    behind = {name for name, at in began.items() if at > left}
    whole = sorted((name for name in behind if not _inside(name, behind)), key=began.__getitem__)
    if not whole:
        raise UserError(f"exit {path!r}: no module comes after it, so nothing could be saved: choose an earlier one")
    return Route(path, tuple(whole[:-1]), whole[-1], -1 if shape[0][-1] == width else 1)


def _inside(name: str, others: set[str]) -> bool:
    parts = name.split(".")
    return any(".".join(parts[:n]) in others for n in range(1, len(parts)))


def early(model: nn.Module, exit_: Exit, route: Route) -> nn.Module:
    """A model that is called as `model` and answers from an exit; what lies behind it is not in it."""
    found = copy.deepcopy(model)
    for path in route.passed:
        found.set_submodule(path, _Passed())
    head = copy.deepcopy(exit_)
    head.axis = route.axis
    found.set_submodule(route.head, head.train(model.training))
    return found


def load_early(model: nn.Module, folder: Path, number: int) -> nn.Module:
    """The saved student's model as it answers from exit `number`, counted from 1 as the report does.

    Args:
        model: loaded from the same folder.
    Raises:
        UserError: the folder has no such exit, or the model cannot be left there.
    """
    card = read_json(folder / CARD)
    if not isinstance(card, list):
        raise UserError(f"{folder / CARD}: a JSON list of exits belongs here, not {type(card).__name__}")
    if not 1 <= number <= len(card):
        raise UserError(f"{folder}: it has exits 1 to {len(card)}, not {number}")
    exits = Exits([entry["path"] for entry in card], [tuple(entry["shape"]) for entry in card])
    load_weights(exits, read_tensors(folder / WEIGHTS), folder / WEIGHTS)
    route = card[number - 1]["route"]
    if route is None:
        raise UserError(f"{folder}: the model cannot be left at exit {number}, {card[number - 1]['path']!r}")
    return early(model, exits[number - 1], Route(**{**route, "passed": tuple(route["passed"])}))


__all__ = ["CARD", "WEIGHTS", "Exit", "Exits", "Route", "early", "leaves", "load_early"]
