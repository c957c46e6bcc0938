"""Clouds whose headers promise what is not there: one line, before anything is made of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image
from torture.received import CLOUDS

from xmodal_kd.modalities.points.data.files import read_points
from xmodal_kd.modalities.points.data.readers import base
from xmodal_kd.runtime.errors import UserError

#: Odd, but points all the same.
FINE = ("bin same",)


@pytest.mark.parametrize("name", sorted(CLOUDS))
def test_a_header_is_believed_only_as_far_as_the_file_goes(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{name.partition(' ')[0]}"
    path.write_bytes(CLOUDS[name])
    if name in FINE or name == "bin far":
        assert len(read_points(path).xyz) == 40
        return
    with pytest.raises(UserError, match="a\\.") as refused:
        read_points(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("suffix", [".ply", ".pcd", ".npz", ".bin"])
def test_a_pipe_is_no_cloud(suffix: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / f"a{suffix}")
    with pytest.raises(UserError, match=r"no such file|not a file"):
        read_points(tmp_path / f"a{suffix}")


def test_a_photograph_is_as_large_as_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    assert base.read_rgb(tmp_path / "a.png").shape == (20, 30, 3)
    monkeypatch.setattr(base, "PIXELS", 500)
    with pytest.raises(UserError, match=r"30x20 pixels by its header, more than 500"):
        base.read_rgb(tmp_path / "a.png")
