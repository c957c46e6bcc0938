"""Processes of a test: where they find its modules."""

from __future__ import annotations

import os
from pathlib import Path

import xmodal_kd

HERE = Path(__file__).parent
ROOT = Path(xmodal_kd.__file__).parents[1]


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(HERE), str(ROOT)])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
