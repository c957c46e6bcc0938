"""scikit-learn's handwritten digits, which come with the package."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

from .read import Images


def read_digits() -> Images:
    """1797 digits of 8x8: 17 grey levels 0 to 16, mapped exactly onto [-1, 1]."""
    found = load_digits()
    x = (found.images / 8 - 1).astype(np.float32)[:, None]
    keys = [f"digit{i:04d}" for i in range(len(x))]
    return Images(x, found.target.astype(np.int64), tuple(map(str, range(10))), keys)


__all__ = ["read_digits"]
