"""All methods: who imports this finds them in `METHODS`."""

from __future__ import annotations

from . import (
    adversarial,
    consistency,
    continuous,
    ctm,
    identities,
    lcm,
    matching,
    mean_velocity,
    progressive,
    reflow,
    trajectories,
)

__all__ = [
    "adversarial",
    "consistency",
    "continuous",
    "ctm",
    "identities",
    "lcm",
    "matching",
    "mean_velocity",
    "progressive",
    "reflow",
    "trajectories",
]
