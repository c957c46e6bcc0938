"""How high the ground lies in a scan."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

#: Points fewer of which say nothing.
FEWEST = 200
#: The ground is looked for among points so far away, metres, and in layers so thick.
REACH, LAYER = (2.5, 30.0), 0.2
#: Share of those points that a layer must hold to be taken for the ground.
GROUND = 0.1


def fullest(xyz: Float[np.ndarray, "n 3"], axis: int) -> float:
    """Share of the points in the fullest layer across an axis."""
    return float(_layers(xyz[:, axis]).max()) / len(xyz)


def _layers(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " layers"]:
    counts = np.bincount(((values - values.min()) / LAYER).astype(np.int64).clip(0, 10_000))
    found: np.ndarray = np.convolve(counts, np.ones(2), "full")
    return found


def ground(xyz: Float[np.ndarray, "n 3"]) -> float | None:
    """Height of the ground: of the lowest of the layers that hold about as many points as the fullest one.

    None where no layer holds many.
    """
    flat = np.hypot(xyz[:, 0], xyz[:, 1])
    near = xyz[(flat > REACH[0]) & (flat < REACH[1]), 2]
    if len(near) < FEWEST:
        return None
    near = near[near >= np.quantile(near, 0.005)]  # a few returns come from below, by reflection
    layers = _layers(near)
    if layers.max() < GROUND * len(near):
        return None
    first = int(np.flatnonzero(layers >= max(0.5 * layers.max(), GROUND * len(near)))[0])
    low = near.min() + (first - 1) * LAYER
    return float(np.median(near[(near >= low) & (near <= low + 2 * LAYER)]))


__all__ = ["FEWEST", "fullest", "ground"]
