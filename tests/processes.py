"""Processes of a test: where they find its modules, and how they meet."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import xmodal_kd

HERE = Path(__file__).parent
ROOT = Path(xmodal_kd.__file__).parents[1]


def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join([str(HERE), str(ROOT)])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}
