"""Reading images of a folder or a zip into memory."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ...runtime.allocation import room
from ...runtime.bounded_files import read_bytes
from ...runtime.errors import UserError
from ...runtime.mapped_words import Words
from ...runtime.progress import bar, console
from .later import Later
from .stores import MOST, Folder, Labelling, Zip, kept_open, one_line

#: Reading fewer images than this is over before one would look.
SHOW_PROGRESS = 5000
#: Bytes of a data set's decoded images that are held in memory.
HELD = 1 << 32
#: Pixels of an image by its header, above which it is not decoded.
PIXELS = 1 << 27
#: Images that an error names one by one.
NAMED = 100
#: Exif's tag of how a camera was held.
ORIENTATION = 0x0112
#: What Pillow's modes are in words; those that models take first.
MODES = {
    "L": "8-bit grey", "RGB": "8-bit colour", "1": "black and white", "P": "palette", "PA": "palette with transparency",
    "LA": "grey with transparency", "RGBA": "colour with transparency", "CMYK": "print colours", "I": "integers",
    "I;16": "16-bit grey", "I;16B": "16-bit grey", "F": "floats",
}  # fmt: skip
CHANNELS = {"L": 1, "RGB": 3}


@dataclass(frozen=True, eq=False)
class Images:
    """The samples of a split.

    Attributes:
        x: ``(n, c, h, w)`` uint8, or ``(n, ...)`` float32 in [-1, 1]; in memory, or read when it is asked for.
        labels: ``(n,)`` int64 class numbers, or None.
        class_names: of the k classes, in order; None exactly where `labels` is.
        keys: the name of each sample.
        skipped: names that ``data.skip`` left out of the files that these come from.
        unread: names of images in a format that this installation of Pillow does not read.
        texts: a caption of each, where they lie beside the images; empty where one has none.
    """

    x: npt.NDArray[Any] | Later
    labels: npt.NDArray[np.int64] | None
    class_names: tuple[str, ...] | None
    keys: Sequence[str]
    skipped: Sequence[str] = ()
    unread: Sequence[str] = ()
    texts: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.x)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return tuple(self.x.shape[1:])

    @property
    def classes(self) -> int | None:
        return None if self.class_names is None else len(self.class_names)

    def tensor(self, indexes: Sequence[int] | npt.NDArray[np.int64] | Tensor | None = None) -> Tensor:
        """Samples `indexes` (all of them if None) as a new float32 tensor ``(b, *shape)`` in [-1, 1]."""
        chosen = self.x[:] if indexes is None else self.x[np.asarray(indexes, dtype=np.int64)]
        x = torch.from_numpy(chosen.astype(np.float32, copy=indexes is None))
        return x.div_(127.5).sub_(1) if self.x.dtype == np.uint8 else x

    def take(self, indexes: Sequence[int] | npt.NDArray[np.int64]) -> Images:
        """A part of them, in the order of `indexes`, with the same classes."""
        chosen = np.asarray(indexes, dtype=np.int64)
        labels = None if self.labels is None else self.labels[chosen]
        texts = None if self.texts is None else _taken(self.texts, chosen)
        return Images(self.x.take(chosen, axis=0), labels, self.class_names, _taken(self.keys, chosen), texts=texts)

    def unlabelled(self) -> Images:
        """The same samples without their classes."""
        return replace(self, labels=None, class_names=None)


def _taken(words: Sequence[str], chosen: npt.NDArray[np.int64]) -> Sequence[str]:
    return words.chosen(chosen) if isinstance(words, Words) else [words[i] for i in chosen.tolist()]


@dataclass(frozen=True)
class Expected:
    """What every image must be; None is decided by the first, which `why` then names."""

    size: tuple[int, int] | None = None
    """Height and width."""
    mode: str | None = None
    why: str = "as the recipe says"


def read_images(
    path: Path, kind: str, expected: Expected, *, who: str | None, classes: tuple[str, ...] | None = None,
    keep: Callable[[Sequence[str]], list[str]] = list,
) -> Images:  # fmt: skip
    """Every image of a folder (`kind` "folder") or of a zip ("edm"), as uint8; labels only where they are right.

    Args:
        who: needs labels, for messages; None where nobody does.
        classes: what classes are called where the source only numbers them.
        keep: those of all names that are read.
    Raises:
        UserError: no images, those that are broken or not as `expected`, and, where somebody needs them, labels that
            are wrong or missing.
    """
    with Folder(path) if kind == "folder" else Zip(path) as store:
        labelling = read_labels(store, classes, needed=who is not None)
        if labelling is None and who is not None:
            raise UserError(store.unlabelled(who))
        store.names = keep(store.names)
        if not store.names:
            raise UserError(f"data.skip: it leaves out every image of {path}")
        x = _decode(store, expected)
        return labelled(x, labelling, store)


def first_of(store: Folder | Zip) -> tuple[tuple[int, int, int], str, str]:
    """``(c, h, w)``, mode and name of the first image of a store that can be used.

    Raises `UserError` for the very first where none of the first `NAMED` can.
    """
    fault = None
    for name in store.names[:NAMED]:
        try:
            pixels, mode = decoded(store.read(name), store.where(name), Expected())
        except UserError as error:
            fault = fault or error
            continue
        return (CHANNELS[mode], *pixels.shape[:2]), mode, name
    assert fault is not None  # a store without images is none
    raise fault


def read_labels(store: Folder | Zip, classes: tuple[str, ...] | None, *, needed: bool) -> Labelling | None:
    """The labels of a store; wrong ones are an error where they are needed, and else left out with a word."""
    try:
        return store.labelling(classes)
    except UserError as error:
        if needed:
            raise
        say_left_out(error)
        return None


def say_left_out(error: UserError) -> None:
    """On the console: what is wrong with labels that nothing needs."""
    text = f"labels are left out, which nothing here needs: {error}"
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def labelled(x: npt.NDArray[Any] | Later, labelling: Labelling | None, store: Folder | Zip) -> Images:
    """Samples in the order of the store's names, with their labels."""
    if labelling is None:
        return Images(x, None, None, store.names, unread=store.unread)
    labels = np.array([labelling.index[name] for name in store.names], dtype=np.int64)
    return Images(x, labels, labelling.names, store.names, unread=store.unread)


def _decode(store: Folder | Zip, expected: Expected) -> npt.NDArray[np.uint8] | Later:
    """``(n, c, h, w)``, c 1 or 3; of more than `HELD` bytes, or than there is room for, read when they are asked for.

    Raises `UserError` that names every image which is broken or unlike the first, of those that are read now.
    """
    count = len(store.names)
    x, faults = np.empty(0, dtype=np.uint8), dict[str, UserError]()
    with bar(f"reading {store.path.name}", count, quiet=count < SHOW_PROGRESS) as progress, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of what it then refuses: one line is enough
        for i, name in enumerate(store.names):
            try:
                pixels, mode = decoded(store.read(name), store.where(name), expected)
            except UserError as fault:
                faults[name] = fault
                continue
            if not x.size:
                height, width = pixels.shape[:2]
                why = expected.why if expected.size and expected.mode else f"as {name}"
                expected = Expected((height, width), mode, why)
                shape = (CHANNELS[mode], height, width)
                if count > 1 and count * math.prod(shape) > min(HELD, room()):
                    return _later(store, expected, shape)
                x = _room((count, *shape), store.path)
            x[i] = pixels.transpose(2, 0, 1) if pixels.ndim == 3 else pixels
            if (i + 1) % 500 == 0 or i + 1 == count:
                progress.update(i + 1, {})
    if faults:
        raise _all(faults, store)
    return x


def _later(store: Folder | Zip, expected: Expected, shape: tuple[int, ...]) -> Later:
    pixels = Pixels(type(store), store.path, tuple(store.names), expected)
    return Later(pixels, np.arange(len(store.names)), shape, np.uint8, pixels.signature)


@dataclass(frozen=True)
class Pixels:
    """The images of a store by number, in whatever process asks."""

    kind: type[Folder] | type[Zip]
    path: Path
    names: tuple[str, ...]
    expected: Expected

    def __call__(self, row: int) -> npt.NDArray[np.uint8]:
        name = self.names[row]
        if self.kind is Folder:
            content, where = read_bytes(self.path / name, MOST), str(self.path / name)
        else:
            store = kept_open(self.path)
            content, where = store.read(name), store.where(name)
        pixels, _ = decoded(content, where, self.expected)
        return pixels.transpose(2, 0, 1) if pixels.ndim == 3 else pixels[None]

    def signature(self) -> bytes:
        """What changes with any image."""
        files = [self.path / name for name in self.names] if self.kind is Folder else [self.path]
        there = ((file.name, file.stat()) for file in files)
        return "".join(f"{name} {seen.st_size} {seen.st_mtime_ns}\n" for name, seen in there).encode()


def read_image(path: Path, expected: Expected) -> npt.NDArray[np.uint8]:
    """``(h, w)`` or ``(h, w, 3)`` of one file. Raises `UserError`: it is broken, or not as `expected`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in `_decode`
        return decoded(read_bytes(path, MOST), str(path), expected)[0]


def open_image(content: bytes, where: str) -> Image.Image:
    """An encoded image, not yet decoded. Raises `UserError` naming it as `where`: unknown, or of too many pixels."""
    try:
        image = Image.open(io.BytesIO(content))
    except Exception as error:  # Pillow's readers raise whatever a broken file leads them to
        raise UserError(f"{where}: {_broken(error)}") from error
    width, height = image.size
    if width * height > PIXELS:
        image.close()
        raise UserError(f"{where}: {width}x{height} pixels by its header, more than {PIXELS:,}")
    return image


def _all(faults: Mapping[str, UserError], store: Folder | Zip) -> UserError:
    """One line for all of them, by what is wrong."""
    if len(faults) == 1:
        return next(iter(faults.values()))
    named: dict[str, list[str]] = {}
    for name, fault in faults.items():
        named.setdefault(str(fault).removeprefix(f"{store.where(name)}: "), []).append(name)
    told = "; ".join(f"{', '.join(names[:NAMED])}{_more(len(names))}: {why}" for why, names in named.items())
    return UserError(
        f"{store.path}: {len(faults)} of {len(store.names)} images cannot be used (data.skip leaves out those that a "
        f"file names): {told}"
    )


def _more(count: int) -> str:
    return f" and {count - NAMED} more" if count > NAMED else ""


def _room(shape: tuple[int, ...], path: Path) -> npt.NDArray[np.uint8]:
    size = math.prod(shape)
    try:
        if size > room():
            raise MemoryError
        return np.empty(shape, dtype=np.uint8)
    except MemoryError as error:
        told = f"{shape[0]} images take {size / 2**30:.0f} GiB of memory"
        raise UserError(f"{path}: {told}: make them smaller") from error


def decoded(content: bytes, where: str, expected: Expected) -> tuple[npt.NDArray[np.uint8], str]:
    """``(h, w)`` or ``(h, w, 3)`` uint8 and the mode of an encoded image. Raises `UserError` naming it as `where`."""
    with open_image(content, where) as image:
        if why := refusal(image, expected):
            raise UserError(f"{where}: {why}")
        try:
            turned = ImageOps.exif_transpose(image) or image
            return np.asarray(turned), str(turned.mode)
        except Exception as error:
            raise UserError(f"{where}: {_broken(error)}") from error


def _broken(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image that Pillow can read, or a broken one"
    return f"a broken image ({one_line(error)})"


def refusal(image: Image.Image, expected: Expected) -> str | None:
    """Why an opened image, not yet decoded, is not as `expected`. To convert it is the user's choice, never ours."""
    mode, (width, height) = mode_of(image), image.size
    if not (width == height and (height, width) == expected.size):  # else it has that size whichever side is up
        width, height = upright(image)  # after the mode: it may decode a PNG
    if expected.size and (height, width) != expected.size:
        return f"{width}x{height} pixels, but {expected.size[1]}x{expected.size[0]} is expected ({expected.why})"
    wanted = [expected.mode] if expected.mode else list(CHANNELS)
    if mode not in wanted:
        name = f"{mode} ({MODES[mode]})" if mode in MODES else mode
        target = " or ".join(f"{mode} ({MODES[mode]})" for mode in wanted)
        because = f" ({expected.why})" if expected.mode else ""
        return f"its mode is {name}, but {target} is expected{because}: convert it first"
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":  # a camera's JPEG with a preview beside it
        return "it is an animation or has several pages: one image is expected"
    return None


def upright(image: Image.Image) -> tuple[int, int]:
    """Width and height as a camera's orientation tag means them to be seen."""
    try:
        turned = image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
    except Exception:  # a damaged tag: Pillow raises what it leads to; the image is decoded next
        turned = False
    return (image.height, image.width) if turned else image.size


def mode_of(image: Image.Image) -> str:
    """Pillow's mode, except where Pillow would narrow 16 bits to 8 or drop a transparent colour without a word."""
    mode = str(image.mode)
    if mode in CHANNELS:
        for tile in image.tile:
            deep = ";16" in str(tile[3]) or (tile[0] == "ppm" and tile[3][1] > 255)
            if deep:
                return f"16-bit {mode}"
        if "transparency" in image.info:
            return f"{mode} with a transparent colour"
    return mode
