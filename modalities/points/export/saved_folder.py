"""A saved segmenter or detector: ``card.json`` and ``model.safetensors`` or ``packed.safetensors``, no pickles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from torch import nn

from xmodal_kd.adapter import saved_model as saved
from xmodal_kd.adapter.adapter import is_teacher
from xmodal_kd.adapter.saved_model import CARD, WEIGHTS, explain, read_card
from xmodal_kd.compress.folder import load
from xmodal_kd.runtime.allocation import bounded
from xmodal_kd.runtime.checkpoint import write_json, write_tensors
from xmodal_kd.runtime.errors import UserError

from ..data.config import IMAGE, View
from ..data.detection_config import Detection
from ..data.simulator.sensors import Sensor, SensorField, sensor
from ..models import MODELS, BoxesModel

#: Keys of a card that stand there only where they say something.
OPTIONAL = frozenset({"label_ids", "detection", "focal"})


class Card(saved.Card):
    """What ``card.json`` says: all that a segmenter or a detector needs beside its weights."""

    modality: str = Field(pattern="^points$")
    channels: int = Field(gt=0)
    classes: tuple[str, ...]
    """What each output means, in order."""
    view: View
    """What it was trained to see."""
    image: tuple[int, int] = IMAGE
    """Height and width of the pictures it sees, if it does."""
    sensor: SensorField
    """A preset, or its lasers."""
    label_ids: tuple[int, ...] | None = None
    """A data set's id of each class, to write labels with; None: those of the simulator's eight, by their names."""
    detection: Detection | None = None
    """Where a detector looks for boxes; None: it is a segmenter."""
    focal: float | None = Field(None, gt=0)
    """Of a detector of photographs: the focal length of the first that it learned from, in pixels at `image`'s size."""

    @property
    def lidar(self) -> Sensor:
        return sensor(self.sensor)


def save_model(folder: Path, model: nn.Module, card: Mapping[str, Any]) -> Path:
    """Write a folder that `load_model` reads; `card` has the fields of `Card`, and whatever else it should say."""
    checked = Card.model_validate({"format": 1, "modality": "points", **card}).model_dump(mode="json")
    checked = {key: value for key, value in checked.items() if key not in OPTIONAL or value is not None}
    # each file appears whole or not at all, and the card, which makes it a segmenter, comes last
    write_tensors(folder / WEIGHTS, model.state_dict())
    write_json(folder / CARD, checked)
    return folder


def load_card(folder: Path, *, detects: bool = False) -> Card:
    """The card of a saved segmenter, or of a detector. Raises `UserError` that names what is missing or wrong."""
    card = read_card(folder, Card, "detector" if detects else "segmenter")
    if detects and card.detection is None:
        raise UserError(f"{folder} is a segmenter: call xmodal-kd segment, or set data.task to segmentation")
    if card.detection is not None and not detects:
        raise UserError(f"{folder} is a detector: call xmodal-kd detect, or set data.task to detection")
    return card


def load_model(folder: Path, *, detects: bool = False) -> tuple[nn.Module, Card]:
    """The model of a saved folder, in eval mode on the CPU, and its card.

    Raises:
        UserError: a file is missing or damaged, or the weights are not those of the model that the card names.
    """
    card = load_card(folder, detects=detects)
    kind = MODELS[card.model]
    try:
        config = kind.Config.model_validate(card.params)
        with bounded(f"{folder / CARD}: params"):
            model = kind(config, channels=card.channels, classes=len(card.classes))
    except ValidationError as error:
        raise UserError(f"{folder / CARD}: {explain(error, 'params')}") from error
    load(model, folder / WEIGHTS)
    if isinstance(model, BoxesModel) and card.detection is not None:
        model.stand_on(card.detection, card.view.cell)
    return model.eval(), card


def check_classes(folder: Path, card: Card, wanted: Sequence[str]) -> None:
    """Raises `UserError` that names the first class in which a saved model differs from what is `wanted` of it."""
    for at, (theirs, ours) in enumerate(zip(card.classes, wanted, strict=False)):
        if theirs != ours:
            raise UserError(f"{folder}: its class {at} is {theirs!r}, here it is {ours!r}: map its outputs first")
    if len(card.classes) != len(wanted):
        raise UserError(f"{folder}: it has {len(card.classes)} classes, here there are {len(wanted)}")


def check_view(folder: Path, role: str, asked: Mapping[str, Any], trained: Mapping[str, Any]) -> None:
    """Raises `UserError` that names the first key in which what a saved model was trained to see is not what is `asked`
    of the role."""
    key = f"data.{role.replace('-', 's.')}" if is_teacher(role) else "data.student"
    for name, wanted in asked.items():
        if wanted != trained.get(name):
            raise UserError(
                f"{folder}: this {role} was trained with {name} {trained.get(name)}, {key}.{name} says {wanted}: "
                "make them agree"
            )


def essence(view: View, sensor: Sensor) -> dict[str, Any]:
    """What of a view a model depends on."""
    if view.sees == "image":
        return {"sees": view.sees}
    beams = view.beams or sensor.beams
    found = {"sees": view.sees, "beams": beams, "sweeps": view.sweeps, "intensity": view.intensity}
    if view.sees == "range":
        return {**found, "columns": view.columns}
    return {**found, "cell": view.cell} if view.sees == "pillars" else found
