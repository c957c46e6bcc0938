"""Files of unknown origin: pipes, devices, bombs and depths end in one line, before anything is made of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from xmodal_kd.recipe.recipe import Train
from xmodal_kd.runtime.bounded_files import DEEPEST, check_depth, inside, parse_json, read_bytes, read_text, regular
from xmodal_kd.runtime.checkpoint import read_json, read_tensors
from xmodal_kd.runtime.errors import UserError


@pytest.mark.parametrize("read", [read_json, read_tensors, read_text, regular])
@pytest.mark.parametrize(
    ("kind", "told"),
    [("pipe", "a pipe, a socket or a device"), ("device", "a pipe, a socket or a device"), ("folder", "a folder"),
     ("loop", "cannot be read"), ("nothing", "is missing")],
)  # fmt: skip
def test_what_is_no_file(read: object, kind: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind in ("device", "loop"):
        path.symlink_to("/dev/zero" if kind == "device" else "x")
    assert callable(read)
    with pytest.raises(UserError, match=f"x .*{told}|x {told}"):
        read(path)


def test_sizes_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    assert read_bytes(path, 5) == b"12345"
    with pytest.raises(UserError, match="x has 5 bytes, more than the 4"):
        read_bytes(path, 4)
    path.write_bytes(b"ab\xff")
    with pytest.raises(UserError, match="x cannot be read: not a text in UTF-8: byte 2 is 0xff"):
        read_text(path)


@pytest.mark.parametrize("text", ["[" * 100_000, "[" * 500 + "]" * 500, '{"a": ' * 200 + "1" + "}" * 200])
def test_depth_is_bounded(text: str) -> None:
    with pytest.raises(UserError, match=r"x is (nested too deeply|not JSON)"):
        parse_json(text, "x")


def test_depth_that_is_fine() -> None:
    found = parse_json("[" * DEEPEST + "]" * DEEPEST, "x")
    check_depth([found[0], {"a": [1, {"b": []}]}, "text"], "x")


@pytest.mark.parametrize("text", ["", "{", "\x00", "1" * 5000, b"\xff\xfe\x00"])
def test_what_is_no_json(text: str | bytes) -> None:
    with pytest.raises(UserError, match="x is not JSON: "):
        parse_json(text, "x")


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "link", "loop", "a\x00b", "folder", "nothing"])
def test_what_lies_elsewhere_is_not_read(name: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("")
    run = tmp_path / "run"
    (run / "folder").mkdir(parents=True)
    (run / "link").symlink_to(tmp_path / "secret")
    (run / "loop").symlink_to("loop")
    (run / "mine").write_text("")
    assert inside(run, name) is None
    assert inside(run, "folder/../mine") == (run / "mine").resolve()


@pytest.mark.parametrize("value", [10**30, -(10**30), 1e300])
def test_numbers_that_no_computer_counts_to(value: float) -> None:
    with pytest.raises(ValueError, match="a number up to 9e"):
        Train.model_validate({"steps": 1, "optimizer": {"lr": value}} if value > 0 else {"steps": value})


@pytest.mark.parametrize("value", ["a\x00b", "a\ud800b", "x" * 30_000])
def test_texts_that_none_are(value: str) -> None:
    with pytest.raises(ValueError, match="a text "):
        Train.model_validate({"steps": 1, "precision": value})
