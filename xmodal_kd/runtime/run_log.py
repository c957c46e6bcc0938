"""The log of one training: a JSON line every few steps, beside whatever trackers are on."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .checkpoint import disk_errors, write_bytes


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
    """Entries of a log; a line that a kill cut short is left out."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
