"""Full disks: a small one of its own where root may mount it, else a limit on the size of files."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
from pathlib import Path

from .kills import Baseline, arguments
from .processes import command


def limited(size: int) -> None:
    """In the process: no file may become larger."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def full(draw: random.Random, base: Baseline, folder: Path) -> tuple[str, str | None]:
    """Run into a full disk, then go on with room. Returns what was done, and what fell short."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if draw.random() < 0.5 and _mount(folder, kib := draw.choice([16, 40, 64, 100, 140, 200])):
        try:
            return f"a disk of {kib} KiB", _both(base, folder / "run", lambda: _remount(folder))
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=False, capture_output=True)
    size = draw.randint(200, 12_000)
    return f"files of {size} bytes", _both(base, folder / "run", None, size)


def _both(base: Baseline, out: Path, room: object, size: int | None = None) -> str | None:
    before = (limited, size) if size is not None else ()
    said = command(arguments(base.recipe, base.sets, out, "--resume"), *before, seconds=300)
    if (short := said.short()) is not None:
        return f"{short} | {said.errors[-200:]}"
    if said.status not in (0, 2):
        return f"status {said.status}: {said.errors[-200:]}"
    if said.status == 2 and "the disk is full" not in said.errors:
        return f"refused with another reason: {said.errors[-200:]}"
    if callable(room):
        room()
    said = command(arguments(base.recipe, base.sets, out, "--resume"), seconds=300)
    if said.status != 0:
        return f"with room: {said.short()} | {said.errors[-200:]}"
    return base.difference(out)


def _mount(folder: Path, kib: int) -> bool:
    if os.geteuid() != 0:
        return False
    words = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
    return subprocess.run(words, check=False, capture_output=True).returncode == 0


def _remount(folder: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=64m", str(folder)], check=True, capture_output=True)
