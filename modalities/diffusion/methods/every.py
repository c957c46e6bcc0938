"""All methods: who imports this finds them in `METHODS`."""

from __future__ import annotations

from . import consistency, continuous, identities, lcm, matching, mean_velocity, progressive, reflow

__all__ = ["consistency", "continuous", "identities", "lcm", "matching", "mean_velocity", "progressive", "reflow"]
