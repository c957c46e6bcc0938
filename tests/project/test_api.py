"""The public API: every name is there, typed where it is said to be, and nothing is imported before it is asked for."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import xmodal_kd


@pytest.mark.parametrize("name", xmodal_kd.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(xmodal_kd, name) is getattr(xmodal_kd, name)
    assert name in dir(xmodal_kd)


def test_what_type_checkers_see_is_what_there_is() -> None:
    block = next(n for n in ast.parse(Path(xmodal_kd.__file__).read_text()).body if isinstance(n, ast.If))
    seen = {n.module: tuple(a.name for a in n.names) for n in block.body if isinstance(n, ast.ImportFrom)}
    assert seen == xmodal_kd._HOMES
    public = {"__version__", *(name for names in seen.values() for name in names)}
    assert sorted(public) == sorted(xmodal_kd.__all__)


def test_the_rest_is_refused_and_submodules_stay_modules() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Objektive'"):
        _ = xmodal_kd.Objektive
    from xmodal_kd.signals import capture

    assert callable(capture.capture), "the module, not the function of its name"
    assert "Stability" in (xmodal_kd.__doc__ or "")
