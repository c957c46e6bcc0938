"""Images of any size, in memory where there is room, else read when they are asked for."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8
from sklearn.datasets import load_sample_images

from xmodal_kd.adapter.images.digits import read_digits
from xmodal_kd.adapter.images.listed import key_of
from xmodal_kd.adapter.images.read import (
    CHANNELS,
    HELD,
    NAMED,
    Expected,
    Pixels,
    first_of,
    open_image,
    refusal,
    upright,
)
from xmodal_kd.adapter.images.section import SPLITS, TEST, Split
from xmodal_kd.adapter.images.splits import cut, settled, tested
from xmodal_kd.adapter.images.stores import Folder, Zip
from xmodal_kd.adapter.listed import Skipped, named
from xmodal_kd.runtime.allocation import room
from xmodal_kd.runtime.errors import UserError, nearest
from xmodal_kd.runtime.progress import bar

from ..restoration_section import PHOTO
from ..source import DECISIVE, ImagesData

#: Reading fewer images than this is over before one would look.
SHOW_PROGRESS = 200


@dataclass(frozen=True, eq=False)
class Pictures:
    """The images of a split.

    Attributes:
        pixels: ``(c, h, w)`` uint8 of an image by its number.
        numbers: of those that are of the split.
        keys: the name of each.
        sizes: height and width of each.
        skipped: names that ``data.skip`` left out.
        unread: names of images in a format that this installation of Pillow does not read.
    """

    pixels: Callable[[int], UInt8[np.ndarray, "c h w"]]
    numbers: Int[np.ndarray, " n"]
    keys: Sequence[str]
    sizes: Int[np.ndarray, "n 2"]
    channels: int
    skipped: Sequence[str] = ()
    unread: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "c h w"]:
        return self.pixels(int(self.numbers[index]))

    def take(self, chosen: Int[np.ndarray, " m"]) -> Pictures:
        """A part of them, of which nothing was left out."""
        keys = [self.keys[i] for i in chosen.tolist()]
        return Pictures(self.pixels, self.numbers[chosen], keys, self.sizes[chosen], self.channels)


def load_pictures(config: ImagesData, split: str) -> Pictures:
    """The images of ``train``, ``dev`` or ``test``; looked at once in a process: leave the arrays as they are.

    Raises:
        UserError: broken images, those of other colours than the first or smaller than a training crop; splits that
            leave nothing.
    """
    if split not in SPLITS:
        raise UserError(f"no split {split!r}{nearest(split, SPLITS)}")
    return _splits(settled(config, (*DECISIVE, "task", "restoration")))[split]


@lru_cache(maxsize=4)
def _splits(config: ImagesData) -> dict[Split, Pictures]:
    whole, sizes = _read(config, config.path, config.mode), [config.dev]
    if config.test_path is None:
        sizes.insert(0, config.test or TEST)
    parts = [whole.take(part) for part in cut(len(whole), sizes)]
    if not len(parts[-1]):
        raise UserError(
            f"data: {config.path or config.sources} has {len(whole)} images, of which dev and test take {sum(sizes)}: "
            "none are left for training: set data.dev and data.test lower"
        )
    if config.test_path is not None:
        mode = next(mode for mode, count in CHANNELS.items() if count == whole.channels)
        test = _read(config, config.test_path, mode)
        some = test.take(tested(config, config.test_path, len(test)))
        parts.insert(0, replace(some, skipped=test.skipped, unread=test.unread))
    train = replace(parts[2], skipped=whole.skipped, unread=whole.unread)
    return {"train": train, "dev": parts[1], "test": parts[0]}


def _read(config: ImagesData, path: Path | None, mode: str | None) -> Pictures:
    """All images of a path, or those that come with scikit-learn."""
    if path is None:
        return _held(*(_digits() if config.sources == "digits" else _tiles(config.sides or (PHOTO, PHOTO))))
    if not path.exists():
        raise UserError(f"data.{'path' if path == config.path else 'test_path'}: {path} does not exist")
    least, skipped = config.restoration.side(config.sources), Skipped.of(config.skip)
    faults, sizes = dict[str, str](), dict[str, tuple[int, int]]()
    with Folder(path) if config.sources == "folder" else Zip(path) as store, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of what it then refuses: one line is enough
        found = skipped.keep(store.names, partial(key_of, path, beside=path != config.path))
        if not found:
            raise UserError(f"data.skip: it leaves out every image of {path}")
        store.names = found
        expected = Expected(None, mode)
        if mode is None:
            _, mode, first = first_of(store)
            expected = Expected(None, mode, f"as {first}")
        for name in found:
            try:
                with open_image(store.read(name), store.where(name)) as image:
                    why, (width, height) = refusal(image, expected), upright(image)
            except UserError as error:
                faults[name] = str(error)
                continue
            if why is None and min(width, height) < least:
                why = f"{width}x{height} pixels are less than a training crop of {least}: set data.restoration.crop"
            if why is not None:
                faults[name] = f"{store.where(name)}: {why}"
            sizes[name] = height, width
        if faults:
            more = f"; and of {len(faults) - 1} others: {named([*faults][1:], NAMED)}" if len(faults) > 1 else ""
            raise UserError(f"{next(iter(faults.values()))}{more} (data.skip leaves out those that a file names)")
        pixels = Pixels(type(store), path, tuple(found), expected)
    channels, table = CHANNELS[mode], np.array([sizes[name] for name in found])
    if channels * table.prod(axis=1).sum() <= min(HELD, room() // 2):
        images = list[np.ndarray]()
        with bar(f"reading {path.name}", len(found), quiet=len(found) < SHOW_PROGRESS) as progress:
            for i in range(len(found)):
                images.append(pixels(i))
                progress.update(i + 1, {})
        return _held(images, found, skipped.found, store.unread)
    return Pictures(pixels, np.arange(len(found)), found, table, channels, skipped.found, store.unread)


def _held(
    images: Sequence[np.ndarray], keys: Sequence[str], skipped: Sequence[str] = (), unread: Sequence[str] = ()
) -> Pictures:
    sizes = np.array([image.shape[1:] for image in images])
    return Pictures(images.__getitem__, np.arange(len(images)), keys, sizes, len(images[0]), skipped, unread)


def _digits() -> tuple[list[np.ndarray], Sequence[str]]:
    digits = read_digits()
    return list(np.rint((digits.tensor().numpy() + 1) * 127.5).astype(np.uint8)), digits.keys


def _tiles(sides: tuple[int, int]) -> tuple[list[np.ndarray], Sequence[str]]:
    """The two photographs that come with scikit-learn, cut into tiles of these sides that do not meet."""
    found, (height, width) = load_sample_images(), sides
    tiles, keys = list[np.ndarray](), list[str]()
    for name, photo in zip(found.filenames, found.images, strict=True):
        for top in range(0, photo.shape[0] - height + 1, height):
            for left in range(0, photo.shape[1] - width + 1, width):
                tiles.append(np.ascontiguousarray(photo[top : top + height, left : left + width].transpose(2, 0, 1)))
                keys.append(f"{Path(name).stem}-{top}-{left}")
    if not tiles:
        raise UserError(f"data.size: {height}x{width} is more than the photos have: give at most 427x640")
    return tiles, keys


__all__ = ["Pictures", "load_pictures"]
