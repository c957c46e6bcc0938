"""A saved classifier: ``card.json`` and ``model.safetensors`` or ``packed.safetensors``; what its card says; ONNX."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, ValidationError
from torch import Tensor

from xmodal_kd.adapter import saved_model as saved
from xmodal_kd.adapter.saved_model import CARD, WEIGHTS, About, explain, read_card
from xmodal_kd.compress.folder import load
from xmodal_kd.models import onnx
from xmodal_kd.runtime.allocation import bounded
from xmodal_kd.runtime.checkpoint import write_json, write_tensors
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.timing import latency

from ..models import MODELS, Network

FP32, EXTRA = "model.onnx", "images"
USE = """```sh
xmodal-kd classify path/to/this/folder picture.png folder/ --json
```

names the class of each image, with `pip install 'xmodal-kd[images]'`. From Python:

```python
from xmodal_kd.modalities.images.use.classify import ImageClassifier

classifier = ImageClassifier.from_pretrained("path/to/this/folder")  # or owner/name of a repository of the Hub
print(classifier.classify("picture.png"))
```

`model.onnx`, where it lies here, takes `x` (batch, {channels}, {height}, {width}), pixels / 127.5 - 1, and gives
`logits` (batch, {classes})."""


class Card(saved.Card):
    """What ``card.json`` says: all that a classifier needs beside its weights."""

    modality: str = Field(pattern="^images$")
    shape: tuple[int, int, int]
    """Channels (1: grey, 3: colour), height and width of an image."""
    classes: tuple[str, ...]
    """What each output means, in order."""


def build(card: Card) -> Network:
    """The network that a card names, with fresh weights."""
    kind = MODELS[card.model]
    config = kind.Config.model_validate(card.params)
    model: Network = kind(config, channels=card.shape[0], classes=len(card.classes))
    model.card = card.model_dump(mode="json")
    return model


def save_model(folder: Path, model: Network, extra: Mapping[str, Any]) -> None:
    """Write a folder that `load_model` reads; the card, which makes it a classifier, comes last."""
    write_tensors(folder / WEIGHTS, model.state_dict())
    write_json(folder / CARD, {**model.card, **extra})


def load_card(folder: Path) -> Card:
    """The card of a saved classifier. Raises `UserError` that names what is missing or wrong."""
    return read_card(folder, Card, "classifier")


def load_model(folder: Path) -> Network:
    """The model of a saved folder, in eval mode on the CPU.

    Raises:
        UserError: a file is missing or damaged, or the weights are not those of the model that the card names.
    """
    card = load_card(folder)
    try:
        with bounded(f"{folder / CARD}: params"):
            model = build(card)
    except ValidationError as error:
        raise UserError(f"{folder / CARD}: params.{explain(error)}") from error
    load(model, folder / WEIGHTS)
    return model.eval()


def about(card: Card) -> About:
    """A classifier: what it sees and its classes."""
    channels, height, width = card.shape
    named = ", ".join(card.classes[:20]) + (", ..." if len(card.classes) > 20 else "")
    colours = "grey" if channels == 1 else "colour"
    what = f"It names the class of {colours} images of {width}x{height}: one of {len(card.classes)} ({named})."
    use = USE.format(channels=channels, height=height, width=width, classes=len(card.classes))
    return About("Image classifier", what, use, {"pipeline_tag": "image-classification"})


def export(model: Network, folder: Path) -> dict[str, Any]:
    """Write ``model.onnx`` beside the saved model in `folder`: ``x`` (batch, c, h, w) to ``logits`` (batch, classes).

    Returns:
        Of the file its ``bytes``, the largest difference from torch (``max_error``), and the latency at batch 1:
        ``milliseconds`` (median), ``p95_ms``, ``runs``, ``threads``.

    Raises:
        RunError: the exported model differs from torch by more than 1e-4.
        UserError: onnx, onnxscript or onnxruntime is missing.
    """
    shape, errors = load_card(folder).shape, list[float]()
    threads = torch.get_num_threads()

    def check(path: Path) -> None:
        session = onnx.session(path, extra=EXTRA)
        errors.extend(onnx.prove(model, partial(onnx.run, session), _wave((n, *shape))) for n in (1, 3))

    example = torch.zeros(2, *shape, device=next(model.parameters()).device)
    onnx.export(model, folder / FP32, {"x": example}, ["logits"], {"x": {0: "batch"}}, check, extra=EXTRA)
    session = onnx.session(folder / FP32, threads=threads, extra=EXTRA)
    found = latency(partial(onnx.run, session, _wave((1, *shape))))
    size = (folder / FP32).stat().st_size
    times = {"milliseconds": found["median_ms"], "p95_ms": found["p95_ms"], "runs": found["runs"]}
    return {FP32: {"bytes": size, "free": ["batch"], "max_error": max(errors), **times, "threads": threads}}


def _wave(shape: tuple[int, ...]) -> Tensor:
    """A fixed input rather than noise: exporting draws nothing from the global generator."""
    return torch.sin(torch.arange(torch.Size(shape).numel(), dtype=torch.float32)).reshape(shape)


__all__ = ["FP32", "Card", "about", "build", "export", "load_card", "load_model", "save_model"]
