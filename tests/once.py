"""What takes long to make is made by the first test process that needs it; the others take a copy."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


def shared_folder(factory: pytest.TempPathFactory) -> Path:
    """The folder of all test processes of this session."""
    base = factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that `make` fills, this process's own: what its tests change there, no other process sees.

    Whoever comes while another makes it waits; where making failed, the next one tries.
    """
    mine = factory.mktemp(name) / "run"
    if "PYTEST_XDIST_WORKER" not in os.environ:
        make(mine)
        return mine
    shared = shared_folder(factory) / f"once-{name}"
    with shared.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not shared.with_suffix(".made").exists():
            shutil.rmtree(shared, ignore_errors=True)
            make(shared / "run")
            shared.with_suffix(".made").touch()
    shutil.copytree(shared / "run", mine)
    return mine
