"""Real recordings and frames for tests: beside the project, or where XMODAL_KD_DATA points."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def shared(name: str) -> Path:
    """The folder `name` of the shared data; the test is skipped, with a reason, where there is none."""
    places = [Path(p) for p in [os.environ.get("XMODAL_KD_DATA")] if p] + [ROOT.parent / "shared/data"]
    folder = next((place / name for place in places if (place / name).is_dir()), None)
    if folder is None:
        pytest.skip(f"no {name} at {' or '.join(map(str, places))}; set XMODAL_KD_DATA to the folder that holds it")
    return folder
