"""A saved restorer: its card, what that says, ONNX of any size."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from xmodal_kd.adapter.saved_model import About, read_card
from xmodal_kd.runtime.errors import UserError

from ..models import MODELS, Restorer, task_of
from .card import ImageCard, loaded
from .onnx import export_onnx

USE = """```sh
xmodal-kd restore path/to/this/folder picture.png folder/ --out restored
```

writes an image{larger} for each, with `pip install 'xmodal-kd[images]'`. From Python:

```python
from xmodal_kd.modalities.images.use.restore import ImageRestorer

restorer = ImageRestorer.from_pretrained("path/to/this/folder")  # or owner/name of a repository of the Hub
restorer.restore("picture.png").save("restored.png")
```

`model.onnx`, where it lies here, takes `x` (batch, {channels}, height, width), pixels / 127.5 - 1, of any size, and
gives `restored` (batch, {channels}, {scale} x height, {scale} x width)."""


class RestorationCard(ImageCard):
    """All that a restorer needs beside its weights; `shape` is that of the inputs it was trained on."""

    of: ClassVar[str] = "restoration"
    scale: int = Field(ge=1, le=8)
    """How much larger a side of what it makes is."""
    noise: float = Field(ge=0)
    """Deviation of the noise that it was trained to take away, of 255 levels."""


def build(card: RestorationCard) -> Restorer:
    """The network that a card names, with fresh weights. Raises `UserError` for a model of another task."""
    if task_of(card.model) != "restoration":
        raise UserError(f"model {card.model!r} restores no images: the task restoration needs edsr")
    kind = MODELS[card.model]
    model: Restorer = kind(kind.Config.model_validate(card.params), channels=card.shape[0], scale=card.scale)
    model.card = card.model_dump(mode="json")
    return model


def load_card(folder: Path) -> RestorationCard:
    """The card of a saved restorer. Raises `UserError` that names what is missing or wrong."""
    return read_card(folder, RestorationCard, "restorer")


def load_model(folder: Path) -> Restorer:
    """The model of a saved folder, in eval mode on the CPU. Raises `UserError` as `loaded` does."""
    return loaded(folder, load_card(folder), build)


def about(card: RestorationCard) -> About:
    """A restorer: what it gives back."""
    channels, scale = card.shape[0], card.scale
    colours = "grey" if channels == 1 else "colour"
    gives = [f"{scale} times as many pixels on a side"] if scale > 1 else []
    gives += [f"images without noise of about {card.noise:g} of 255 levels"] if card.noise else []
    what = f"From {colours} images of any size it makes {' and '.join(gives)}: it was trained on bicubic sampling."
    use = USE.format(channels=channels, scale=scale, larger=f" {scale} times as large" if scale > 1 else "")
    return About("Restored images", what, use, {"pipeline_tag": "image-to-image"})


def export(model: Restorer, folder: Path) -> dict[str, Any]:
    """Write ``model.onnx`` beside the saved model in `folder`: ``x`` to ``restored``, of any height and width."""
    return export_onnx(model, folder, {"x": load_card(folder).shape}, "restored", any_size=True)


__all__ = ["RestorationCard", "about", "build", "export", "load_card", "load_model"]
