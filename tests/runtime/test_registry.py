"""Registry: duplicates fail, misses offer the nearest names, import paths need permission."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from importlib.metadata import EntryPoint, EntryPoints

import pytest

from xmodal_kd.runtime import registry
from xmodal_kd.runtime.errors import UserError, nearest
from xmodal_kd.runtime.registry import Registry, allowed_imports


@pytest.fixture(autouse=True)
def permissions() -> Iterator[None]:
    before = set(allowed_imports)
    yield
    allowed_imports.clear()
    allowed_imports.update(before)


@pytest.fixture
def table() -> Registry[int]:
    out: Registry[int] = Registry("model")
    out.add("wide", 2)
    out.add("deep", 1)
    return out


def test_lookup_and_order(table: Registry[int]) -> None:
    assert table["deep"] == 1 and list(table) == ["deep", "wide"] and len(table) == 2
    assert "wide" in table and "narrow" not in table


def test_the_decorator_returns_what_it_registers() -> None:
    things: Registry[type] = Registry("things")

    @things.register("a")
    class A: ...

    assert things["a"] is A


def test_a_duplicate_is_refused(table: Registry[int]) -> None:
    with pytest.raises(ValueError, match="model 'deep' is registered twice"):
        table.add("deep", 3)
    assert table["deep"] == 1


def test_a_miss_offers_the_nearest_or_all(table: Registry[int]) -> None:
    with pytest.raises(UserError, match=r"unknown model 'depe' \(nearest: deep"):
        table["depe"]
    with pytest.raises(UserError, match=r"\(known: deep, wide\)"):
        table["xyz"]


def test_an_import_path_needs_permission(table: Registry[int]) -> None:
    with pytest.raises(UserError, match="--allow-import fractions"):
        table["fractions:Fraction"]
    allowed_imports.add("fractions")
    assert table["fractions:Fraction"] is Fraction  # type: ignore[comparison-overlap]


def test_permission_is_of_the_whole_package_name_not_a_prefix(table: Registry[int]) -> None:
    allowed_imports.add("os")
    with pytest.raises(UserError, match="--allow-import ossaudio"):
        table["ossaudio.thing:f"]
    assert table["os.path:join"] is not None


def test_an_allowed_import_that_fails_is_one_line(table: Registry[int]) -> None:
    allowed_imports.update({"fractions", "no_such_package"})
    with pytest.raises(UserError, match="'fractions:Fractoin' cannot be imported"):
        table["fractions:Fractoin"]
    with pytest.raises(UserError, match=r"'no_such_package.x:Y' cannot be imported"):
        table["no_such_package.x:Y"]


def test_entry_points_need_no_permission(table: Registry[int], monkeypatch: pytest.MonkeyPatch) -> None:
    def installed(*, group: str, name: str) -> EntryPoints:
        every = EntryPoints([EntryPoint("theirs", "fractions:Fraction", "xmodal_kd.model")])
        return every.select(group=group, name=name)

    monkeypatch.setattr(registry, "entry_points", installed)
    assert table["theirs"] is Fraction  # type: ignore[comparison-overlap]
    with pytest.raises(UserError, match="unknown model 'their'"):
        table["their"]


def test_nearest_is_empty_without_names() -> None:
    assert nearest("x", []) == ""
