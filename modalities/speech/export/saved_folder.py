"""A saved recogniser: ``card.json`` and ``model.safetensors`` or ``packed.safetensors``. Nothing is unpickled."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError
from torch import nn

from xmodal_kd.adapter import saved_model as saved
from xmodal_kd.adapter.saved_model import CARD, WEIGHTS, explain, read_card
from xmodal_kd.compress.folder import load
from xmodal_kd.runtime.allocation import bounded
from xmodal_kd.runtime.checkpoint import read_json, write_json, write_tensors
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.whole_files import write_bytes

from ..models import MODELS, AcousticModel
from .decoder_folder import is_decoder

Task = Literal["ctc", "transducer", "intents"]
#: What transcribes with an exported model, without this project.
PROGRAM = "transcribe.py"


class Card(saved.Card):
    """What ``card.json`` says: all that a recogniser needs beside its weights."""

    modality: str = Field(pattern="^speech$")
    features: dict[str, Any]
    tokens: dict[str, Any]
    sample_rate: int = Field(gt=0)
    stride: int = Field(gt=0)
    """Feature frames an output frame."""
    receptive_field: tuple[int, int] | None = None
    """Feature frames seen before and after an output frame; None where the model sees the whole utterance."""


def save_model(
    folder: Path | str, model_name: str, params: Mapping[str, Any], model: nn.Module,
    features: Mapping[str, Any], tokens: Mapping[str, Any], extra: Mapping[str, Any] | None = None,
) -> Path:  # fmt: skip
    """Write a folder that `load_model` and `Recogniser` read.

    Args:
        model_name: name in `MODELS`; `params` are its parameters.
        features: the front end's configuration, with ``sample_rate`` and ``mels`` among it.
        tokens: ``{"kind", "symbols"}``, the blank first.
        extra: whatever else the card should say; it may not contradict what the card says already.
    """
    folder = Path(folder)
    card = {
        "format": 1, "modality": "speech", "model": model_name, "params": dict(params),
        "features": dict(features), "tokens": dict(tokens), "sample_rate": features["sample_rate"],
        "stride": model.stride, "receptive_field": getattr(model, "receptive_field", None),
    }  # fmt: skip
    if clash := sorted(set(card) & set(extra or {})):
        raise ValueError(f"extra may not set {', '.join(clash)} of the card")
    # each file appears whole or not at all, and the card, which makes it a recogniser, comes last
    write_tensors(folder / WEIGHTS, model.state_dict())
    write_json(folder / CARD, card | dict(extra or {}))
    return folder


def write_program(folder: Path) -> None:
    """Put the program beside an exported model by which it transcribes without PyTorch."""
    write_bytes(folder / PROGRAM, Path(__file__).with_name("standalone.py").read_bytes())


def load_card(folder: Path | str, task: Task = "ctc") -> Card:
    """The card of a saved recogniser. Raises `UserError` that names what is missing or wrong.

    Args:
        task: how it must write.
    """
    if is_decoder(Path(folder)):
        raise UserError(f"{folder}: it writes by a decoder, not by frames: set data.task to seq2seq, or give a CTC one")
    card = read_card(Path(folder), Card, "recogniser")
    if (found := task_of(card)) != task:
        told = f"set data.task to {found}, or give a folder that fits {task}"
        raise UserError(f"{folder}: its {card.model!r} is a recogniser of task {found}, {task} is asked for: {told}")
    return card


def task_of(card: Card) -> str:
    """How the model of a card answers: ``ctc``, ``transducer`` or ``intents``."""
    return str(getattr(MODELS[card.model], "task", "ctc"))


def kind_in(folder: Path) -> Any:
    """The class of the model that was saved in a folder, by its card; None where there is no card of one."""
    found = read_json(folder / CARD) if (folder / CARD).is_file() else None
    name = found.get("model") if isinstance(found, dict) else None
    return MODELS[name] if isinstance(name, str) and name in MODELS else None


def load_model(folder: Path | str, task: Task = "ctc") -> tuple[AcousticModel, Card]:
    """The model of a saved folder, in eval mode on the CPU, and its card.

    Args:
        task: how it must write.

    Raises:
        UserError: a file is missing or damaged, or the weights are not those of the model that the card names.
    """
    card, path = load_card(folder, task), Path(folder) / WEIGHTS
    model = _build(card, Path(folder) / CARD)
    load(model, path)
    return model.eval(), card


def _build(card: Card, path: Path) -> AcousticModel:
    cls = MODELS[card.model]
    try:
        config = cls.Config.model_validate(card.params)
        mels, classes = int(card.features["mels"]), len(card.tokens["symbols"])
        with bounded(f"{path}: params"):
            built: AcousticModel = cls(config, mels=mels, classes=classes)
            return built
    except ValidationError as error:
        raise UserError(f"{path}: {explain(error, 'params')}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: features.mels or tokens.symbols is missing or wrong ({error})") from error
