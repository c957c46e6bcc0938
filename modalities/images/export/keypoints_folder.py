"""A saved network of joints: its card, what that says, ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import model_validator

from xmodal_kd.adapter.saved_model import About, read_card
from xmodal_kd.runtime.errors import UserError

from ..data.keypoints.figures import Skeleton
from ..models import MODELS, DynamicKernels, HeatMaps, task_of
from ..models.dynamic_kernels import NextFrame
from .card import ImageCard, loaded
from .onnx import export_onnx

#: Of a model of clips: the frame after one.
NEXT = "next.onnx"
USE = """```sh
xmodal-kd keypoints path/to/this/folder picture.png folder/
```

writes the joints of the figure in each image as JSON, with `pip install 'xmodal-kd[images]'`. From Python:

```python
from xmodal_kd.modalities.images.use.keypoints import KeypointFinder

finder = KeypointFinder.from_pretrained("path/to/this/folder")  # or owner/name of a repository of the Hub
print(finder.find("picture.png"))
```

`model.onnx`, where it lies here, takes `x` (batch, {channels}, {height}, {width}), pixels / 127.5 - 1, and gives
`heatmaps` (batch, {joints}, {down}, {across}): a joint is at the hottest position, whose side is {stride} pixels."""


class KeypointsCard(ImageCard):
    """All that a network of joints needs beside its weights."""

    of: ClassVar[str] = "keypoints"
    joints: tuple[str, ...]
    """Their names, in the order of the heat maps."""
    edges: tuple[tuple[int, int], ...]
    """Pairs of joints between which there is a bone."""
    stride: Literal[1, 2, 4, 8]
    """Pixels on a side of one position of a heat map."""

    @model_validator(mode="after")
    def _fits(self) -> KeypointsCard:
        if not all(0 <= end < len(self.joints) for edge in self.edges for end in edge):
            raise ValueError(f"edges: they name joints beyond the {len(self.joints)} that there are")
        return self

    @property
    def skeleton(self) -> Skeleton:
        return Skeleton(self.joints, self.edges)


def build(card: KeypointsCard) -> HeatMaps:
    """The network that a card names, with fresh weights.

    Raises:
        UserError: a model of another task, or one that images of this size do not fit.
    """
    if task_of(card.model) != "keypoints":
        raise UserError(f"model {card.model!r} tells classes apart: the task keypoints needs hourglass or pose_resnet")
    kind, (channels, *sides) = MODELS[card.model], card.shape
    config = kind.Config.model_validate(card.params)
    model: HeatMaps = kind(config, channels=channels, joints=len(card.joints), stride=card.stride)
    if any(side % model.whole for side in sides):
        raise UserError(
            f"model {card.model!r} halves images to steps of {model.whole} pixels, of which "
            f"{sides[0]}x{sides[1]} are no multiples: set data.size, or a smaller depth of the model"
        )
    model.card = card.model_dump(mode="json")
    return model


def load_card(folder: Path) -> KeypointsCard:
    """The card of a saved network of joints. Raises `UserError` that names what is missing or wrong."""
    return read_card(folder, KeypointsCard, "network of joints")


def load_model(folder: Path) -> HeatMaps:
    """The model of a saved folder, in eval mode on the CPU. Raises `UserError` as `loaded` does."""
    return loaded(folder, load_card(folder), build)


def about(card: KeypointsCard) -> About:
    """A network of joints: what it sees and finds."""
    channels, height, width = card.shape
    colours = "grey" if channels == 1 else "colour"
    clips = " A model of clips: `next.onnx` follows the figure from a frame to the next." if _of_clips(card) else ""
    what = (
        f"It finds {len(card.joints)} joints of the figure in {colours} images of {width}x{height}, cut to that "
        f"figure: {', '.join(card.joints)}.{clips}"
    )
    use = USE.format(
        channels=channels, height=height, width=width, joints=len(card.joints), down=height // card.stride,
        across=width // card.stride, stride=card.stride,
    )  # fmt: skip
    return About("Joints of figures", what, use, {"pipeline_tag": "keypoint-detection"})


def _of_clips(card: KeypointsCard) -> bool:
    return bool(getattr(MODELS[card.model], "video", False))


def export(model: HeatMaps, folder: Path) -> dict[str, Any]:
    """Write ``model.onnx`` beside the saved model in `folder`: ``x`` to ``heatmaps`` (batch, joints, h, w).

    Of a model of clips that is its first frame; ``next.onnx`` makes the heat maps of a frame (``x``) of the image
    before it (``previous``) and its ``heatmaps``.
    """
    card = load_card(folder)
    height, width = (side // card.stride for side in card.shape[1:])
    if not isinstance(model, DynamicKernels):
        return export_onnx(model, folder, {"x": card.shape}, "heatmaps")
    maps = (len(card.joints), height, width)
    given = {"x": card.shape, "previous": card.shape, "heatmaps": maps}
    found = export_onnx(model.first, folder, {"x": card.shape}, "heatmaps")
    return found | export_onnx(NextFrame(model), folder, given, "next_heatmaps", name=NEXT)


__all__ = ["KeypointsCard", "about", "build", "export", "load_card", "load_model"]
