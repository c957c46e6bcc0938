"""All methods: who imports this finds them in `METHODS`."""

from __future__ import annotations

from . import (
    add,
    adversarial,
    bk_sdm,
    consistency,
    continuous,
    ctm,
    identities,
    lcm,
    lightning,
    matching,
    mean_velocity,
    progressive,
    rdd,
    reflow,
    trajectories,
)

__all__ = [
    "add",
    "adversarial",
    "bk_sdm",
    "consistency",
    "continuous",
    "ctm",
    "identities",
    "lcm",
    "lightning",
    "matching",
    "mean_velocity",
    "progressive",
    "rdd",
    "reflow",
    "trajectories",
]
