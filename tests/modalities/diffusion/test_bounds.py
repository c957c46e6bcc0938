"""Images and schedules that nobody should open: bombs, pipes, sizes that a header makes up."""

from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from xmodal_kd.adapter.images import read, stores
from xmodal_kd.adapter.images.read import Expected, read_images
from xmodal_kd.adapter.images.stores import class_names, parse_labels
from xmodal_kd.modalities.diffusion.models.process import Process
from xmodal_kd.runtime import bounded_arrays
from xmodal_kd.runtime.errors import UserError


def png(side: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (side, side)).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_pipe_among_images(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    os.mkfifo(tmp_path / "b.png")
    with pytest.raises(UserError, match=r"b\.png is a pipe"):
        read_images(tmp_path, "folder", Expected(), who=None)


def test_a_picture_of_too_many_pixels_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(png())
    monkeypatch.setattr(read, "PIXELS", 50)
    with pytest.raises(UserError, match=r"a\.png: 8x8 pixels by its header, more than 50"):
        read_images(tmp_path, "folder", Expected(), who=None)


def test_more_than_the_memory_is_not_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(png())
    monkeypatch.setattr(read, "room", lambda: 10)
    with pytest.raises(UserError, match=r"1 images take .* GiB of memory: make them smaller"):
        read_images(tmp_path, "folder", Expected(), who=None)


def test_a_zip_that_unpacks_to_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.png", png())
        file.writestr("b.png", bytes(5000))
    monkeypatch.setattr(stores, "MOST", 4000)
    with pytest.raises(UserError, match=r"a\.zip: b\.png unpacks to 5,000 bytes"):
        read_images(tmp_path / "a.zip", "edm", Expected(), who=None)
    monkeypatch.setattr(bounded_arrays, "MOST_MEMBERS", 1)
    with pytest.raises(UserError, match=r"a\.zip holds 2 files, more than 1"):
        read_images(tmp_path / "a.zip", "edm", Expected(), who=None)


def test_labels_without_end() -> None:
    for text in (b"[" * 5000, json.dumps({"labels": [[["a"]] * 3]}).encode()):
        with pytest.raises(UserError, match=r"^x"):
            parse_labels(text, "x", ["a"], None)
    names = tuple(map(str, range(50_000)))  # in a moment, not in minutes
    assert class_names([0], names, "x") is names
    with pytest.raises(UserError, match="two classes are called '7'"):
        class_names([0], (*names, "7"), "x")


@pytest.mark.parametrize("steps", [10**12, 1, -5])
def test_timesteps_are_bounded(steps: int) -> None:
    with pytest.raises(UserError, match="timesteps: from 2 to"):
        Process.from_scheduler({"num_train_timesteps": steps, "beta_start": 1e-4, "beta_end": 0.02})
