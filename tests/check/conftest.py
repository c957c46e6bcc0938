"""What checks of toy runs share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import toy

from xmodal_kd.runtime.registry import allowed_imports


@pytest.fixture(autouse=True)
def allowed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("xmodal_kd.runtime.registry.allowed_imports", allowed_imports | {"toy"})
    yield


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "toy.yaml"
    path.write_text(toy.RECIPE)
    return path
