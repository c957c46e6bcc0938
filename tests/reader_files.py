"""Files as data sets have them, and what refuses them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from xmodal_kd.runtime.errors import UserError


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def scan(path, count=400, seed=0):
    """Points ahead, 5 to 45 m."""
    rng = np.random.default_rng(seed)
    table = np.column_stack([rng.uniform(5, 45, count), rng.uniform(-4, 4, (count, 1)), rng.uniform(-1, 1, (count, 2))])
    table[:, 3] = abs(table[:, 3])
    put(path, table.astype("<f4").tobytes())
    return table.astype(np.float32)


def photo(path, height=375, width=1242):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (10, 20, 30)).save(path)


def refused(action, *words):
    with pytest.raises(UserError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message
