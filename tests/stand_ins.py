"""Packages made up for a test: a module, and the metadata that say which version is installed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

#: Writes a package of that project, version, source of ``__init__.py`` (None: metadata alone) and requirements.
Install = Callable[..., Path]


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Stand-ins are found before what is installed, here and in the processes that are started from here."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    before = dict(sys.modules)

    def install(
        project: str,
        version: str,
        source: str | None = None,
        *,
        requires: tuple[str, ...] = (),
    ) -> Path:
        info = tmp_path / f"{project.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        needs = "".join(f"Requires-Dist: {line}\n" for line in requires)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project}\nVersion: {version}\n{needs}")
        if source is not None:
            (tmp_path / project).mkdir()
            (tmp_path / project / "__init__.py").write_text(source)
            for name in [name for name in sys.modules if name.partition(".")[0] == project]:
                monkeypatch.delitem(sys.modules, name)
        return tmp_path

    yield install
    for name in sys.modules.keys() - before.keys():
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]
