"""The site of the documentation: what its order names exists, and the reference has every package that it lists."""

from __future__ import annotations

import doctest
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """``tools/docs_site.py``, which lays its pages out elsewhere."""
    spec = importlib.util.spec_from_file_location("docs_site", ROOT / "tools/docs_site.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.PAGES = tmp_path_factory.mktemp("site") / "pages"  # type: ignore[attr-defined]
    module.lay_out()
    return module


def named(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    else:
        for part in nav.values() if isinstance(nav, dict) else nav:
            yield from named(part)


def test_the_order_names_pages_that_exist_and_every_page_of_reference(site: ModuleType) -> None:
    pages = list(named(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert not [page for page in pages if not (site.PAGES / page).is_file()]
    assert {page for page in pages if page.startswith("reference/xm")} == {
        f"reference/{package}.md" for package in site.REFERENCE
    }
    assert {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")} <= set(pages), "a page without a way to it"


def test_what_a_page_shows_comes_along(site: ModuleType) -> None:
    assert (site.PAGES / "assets/pictures/quickstart.png").is_file()
    assert (site.PAGES / "xmodal_kd/losses/logits.py").is_file()
    assert "::: xmodal_kd.losses.logits\n" in (site.PAGES / "reference/xmodal_kd.losses.md").read_text()


def test_doctests_read_as_code(site: ModuleType) -> None:
    assert doctest.testmod(site).attempted > 0 == doctest.testmod(site).failed
