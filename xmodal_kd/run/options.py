"""What the command line says of a run beside its recipe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Options:
    """What the command line says beside the recipe."""

    out: Path
    device: str = "auto"
    resume: bool = False
    only: str | None = None
    max_minutes: float | None = None
    quiet: bool = False
    accept_changes: bool = False
    """Go on though teachers, samples or what is finished have changed since; the report says so."""
    hash_data: bool = False
    """Know the samples by their content however large they are; of few that is done without a word."""
    export: bool = True
    """Make the student deployable, and measure that. It is saved in any case, and what its method makes beside it."""
