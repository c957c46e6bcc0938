"""The files and members that images are read from, and what of one can be seen without decoding it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from PIL import Image

from ...runtime.errors import UserError
from ..listed import Listed
from ..packed.member import Member
from ..packed.packing import KINDS as PACKED
from ..packed.packing import packing
from .packed import index_of
from .section import ImageSection
from .stores import Folder, Zip

#: What an image ends with, by Pillow's name of its format; some programs leave bytes behind it.
ENDS = {"PNG": b"IEND", "JPEG": b"\xff\xd9"}
TAIL = 4096


def listed_images(data: ImageSection, *, arrays: bool = False) -> Iterator[Listed]:
    """Of a folder and of a zip every image; the digits have none.

    Args:
        arrays: the members of a zip are arrays in the place of images.
    """
    for path, beside in ((data.path, False), (data.test_path, True)):
        if path is not None:
            yield from _of(data, path, beside, arrays)


def key_of(path: Path, name: str, beside: bool) -> str:
    """How ``data.skip`` names an image: those of ``data.test_path`` with their folder before it."""
    return f"{path}/{name}" if beside else name


def _of(data: ImageSection, path: Path, beside: bool, arrays: bool) -> Iterator[Listed]:
    if (kind := next((one for one in PACKED if one == data.sources), None)) is not None:
        index = index_of(packing(kind, path), arrays=arrays)
        for row, key in enumerate(index.keys):
            member = index.member(row)
            look = partial(_within, member, arrays)
            yield Listed(key_of(path, key, beside), member.file, look, part=member.name)
        return
    place = path.expanduser()
    if not place.exists():
        yield Listed(path.name, place, _nothing)
        return
    with Folder(place) if data.sources == "folder" else Zip(place, latents=arrays) as store:
        for name in store.names:
            key = key_of(path, name, beside)
            if data.sources == "folder":
                yield Listed(key, place / name, _file)
            else:
                yield Listed(key, place, partial(_latent if arrays else _member, name), part=name)


def _nothing(path: Path) -> None:
    """Nothing is there to look at: that is said elsewhere."""


def _file(path: Path) -> None:
    with path.open("rb") as file:
        _image(file, path.stat().st_size, str(path))


def _member(name: str, path: Path) -> None:
    with Zip(path) as store:
        content = store.read(name)
        _image(io.BytesIO(content), len(content), store.where(name))


def _within(member: Member, array: bool, path: Path) -> None:
    content = member.read()
    if not array:
        _image(io.BytesIO(content), len(content), str(member))


def _latent(name: str, path: Path) -> None:
    with Zip(path, latents=True) as store:
        store.read(name)


def _image(file: io.BufferedIOBase, size: int, where: str) -> None:
    """Raises `UserError` where Pillow does not know the format, or the end is not there."""
    try:
        with Image.open(file) as image:
            kind = str(image.format)
    except Exception as error:  # Pillow's readers raise whatever a broken file leads them to
        raise UserError(f"{where}: not an image that Pillow can read, or a broken one") from error
    if kind in ENDS:
        file.seek(max(0, size - TAIL))
        if ENDS[kind] not in file.read():
            raise UserError(f"{where}: a broken image: it is cut, for it has no end")


__all__ = ["key_of", "listed_images"]
