"""Reading samples into memory: images of a folder or a zip, scikit-learn's digits."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor

from xmodal_kd.runtime.allocation import room
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.progress import bar

from .stores import Folder, Zip, one_line

#: Reading fewer images than this is over before one would look.
SHOW_PROGRESS = 5000
#: Pixels of an image by its header, above which it is not decoded.
PIXELS = 1 << 27
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
        x: ``(n, c, h, w)`` uint8, or ``(n, ...)`` float32 in [-1, 1].
        labels: ``(n,)`` int64 class numbers, or None.
        class_names: of the k classes, in order; None exactly where `labels` is.
        keys: the name of each sample.
        skipped: names that ``data.skip`` left out of the files that these come from.
    """

    x: npt.NDArray[Any]
    labels: npt.NDArray[np.int64] | None
    class_names: tuple[str, ...] | None
    keys: Sequence[str]
    skipped: Sequence[str] = ()

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
        chosen = self.x if indexes is None else self.x[np.asarray(indexes, dtype=np.int64)]
        x = torch.from_numpy(chosen.astype(np.float32, copy=indexes is None))
        return x.div_(127.5).sub_(1) if self.x.dtype == np.uint8 else x

    def take(self, indexes: Sequence[int]) -> Images:
        """A part of them, in the order of `indexes`, with the same classes."""
        chosen = np.asarray(indexes, dtype=np.int64)
        labels = None if self.labels is None else self.labels[chosen]
        return Images(self.x[chosen], labels, self.class_names, [self.keys[i] for i in indexes])

    def unlabelled(self) -> Images:
        """The same samples without their classes."""
        return Images(self.x, None, None, self.keys, self.skipped)


@dataclass(frozen=True)
class Expected:
    """What every image must be; None is decided by the first, which `why` then names."""

    size: int | None = None
    mode: str | None = None
    why: str = "as the recipe says"


def read_digits() -> Images:
    """scikit-learn's 1797 digits of 8x8: 17 grey levels 0 to 16, mapped exactly onto [-1, 1]."""
    found = load_digits()
    x = (found.images / 8 - 1).astype(np.float32)[:, None]
    keys = [f"digit{i:04d}" for i in range(len(x))]
    return Images(x, found.target.astype(np.int64), tuple(map(str, range(10))), keys)


def read_images(
    path: Path, kind: str, expected: Expected, *, conditional: bool, classes: tuple[str, ...] | None = None,
    keep: Callable[[Sequence[str]], list[str]] = list,
) -> Images:  # fmt: skip
    """Every image of a folder (`kind` "folder") or of a zip ("edm"), as uint8.

    Args:
        classes: what classes are called where the source only numbers them.
        keep: those of all names that are read.
    Raises:
        UserError: no images, one that is broken or not as `expected`, labels that are wrong, or, if `conditional`,
            missing.
    """
    with Folder(path) if kind == "folder" else Zip(path) as store:
        labelling = store.labelling(classes)
        if labelling is None and conditional:
            raise UserError(store.unlabelled())
        store.names = keep(store.names)
        if not store.names:
            raise UserError(f"data.skip: it leaves out every image of {path}")
        x = _decode(store, expected)
        if labelling is None:
            return Images(x, None, None, store.names)
        labels = np.array([labelling.index[name] for name in store.names], dtype=np.int64)
        return Images(x, labels, labelling.names, store.names)


def _decode(store: Folder | Zip, expected: Expected) -> npt.NDArray[np.uint8]:
    """``(n, c, h, w)``, c 1 or 3."""
    count = len(store.names)
    x = np.empty(0, dtype=np.uint8)
    with bar(f"reading {store.path.name}", count, quiet=count < SHOW_PROGRESS) as progress, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of what it then refuses: one line is enough
        for i, name in enumerate(store.names):
            pixels, mode = _pixels(store.read(name), store.where(name), expected)
            if i == 0:
                size = pixels.shape[0]
                why = expected.why if expected.size and expected.mode else f"as {name}"
                expected = Expected(size, mode, why)
                x = _room((count, CHANNELS[mode], size, size), store.path)
            x[i] = pixels.transpose(2, 0, 1) if pixels.ndim == 3 else pixels
            if (i + 1) % 500 == 0 or i + 1 == count:
                progress.update(i + 1, {})
    return x


def _room(shape: tuple[int, ...], path: Path) -> npt.NDArray[np.uint8]:
    size = math.prod(shape)
    try:
        if size > room():
            raise MemoryError
        return np.empty(shape, dtype=np.uint8)
    except MemoryError as error:
        told = f"{shape[0]} images take {size / 2**30:.0f} GiB of memory"
        raise UserError(f"{path}: {told}: make them smaller") from error


def _pixels(content: bytes, where: str, expected: Expected) -> tuple[npt.NDArray[np.uint8], str]:
    """``(h, w)`` or ``(h, w, 3)`` uint8 and the mode of an encoded image. Raises `UserError` naming it as `where`."""
    try:
        image = Image.open(io.BytesIO(content))
    except Exception as error:  # Pillow's readers raise whatever a broken file leads them to
        raise UserError(f"{where}: {_broken(error)}") from error
    with image:
        if refusal := _refusal(image, expected):
            raise UserError(f"{where}: {refusal}")
        try:
            return np.asarray(image), str(image.mode)
        except Exception as error:
            raise UserError(f"{where}: {_broken(error)}") from error


def _broken(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image that Pillow can read, or a broken one"
    return f"a broken image ({one_line(error)})"


def _refusal(image: Image.Image, expected: Expected) -> str | None:
    """Why an opened image, not yet decoded, is not as `expected`. To convert it is the user's choice, never ours."""
    width, height = image.size
    if width * height > PIXELS:
        return f"{width}x{height} pixels by its header, more than {PIXELS:,}"
    if width != height:
        return f"{width}x{height} pixels: images must be square: crop or pad them first"
    if expected.size and width != expected.size:
        return f"{width}x{height} pixels, but {expected.size}x{expected.size} is expected ({expected.why})"
    mode = _mode(image)
    wanted = [expected.mode] if expected.mode else list(CHANNELS)
    if mode not in wanted:
        name = f"{mode} ({MODES[mode]})" if mode in MODES else mode
        target = " or ".join(f"{mode} ({MODES[mode]})" for mode in wanted)
        because = f" ({expected.why})" if expected.mode else ""
        return f"its mode is {name}, but {target} is expected{because}: convert it first"
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":  # a camera's JPEG with a preview beside it
        return "it is an animation or has several pages: one image is expected"
    return None


def _mode(image: Image.Image) -> str:
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
