"""The house's shape: who imports whom, what an import costs, how long a file is, what a wheel holds."""

from __future__ import annotations

import ast
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
CORE, ADAPTERS, RECIPES = ROOT / "xmodal_kd", ROOT / "modalities", ROOT / "recipes"
HEAVY = {"torchaudio", "open3d", "diffusers", "transformers", "xformers"}


def sources(folder: Path) -> Iterator[Path]:
    """Python files below `folder`, not through links (an editable checkout may link its sister packages)."""
    for path in sorted(folder.iterdir()):
        if path.is_symlink() or path.name == "__pycache__":
            continue
        if path.is_dir():
            yield from sources(path)
        elif path.suffix == ".py":
            yield path


CORE_FILES, ADAPTER_FILES = list(sources(CORE)), list(sources(ADAPTERS))


def imports(path: Path, package: str) -> Iterator[tuple[str, bool]]:
    """Absolute names that a file imports, and whether at its top level."""
    tree = ast.parse(path.read_text())
    top = set(tree.body)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node in top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((f"{module}.{alias.name}", node in top) for alias in node.names)


def package_of(path: Path, root: Path, name: str) -> str:
    return ".".join([name, *path.relative_to(root).parent.parts])


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", CORE_FILES, ids=ids)
def test_the_core_reaches_adapters_only_by_name(path: Path) -> None:
    for name, _ in imports(path, package_of(path, CORE, "xmodal_kd")):
        package = name.split(".")[0]
        assert package not in HEAVY | {"modalities"}, f"{name} belongs into an adapter"
        assert not name.startswith(("xmodal_kd.modalities", "xmodal_kd.recipes")), "rooms.py finds them by folder"


@pytest.mark.parametrize("path", ADAPTER_FILES, ids=ids)
def test_a_modality_imports_the_core_and_itself_but_no_other_modality(path: Path) -> None:
    package = package_of(path, ADAPTERS, "xmodal_kd.modalities")
    own = ".".join(package.split(".")[:3])
    for name, _ in imports(path, package):
        assert name.split(".")[0] != "modalities"
        if name.startswith("xmodal_kd.modalities."):
            assert f"{name}.".startswith(f"{own}."), f"{name} is another modality"


def test_this_very_check_sees_what_it_forbids(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text("from ..modalities.speech import a\nimport torchaudio\nfrom . import modalities\n")
    found = dict(imports(tmp_path / "x.py", "xmodal_kd.losses"))
    assert found.keys() == {"xmodal_kd.modalities.speech.a", "torchaudio", "xmodal_kd.losses.modalities"}


def test_importing_the_core_imports_nothing_heavy() -> None:
    code = (
        "import sys, xmodal_kd.cli; light = set(sys.modules);"
        "import xmodal_kd.recipe, xmodal_kd.objective, xmodal_kd.method, xmodal_kd.catalogue;"
        "import xmodal_kd.rooms as r; [r.modality(n) for n in r.modality_names()];"
        f"heavy = {HEAVY!r};"
        "print(sorted(heavy & set(sys.modules)), 'torch' in light)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[] False", (
        "nor does the program import torch before a command runs: --help and Tab are quick"
    )


@pytest.mark.parametrize("path", CORE_FILES + ADAPTER_FILES, ids=ids)
def test_a_file_has_a_docstring_and_at_most_400_lines(path: Path) -> None:
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text)), "say what the module is"
    assert text.count("\n") <= 400, "split it"


def test_the_package_list_equals_the_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new modality edits no list, and no folder is forgotten for want of an ``__init__.py``."""
    given: dict[str, Any] = {}
    monkeypatch.setattr("setuptools.setup", lambda **kwargs: given.update(kwargs))
    monkeypatch.chdir(ROOT)
    runpy.run_path(str(ROOT / "setup.py"))
    roots = ((CORE, "xmodal_kd"), (ADAPTERS, "xmodal_kd.modalities"), (RECIPES, "xmodal_kd.recipes"))
    folders = {package_of(path, folder, name) for folder, name in roots for path in sources(folder)}
    folders |= {package_of(path, RECIPES, "xmodal_kd.recipes") for path in RECIPES.rglob("*.yaml")}
    assert set(given["packages"]) == folders
    assert not {name.split(".")[0] for name in given["packages"]} - {"xmodal_kd"}, "tests and assets are not shipped"
