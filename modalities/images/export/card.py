"""What the cards of all tasks say, and how the model of one is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from pydantic import Field, ValidationError, field_validator
from torch import nn

from xmodal_kd.adapter import saved_model as saved
from xmodal_kd.adapter.saved_model import CARD, WEIGHTS, explain
from xmodal_kd.compress.folder import load
from xmodal_kd.runtime.allocation import bounded
from xmodal_kd.runtime.checkpoint import write_json, write_tensors
from xmodal_kd.runtime.errors import UserError


class ImageCard(saved.Card):
    """What ``card.json`` says of a network of images, whatever its task."""

    #: Its ``data.task``.
    of: ClassVar[str]
    modality: str = Field(pattern="^images$")
    task: str = Field("classes", validate_default=True)
    shape: tuple[int, int, int]
    """Channels (1: grey, 3: colour), height and width of an image."""

    @field_validator("task")
    @classmethod
    def _is_of_its_task(cls, task: str) -> str:
        if task != cls.of:
            raise ValueError(f"it is a model of the task {task}, and one of {cls.of} is needed")
        return task


class Carded(Protocol):
    """A network that knows its card."""

    card: dict[str, Any]

    def state_dict(self) -> dict[str, Any]: ...


C = TypeVar("C", bound=ImageCard)
M = TypeVar("M", bound=nn.Module)


def save_model(folder: Path, model: Carded, extra: Mapping[str, Any]) -> None:
    """Write a folder that `loaded` reads; the card, which makes it a model, comes last."""
    write_tensors(folder / WEIGHTS, model.state_dict())
    write_json(folder / CARD, {**model.card, **extra})


def loaded(folder: Path, card: C, build: Callable[[C], M]) -> M:
    """The model of a saved folder, in eval mode on the CPU.

    Raises:
        UserError: a file is missing or damaged, or the weights are not those of the model that the card names.
    """
    try:
        with bounded(f"{folder / CARD}: params"):
            model = build(card)
    except ValidationError as error:
        raise UserError(f"{folder / CARD}: {explain(error, 'params')}") from error
    load(model, folder / WEIGHTS)
    return model.eval()


__all__ = ["ImageCard", "loaded", "save_model"]
