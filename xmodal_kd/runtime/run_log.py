"""The log of one training: a JSON line every few steps, beside whatever trackers are on."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .bounded_files import read_bytes
from .whole_files import disk_errors, write_bytes

#: Bytes of a log: an entry of 300 for every tenth of ten million steps.
MOST_LOG = 1 << 29


class RunLog:
    """``log.jsonl`` in a training's folder. NaN and infinity, of a skipped fp16 step, become null: JSON has none."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "log.jsonl"

    def rewind(self, step: int) -> None:
        """Drop what was written after `step`, from which training goes on."""
        kept = [entry for entry in read(self.path) if entry["step"] <= step]
        write_bytes(self.path, "".join(json.dumps(entry) + "\n" for entry in kept).encode())

    def append(self, step: int, values: Mapping[str, float]) -> None:
        with disk_errors(self.path), self.path.open("a") as file:
            finite = {key: value if math.isfinite(value) else None for key, value in values.items()}
            file.write(json.dumps({"step": step, **finite}, allow_nan=False) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """Entries of a log; a line that a kill cut short, or that is damaged otherwise, is left out."""
    if not path.is_file():
        return []
    text = read_bytes(path, MOST_LOG).decode("utf-8", errors="replace")
    return [entry for line in text.splitlines() if (entry := _entry(line)) is not None]


def _entry(line: str) -> dict[str, Any] | None:
    """A line's step and its numbers, None where it is no entry."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not _is_number(found.get("step")):
        return None
    return {key: value for key, value in found.items() if value is None or _is_number(value)}


def _is_number(value: Any) -> bool:
    if isinstance(value, int) and abs(value) > 1 << 62:
        return False
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
