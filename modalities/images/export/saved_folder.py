"""A saved classifier: ``card.json`` and ``model.safetensors`` or ``packed.safetensors``; what its card says; ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from xmodal_kd.adapter.saved_model import About, read_card

from ..models import MODELS, Network
from .card import ImageCard, loaded, save_model
from .onnx import FP32, export_onnx

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


class Card(ImageCard):
    """All that a classifier needs beside its weights."""

    of: ClassVar[str] = "classes"
    classes: tuple[str, ...]
    """What each output means, in order."""


def build(card: Card) -> Network:
    """The network that a card names, with fresh weights."""
    kind = MODELS[card.model]
    config = kind.Config.model_validate(card.params)
    model: Network = kind(config, channels=card.shape[0], classes=len(card.classes))
    model.card = card.model_dump(mode="json")
    return model


def load_card(folder: Path) -> Card:
    """The card of a saved classifier. Raises `UserError` that names what is missing or wrong."""
    return read_card(folder, Card, "classifier")


def load_model(folder: Path) -> Network:
    """The model of a saved folder, in eval mode on the CPU.

    Raises:
        UserError: a file is missing or damaged, or the weights are not those of the model that the card names.
    """
    return loaded(folder, load_card(folder), build)


def about(card: Card) -> About:
    """A classifier: what it sees and its classes."""
    channels, height, width = card.shape
    named = ", ".join(card.classes[:20]) + (", ..." if len(card.classes) > 20 else "")
    colours = "grey" if channels == 1 else "colour"
    what = f"It names the class of {colours} images of {width}x{height}: one of {len(card.classes)} ({named})."
    use = USE.format(channels=channels, height=height, width=width, classes=len(card.classes))
    return About("Image classifier", what, use, {"pipeline_tag": "image-classification"})


def export(model: Network, folder: Path) -> dict[str, Any]:
    """Write ``model.onnx`` beside the saved model in `folder`: ``x`` to ``logits`` (batch, classes)."""
    return export_onnx(model, folder, {"x": load_card(folder).shape}, "logits")


__all__ = ["FP32", "Card", "about", "build", "export", "load_card", "load_model", "save_model"]
