"""All methods: who imports this finds them in `METHODS`."""

from __future__ import annotations

from . import consistency, continuous, identities, matching, mean_velocity, progressive, reflow

__all__ = ["consistency", "continuous", "identities", "matching", "mean_velocity", "progressive", "reflow"]
