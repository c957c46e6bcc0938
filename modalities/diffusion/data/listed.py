"""The files that samples are read from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from xmodal_kd.adapter.images.listed import listed_images
from xmodal_kd.adapter.listed import Listed
from xmodal_kd.runtime.errors import UserError

from .config import DiffusionData


def listed(data: DiffusionData) -> Iterator[Listed]:
    """Of a folder and of a zip every sample, of arrays the file; the digits have none."""
    if data.sources == "arrays":
        for path in filter(None, (data.path, data.test_path)):
            yield Listed(path.name, path.expanduser(), _file)
    else:
        yield from listed_images(data, arrays=data.latents)


def _file(path: Path) -> None:
    if path.is_dir():
        raise UserError(f"{path}: a folder, not an .npz")


__all__ = ["listed"]
