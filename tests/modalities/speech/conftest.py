"""Real recordings for the speech tests: beside the project, or where XMODAL_KD_DATA points."""

from __future__ import annotations

from pathlib import Path

import pytest
from shared_data import shared

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def fsdd() -> Path:
    return shared("fsdd")


@pytest.fixture(scope="session")
def kathleen() -> Path:
    return shared("kathleen")


@pytest.fixture(scope="session")
def digits() -> Path:
    """The synthetic digits that come with the project."""
    return ROOT / "assets/digits"
