"""A finished run of the smoke recipe, made smaller, and a small graph."""

from __future__ import annotations

from pathlib import Path

import pytest
from graphs_small import DATA, run
from once import once

from xmodal_kd.modalities.graphs.data.section import GraphsData


@pytest.fixture(scope="session")
def data() -> GraphsData:
    return GraphsData.model_validate(DATA)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(out: Path) -> None:
        assert run(out) == 0

    return once(tmp_path_factory, "graphs", make)
