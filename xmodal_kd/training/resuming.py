"""Where a training goes on: the newest checkpoint that is sound and this training's, its best weights beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..runtime.checkpoint import load_weights
from ..runtime.common_folder import raise_first
from ..runtime.distributed import Ranks
from ..runtime.errors import UserError
from ..runtime.progress import console
from ..runtime.saved_steps import Checkpoints, Progressed
from .method import Stage

#: How the note begins that says that the best weights were lost.
WITHOUT_BEST = "went on without the best weights"


@dataclass
class Place:
    """Where a training is, and what its checkpoint holds; nothing at its start."""

    at: Progressed = field(default_factory=Progressed)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    state: Mapping[str, Any] = field(default_factory=dict)


def best_of(stage: Stage, stages: Sequence[Stage]) -> str:
    """Each stage has a best of its own, which the next one's must not overwrite before it has a checkpoint."""
    return stage.name if len(stages) > 1 else ""


def find_place(checkpoints: Checkpoints, stages: Sequence[Stage], ranks: Ranks, *, resume: bool, accept: bool) -> Place:
    """The place to go on from; the main process looks and reads, the others get it from there. What is not as it should
    be is printed and noted.

    Args:
        resume: whether there may be checkpoints.
        accept: whether to go on with the last weights where the best ones are gone or damaged.

    Raises:
        UserError: there are checkpoints and `resume` is not said; none is sound; one is another training's or of a
            stage or step that this one has not; its best weights are not what they were.
    """
    found: tuple[Path | None, list[str], Mapping[str, Any]] | UserError = (None, [], {})
    tensors: dict[str, Tensor] | None = None
    if ranks.main:
        try:
            path, notes = _looked(checkpoints, stages, resume, accept)
            state: Mapping[str, Any] = {}
            if path is not None:
                tensors, state = checkpoints.read(path)
            found = path, notes, state
        except UserError as error:
            found = error
    found = ranks.share(found)
    if isinstance(found, UserError):
        raise found
    path, notes, state = found
    if path is None:
        return Place()
    tensors = ranks.share_tensors(tensors)
    at = Progressed.read(state.get("at"), path)
    if any(note.startswith(WITHOUT_BEST) for note in notes):
        at = replace(at, best=None, best_at=None, bad=0)
    at.notes += notes
    if ranks.main:
        for note in notes:
            console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)
    return Place(at, tensors, state)


def take_best(checkpoints: Checkpoints, at: Progressed, target: nn.Module, name: str, ranks: Ranks) -> None:
    """The best weights into the main process's `target`; what it finds wrong with them is raised on all."""
    fault: UserError | None = None
    if ranks.main:
        try:
            load_weights(target, checkpoints.read_best(at, name)[0], checkpoints.best(name))
        except UserError as error:
            fault = error
    raise_first(ranks, fault)


def _looked(
    checkpoints: Checkpoints, stages: Sequence[Stage], resume: bool, accept: bool
) -> tuple[Path | None, list[str]]:
    checkpoints.tidy()
    if checkpoints.latest() and not resume:
        told = "holds checkpoints of another training: resume it, or choose another folder"
        raise UserError(f"{checkpoints.folder} {told}")
    path, notes = checkpoints.sound()
    if path is None:
        return None, []
    at = Progressed.read(checkpoints.read(path)[1].get("at"), path)
    at.check([stage.steps for stage in stages], path)
    if at.best is not None:
        try:
            checkpoints.read_best(at, best_of(stages[at.stage], stages))
        except UserError as error:
            if not accept:
                raise
            notes = [*notes, f"{WITHOUT_BEST}: {str(error).partition(': remove ')[0]}"]
    return path, notes


__all__ = ["Place", "best_of", "find_place", "take_best"]
