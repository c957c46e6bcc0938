"""How well joints are found: the share of them that lie near where they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from xmodal_kd.runtime.random_streams import Streams

from ..data.keypoints.source import FiguresSource, before, located
from ..models import heat_maps

#: Of the figure's box, its larger side: how far off a joint may be. The first is the main metric's.
SHARES = (0.2, 0.1, 0.05)
#: Of the bootstrap, and fewest images that it is taken over.
RESAMPLES, FEWEST = 1000, 2
#: Images that are looked at at once, or the clips of so many.
TOGETHER = 256


@torch.no_grad()
def found_in(source: FiguresSource, model: nn.Module, most: int | None = None) -> Float[Tensor, "n j 2"]:
    """Where a model finds the joints of the first `most` samples of a split, or of all."""
    figures, device, frames = source.figures, next(model.parameters()).device, source.figures.frames
    count, together = min(len(source), most or len(source)), max(1, TOGETHER // frames) * frames
    found = []
    for start in range(0, count, together):
        numbers = range(start, min(start + together, count))
        maps = heat_maps(model, figures.tensor(numbers).to(device), before(numbers, frames).to(device))
        found.append(located(maps.float().cpu(), source.config.keypoints.stride)[0])
    return torch.cat(found)


def distances(
    found: Float[Tensor, "n j 2"], right: Float[Tensor, "n j 2"], sizes: Float[Tensor, " n"]
) -> Float[Tensor, "n j"]:
    """Of each joint from where it is, in larger sides of the figure's box."""
    return (found.double() - right.double()).square().sum(dim=-1).sqrt() / sizes.double()[:, None]


def metrics(
    off: Float[Tensor, "n j"], visible: Bool[Tensor, "n j"], hidden: Bool[Tensor, "n j"], names: Sequence[str]
) -> dict[str, Any]:
    """PCK of the labelled joints (Yang and Ramanan, 2013: the share within 0.2 of the larger side of the box).

    ``pck`` with its 95 % bootstrap interval over images, ``pck_01`` and ``pck_005`` of nearer bounds, ``error`` (the
    mean distance, in larger sides of the box), ``pck_hidden`` of joints that are labelled and hidden, by joint.

    Args:
        off: as `distances` gives it.
        visible: joints that are labelled.
        hidden: those of them that cannot be seen.
    """
    near = [(off <= share) & visible for share in SHARES]
    right, count = near[0].sum(dim=1).double(), visible.sum(dim=1).double()
    return {
        "pck": _share(near[0], visible),
        "pck_interval": interval(right, count),
        "pck_interval_over": "images",
        "pck_01": _share(near[1], visible),
        "pck_005": _share(near[2], visible),
        "pck_hidden": _share(near[0] & hidden, hidden & visible),
        "error": float(off[visible].mean()) if bool(visible.any()) else None,
        "pck_by_joint": {
            name: _share(near[0][:, i], visible[:, i]) for i, name in enumerate(names) if bool(visible[:, i].any())
        },
        "images": len(off),
        "joints": int(visible.sum()),
    }


def _share(some: Tensor, of: Tensor) -> float | None:
    return float(some.sum() / of.sum()) if bool(of.any()) else None


def interval(right: Float[Tensor, " n"], count: Float[Tensor, " n"], resamples: int = RESAMPLES) -> list[float] | None:
    """The middle 95 % of ``sum right / sum count`` over images drawn with replacement; the draws are the same for equal
    numbers of images. None for fewer than two, and where nothing is counted."""
    n = len(right)
    if n < FEWEST or not bool(count.any()):
        return None
    drawn = torch.from_numpy(Streams(0).numpy("pck").integers(0, n, (resamples, n)))
    shares = right[drawn].sum(dim=1) / count[drawn].sum(dim=1)
    low, high = np.nanquantile(shares.numpy(), [0.025, 0.975])
    return [float(low), float(high)]


__all__ = ["SHARES", "distances", "found_in", "interval", "metrics"]
