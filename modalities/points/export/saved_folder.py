"""A saved segmenter: ``card.json`` and ``model.safetensors`` or ``packed.safetensors``. Nothing is unpickled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from torch import nn

from xmodal_kd.adapter import saved_model as saved
from xmodal_kd.adapter.saved_model import CARD, WEIGHTS, explain, read_card
from xmodal_kd.compress.folder import load
from xmodal_kd.runtime.allocation import bounded
from xmodal_kd.runtime.checkpoint import write_json, write_tensors
from xmodal_kd.runtime.errors import UserError

from ..data.config import View
from ..data.simulator.sensors import Named
from ..models import MODELS


class Card(saved.Card):
    """What ``card.json`` says: all that a segmenter needs beside its weights."""

    modality: str = Field(pattern="^points$")
    channels: int = Field(gt=0)
    classes: tuple[str, ...]
    """What each output means, in order."""
    view: View
    """What it was trained to see."""
    image: tuple[int, int]
    """Height and width of the pictures it sees, if it does."""
    sensor: Named
    label_ids: tuple[int, ...] | None = None
    """A data set's id of each class, to write labels with; None: those of the simulator's eight, by their names."""


def save_model(folder: Path, model: nn.Module, card: Mapping[str, Any]) -> Path:
    """Write a folder that `load_model` reads; `card` has the fields of `Card`, and whatever else it should say."""
    checked = Card.model_validate({"format": 1, "modality": "points", **card}).model_dump(mode="json")
    checked = {key: value for key, value in checked.items() if (key, value) != ("label_ids", None)}
    # each file appears whole or not at all, and the card, which makes it a segmenter, comes last
    write_tensors(folder / WEIGHTS, model.state_dict())
    write_json(folder / CARD, checked)
    return folder


def load_card(folder: Path) -> Card:
    """The card of a saved segmenter. Raises `UserError` that names what is missing or wrong."""
    return read_card(folder, Card, "segmenter")


def load_model(folder: Path) -> tuple[nn.Module, Card]:
    """The model of a saved folder, in eval mode on the CPU, and its card.

    Raises:
        UserError: a file is missing or damaged, or the weights are not those of the model that the card names.
    """
    card = load_card(folder)
    kind = MODELS[card.model]
    try:
        config = kind.Config.model_validate(card.params)
        with bounded(f"{folder / CARD}: params"):
            model = kind(config, channels=card.channels, classes=len(card.classes))
    except ValidationError as error:
        raise UserError(f"{folder / CARD}: params.{explain(error)}") from error
    load(model, folder / WEIGHTS)
    return model.eval(), card


def check_classes(folder: Path, card: Card, wanted: Sequence[str]) -> None:
    """Raises `UserError` that names the first class in which a saved model differs from what is `wanted` of it."""
    for at, (theirs, ours) in enumerate(zip(card.classes, wanted, strict=False)):
        if theirs != ours:
            raise UserError(f"{folder}: its class {at} is {theirs!r}, here it is {ours!r}: map its outputs first")
    if len(card.classes) != len(wanted):
        raise UserError(f"{folder}: it has {len(card.classes)} classes, here there are {len(wanted)}")
