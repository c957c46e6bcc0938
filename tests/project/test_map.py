"""ARCHITECTURE.md, docs/decisions and the faces of packages: short, complete, and about what is there."""

from __future__ import annotations

import ast
import importlib
import re
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from source_files import ADAPTER_FILES, ADAPTERS, CORE, CORE_FILES, ROOT, ids

MAP = (ROOT / "ARCHITECTURE.md").read_text()
DECISIONS = sorted((ROOT / "docs/decisions").glob("[0-9]*.md"))
FACES = [
    path for path in CORE_FILES + ADAPTER_FILES if path.name == "__init__.py" and path.parent not in (CORE, ADAPTERS)
]
#: By package, those it may import: what stands below it in the layers of import-linter, highest first.
LAYERS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]["layers"]


def test_the_map_is_short() -> None:
    assert MAP.count("\n") <= 120
    assert MAP.partition("## Glossary\n\n")[2].count("\n") <= 25


def test_the_map_names_every_package_in_the_order_of_the_layers() -> None:
    table = MAP.partition("## The rooms")[2].partition("**A modality**")[0]
    rows = [set(re.findall(r"`(\w+)`", line.split("|")[1])) for line in table.splitlines() if line.startswith("| `")]
    layers = [set(re.findall(r"\w+", layer)) for layer in reversed(LAYERS)]
    assert rows == [layer for layer in layers if layer != {"__main__"}]
    assert set().union(*rows) == {path.parent.name for path in FACES if path.parent.parent == CORE}


@pytest.mark.parametrize("path", [ROOT / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md", *DECISIONS], ids=ids)
def test_files_that_a_page_names_are_there(path: Path) -> None:
    """Paths in backquotes, below the core, a modality or the root, and links."""
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    named = re.findall(r"`([\w./]+/[\w.]+\.(?:py|md|yaml|toml|txt))`", text)
    roots = (ROOT, CORE, *(folder for folder in ADAPTERS.iterdir() if folder.is_dir()))
    assert not [name for name in named if not any((root / name).exists() for root in roots)]
    links = re.findall(r"\]\((?!http)([^)#]+)", text)
    assert not [link for link in links if not (path.parent / link).exists()]


def test_every_decision_is_in_the_index_and_named_where_it_holds() -> None:
    index = (ROOT / "docs/decisions/README.md").read_text()
    text = "".join(path.read_text() for path in CORE_FILES + ADAPTER_FILES) + (ROOT / "pyproject.toml").read_text()
    assert len(DECISIONS) > 10
    for path in DECISIONS:
        assert f"({path.name})" in index and f"docs/decisions/{path.name}" in text, path.name
    named = set(re.findall(r"docs/decisions/(\d[\w-]*\.md)", text))
    assert named == {path.name for path in DECISIONS}, "a comment names a decision that is not there"


@pytest.mark.parametrize("path", FACES, ids=ids)
def test_a_face_says_what_lives_there_what_it_may_import_and_what_is_public(path: Path) -> None:
    said = " ".join((ast.get_docstring(ast.parse(path.read_text())) or "").split())
    if path.parent.parent.name == "data":
        assert said, "a part of a package: what it is"
        return
    assert "May import" in said or said.count("imports it") == 1
    assert "Public is" in said or "Public are" in said or "is public" in said


def test_public_names_live_where_the_faces_say() -> None:
    package: ModuleType = importlib.import_module("xmodal_kd")
    for home, names in package._HOMES.items():
        face = importlib.import_module(f"xmodal_kd.{home.split('.')[0]}")
        for name in names:
            assert f"`{name}`" in (face.__doc__ or ""), f"{name} is public: say so in {face.__name__}"
