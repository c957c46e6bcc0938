"""The files and members that images are read from, and what of one can be seen without decoding it."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from ...runtime.errors import UserError
from ..listed import Listed, Skipped
from ..packed.member import Member
from ..packed.packing import KINDS as PACKED
from ..packed.packing import packing
from .packed import index_of
from .read import CHANNELS, Expected, mode_of, refusal, upright
from .section import ImageSection
from .stores import Folder, Zip, kept_open

#: What an image ends with, by Pillow's name of its format; some programs leave bytes behind it.
ENDS = {"PNG": b"IEND", "JPEG": b"\xff\xd9"}
TAIL = 4096


@dataclass(frozen=True)
class Place:
    """Where the bytes of an image, or of an array, are.

    Attributes:
        part: what of `file` they are; empty where they are all of it.
        where: how messages name them.
        opened: of the file's path.
    """

    key: str
    file: Path
    part: str
    where: str
    opened: Callable[[Path], BinaryIO]


def listed_images(data: ImageSection, *, arrays: bool = False, any_size: bool = False) -> Iterator[Listed]:
    """Of a folder and of a zip every image but for those of ``data.skip``; the digits have none.

    Size and mode of an image are looked at too: they must be the recipe's, or else those of the first training image
    that is sound.

    Args:
        arrays: the members of a zip are arrays in the place of images.
        any_size: they need not be of one size.
    """
    skipped, expected = Skipped.of(data.skip).keys, Expected(data.sides, data.mode)
    for path, beside in ((data.path, False), (data.test_path, True)):
        for place in () if path is None else _places(data, path, beside, arrays):
            if place.key in skipped:
                continue
            if arrays:
                yield Listed(place.key, place.file, partial(_array, place), part=place.part)
                continue
            expected = _settled(expected, place, any_size)
            # what is sound is remembered, and is so for this size and mode
            told = f"{expected.mode} {expected.size}"
            yield Listed(place.key, place.file, partial(_look, place, expected), part=f"{place.part} {told}".strip())


def key_of(path: Path, name: str, beside: bool) -> str:
    """How ``data.skip`` names an image: those of ``data.test_path`` with their folder before it."""
    return f"{path}/{name}" if beside else name


def _places(data: ImageSection, path: Path, beside: bool, arrays: bool) -> Iterator[Place]:
    if (kind := next((one for one in PACKED if one == data.sources), None)) is not None:
        index = index_of(packing(kind, path), arrays=arrays)
        for row, key in enumerate(index.keys):
            member = index.member(row)
            yield Place(key_of(path, key, beside), member.file, member.name, str(member), partial(_within, member))
        return
    place = path.expanduser()
    if not place.exists():  # a line of its own, whatever is asked of it
        yield Place(path.name, place, "", str(place), lambda path: path.open("rb"))
        return
    with Folder(place) if data.sources == "folder" else Zip(place, latents=arrays) as store:
        for name in store.names:
            key = key_of(path, name, beside)
            if data.sources == "folder":
                yield Place(key, place / name, "", store.where(name), lambda path: path.open("rb"))
            else:
                yield Place(key, place, name, store.where(name), partial(_member, name, arrays))


def _within(member: Member, path: Path) -> BinaryIO:
    return io.BytesIO(member.read())


def _member(name: str, arrays: bool, path: Path) -> BinaryIO:
    return io.BytesIO(kept_open(path, latents=arrays).read(name))


def _array(place: Place, path: Path) -> None:
    with place.opened(path):
        pass


def _settled(expected: Expected, place: Place, any_size: bool) -> Expected:
    """What is expected of all images, once the first that is sound has said what the recipe leaves open."""
    if (expected.size or any_size) and expected.mode:
        return expected
    try:
        with place.opened(place.file) as file, Image.open(file) as image:
            mode, (width, height) = mode_of(image), upright(image)
    except Exception:  # whatever a broken file leads to: it is looked at like all others, and another is the first
        return expected
    if mode not in CHANNELS:
        return expected
    size = expected.size or (None if any_size else (height, width))
    return Expected(size, expected.mode or mode, f"as {place.key}")


def _look(place: Place, expected: Expected, path: Path) -> None:
    """Raises `UserError` where Pillow does not know the format, the end is not there, or it is not as `expected`."""
    with place.opened(path) as file:
        try:
            with Image.open(file) as image:
                kind, why = str(image.format), refusal(image, expected)
        except Exception as error:  # Pillow's readers raise whatever a broken file leads them to
            raise UserError(f"{place.where}: not an image that Pillow can read, or a broken one") from error
        if why is not None:
            raise UserError(f"{place.where}: {why}")
        if kind in ENDS:
            size = file.seek(0, io.SEEK_END)
            file.seek(max(0, size - TAIL))
            if ENDS[kind] not in file.read():
                raise UserError(f"{place.where}: a broken image: it is cut, for it has no end")


__all__ = ["key_of", "listed_images"]
