"""Times of interleaved rounds. It imports nothing of ours: the torchdistill side of ``step_overhead.py`` has none."""

from __future__ import annotations

from typing import Any

import numpy as np


def interval(values: Any, draws: int = 2000) -> list[float]:
    """Median with its 95 % bootstrap interval over rounds."""
    drawn = np.random.default_rng(0).choice(values, (draws, len(values)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return [float(np.median(values)), float(low), float(high)]
