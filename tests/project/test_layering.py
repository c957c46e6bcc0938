"""The house's shape: what an import costs, how long a file is, what a wheel holds. Layers: `make lint`."""

from __future__ import annotations

import ast
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from source_files import ADAPTER_FILES, ADAPTERS, CORE, CORE_FILES, RECIPES, ROOT, ids, sources

HEAVY = {"torchaudio", "open3d", "diffusers", "transformers", "xformers"}


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


@pytest.mark.parametrize("path", CORE_FILES, ids=ids)
def test_the_core_imports_nothing_heavy_and_no_modality(path: Path) -> None:
    """The layers are import-linter's affair (`make lint`); it does not see where an installed name leads."""
    for name, _ in imports(path, package_of(path, CORE, "xmodal_kd")):
        assert name.split(".")[0] not in HEAVY | {"modalities"}, f"{name} belongs into an adapter"
        assert not name.startswith(("xmodal_kd.modalities", "xmodal_kd.recipes")), "discovery.py finds them by folder"


@pytest.mark.parametrize("path", ADAPTER_FILES, ids=ids)
def test_a_modality_names_itself_relatively(path: Path) -> None:
    """So that import-linter sees what it imports of itself and of other modalities."""
    package = package_of(path, ADAPTERS, "xmodal_kd.modalities")
    own = ".".join(package.split(".")[:3])
    tree = ast.parse(path.read_text())
    written = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level]
    assert not [name for name in written if name.startswith(("xmodal_kd.modalities", "modalities"))]
    for name, _ in imports(path, package):
        assert not name.startswith("xmodal_kd.modalities.") or f"{name}.".startswith(f"{own}."), "another modality"


def test_this_very_check_sees_what_it_forbids(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text("from ..modalities.speech import a\nimport torchaudio\nfrom . import modalities\n")
    found = dict(imports(tmp_path / "x.py", "xmodal_kd.losses"))
    assert found.keys() == {"xmodal_kd.modalities.speech.a", "torchaudio", "xmodal_kd.losses.modalities"}


def test_importing_the_core_imports_nothing_heavy() -> None:
    code = (
        "import sys, xmodal_kd.cli.main; light = set(sys.modules);"
        "import xmodal_kd.recipe.recipe, xmodal_kd.objective.objective, xmodal_kd.training.method;"
        "import xmodal_kd.cli.catalogue;"
        "import xmodal_kd.runtime.discovery as r; [r.modality(n) for n in r.modality_names()];"
        f"heavy = {HEAVY!r};"
        "print(sorted(heavy & set(sys.modules)), 'torch' in light)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[] False", (
        "nor does the program import torch before a command runs: --help and Tab are quick"
    )


@pytest.mark.parametrize("path", CORE_FILES + ADAPTER_FILES + list(sources(ROOT / "tests")), ids=ids)
def test_a_file_has_a_docstring_and_at_most_400_lines(path: Path) -> None:
    text = path.read_text()
    assert ROOT / "tests" in path.parents or ast.get_docstring(ast.parse(text)), "say what the module is"
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
