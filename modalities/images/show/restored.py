"""Images on a run's page: what was taken from them, and what bicubic sampling and each role give back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import UInt8
from torch import nn

from xmodal_kd.adapter.panels import Panel, gallery, png

from ..data.restoration.degraded import as_bytes, as_seen, enlarged
from ..data.restoration.source import RestorationSource
from ..evaluate.restored import compared
from ..models.restoration import Restorer, restored

#: Test images shown, and dev images at each evaluation.
SHOWN, GLIMPSED = 8, 4
#: Sides of the middle of an image that is shown: at most, and what smaller ones are enlarged to.
MOST, LEAST = 96, 160


def show(source: RestorationSource, models: Mapping[str, nn.Module]) -> Sequence[Panel]:
    """One gallery: an image a row; input, bicubic sampling, each role and what is right the columns."""
    scale, rows = source.config.restoration.scale, []
    for i in range(min(len(source), SHOWN)):
        small, target = _middle(source, i)
        made = {"bicubic": enlarged(small, scale)} | {role: _made(model, small) for role, model in models.items()}
        cells = {"input": (png(_picture(small, target.shape[1])), "")}
        for name, image in made.items():
            cells[name] = (png(_picture(image)), f"{compared(image, target, scale)[0]:.2f} dB")
        rows.append((source.pictures.keys[i], cells | {"target": (png(_picture(target)), "")}))
    note = (
        f"The middle of the first test images, with the PSNR of what is seen of its luma; inputs of 1/{scale} the side."
    )
    return [gallery("What each role gives back", ["input", "bicubic", *models, "target"], rows, note=note)]


def glimpse(source: RestorationSource, role: str, model: nn.Module) -> Sequence[Panel]:
    """The middle of the first dev images as one role restores them now, beside each other."""
    scale, pictures, found = source.config.restoration.scale, [], []
    for i in range(min(len(source), GLIMPSED)):
        small, target = _middle(source, i)
        made = _made(model, small)
        found.append(compared(made, target, scale)[0])
        pictures.append(_picture(made))
    least = min(picture.shape[0] for picture in pictures)
    cell = (png(np.hstack([picture[:least] for picture in pictures])), f"{np.mean(found):.2f} dB")
    note = (
        f"The middle of the first {len(pictures)} dev images at one evaluation after another: the number is the step."
    )
    return [gallery("What is seen while it learns", [role], [("now", {role: cell})], note=note)]


def _middle(source: RestorationSource, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Input and target of the middle of an image."""
    small, target = source.whole(index)
    scale = source.config.restoration.scale
    sides = [min(size, max(1, MOST // scale)) for size in small.shape[1:]]
    top, left = ((size - side) // 2 for size, side in zip(small.shape[1:], sides, strict=True))
    height, width = sides
    inner = small[:, top : top + height, left : left + width]
    top, left, height, width = (at * scale for at in (top, left, height, width))
    return inner, target[:, top : top + height, left : left + width]


def _made(model: nn.Module, small: UInt8[np.ndarray, "c h w"]) -> UInt8[np.ndarray, "c i j"]:
    assert isinstance(model, Restorer)
    return as_bytes(restored(model, as_seen(small)))


def _picture(x: UInt8[np.ndarray, "c h w"], height: int | None = None) -> UInt8[np.ndarray, "i j 3"]:
    """In colour, every pixel repeated until it is of that `height`, then until small images can be seen."""
    times = (height or x.shape[1]) // x.shape[1]
    times *= max(1, round(LEAST / (x.shape[1] * times)))
    picture = np.broadcast_to(x.transpose(1, 2, 0), (*x.shape[1:], 3))
    return np.ascontiguousarray(picture.repeat(times, axis=0).repeat(times, axis=1))


__all__ = ["glimpse", "show"]
