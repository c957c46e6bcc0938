"""A call of the program that must be refused in one line."""

from __future__ import annotations

import pytest

from xmodal_kd.cli.main import call

Capture = pytest.CaptureFixture[str]


def fails(capfd: Capture, status: int, *arguments: str) -> str:
    """The one line on stderr of a call that must end with `status`."""
    capfd.readouterr()
    assert call(list(arguments)) == status
    captured = capfd.readouterr()
    assert captured.out == ""
    [line] = captured.err.splitlines()
    assert line.startswith("error: ")
    return line
