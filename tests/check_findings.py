"""Findings of check on a recipe, and those that are wrong."""

from __future__ import annotations

from pathlib import Path

from xmodal_kd.check import Finding, check
from xmodal_kd.recipe.recipe import load


def findings(recipe: Path, *sets: str, gate: bool = False) -> list[Finding]:
    return check(load(str(recipe), sets), "cpu", gate)


def wrong(found: list[Finding]) -> list[str]:
    """Everything that is not a pass."""
    return [f"{f.status} {f.check}: {f.found}" for f in found if f.status != "pass"]
