"""What comparisons of toy runs share."""

from __future__ import annotations

from pathlib import Path

import pytest
from toy import RECIPE

from xmodal_kd.compare import cells as cells_module
from xmodal_kd.runtime.registry import allowed_imports


@pytest.fixture
def toy_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xmodal_kd.runtime.registry.allowed_imports", allowed_imports | {"toy"})
    monkeypatch.setattr(cells_module, "POLL", 0.0)


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    (tmp_path / "toy.yaml").write_text(RECIPE)
    return str(tmp_path / "toy.yaml")
