"""What a folder, zip or array file of samples holds: their shape, number and classes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from xmodal_kd.adapter.images.digits import read_digits
from xmodal_kd.adapter.images.read import Images, first_of
from xmodal_kd.adapter.images.stores import DEV as DEV_NAMES
from xmodal_kd.adapter.images.stores import TEST as TEST_NAMES
from xmodal_kd.adapter.images.stores import Folder, Zip
from xmodal_kd.adapter.sketch import Noted
from xmodal_kd.runtime.errors import UserError

from .arrays import read_arrays, read_latents
from .config import FEWEST, DiffusionData

#: Samples split off where there are enough of them, and else which share of all.
DEV, TEST, SHARE = 297, 500, 6
ARRAYS, ZIP = ".npz", ".zip"
HELP = "docs/own_data.md#diffusion-images-or-arrays"


@dataclass(frozen=True)
class Samples:
    """A data set that can be trained on.

    Attributes:
        section: keys of the data section that say where it is and what.
        shape: of a sample.
        count: of those that train, dev and perhaps test are taken from.
        classes: names; None where the samples have no labels.
        own_test: whether test samples lie apart.
        notes: what is odd, a line each.
    """

    section: Mapping[str, Any]
    shape: tuple[int, ...]
    count: int
    classes: tuple[str, ...] | None
    own_test: bool = False
    notes: tuple[str, ...] = field(default=())

    @property
    def train(self) -> int:
        """Samples that are left for training."""
        return self.count - self.dev - (0 if self.own_test else self.test)

    @property
    def dev(self) -> int:
        return min(DEV, max(FEWEST, self.count // SHARE))

    @property
    def test(self) -> int:
        return min(TEST, max(FEWEST, self.count // SHARE))


def samples(path: Path) -> Samples:
    """What `path` holds, which may be the name ``digits``.

    Raises:
        UserError: it is not there, or nothing that is read here, or too little; it says what to do.
    """
    found = _found(path)
    if found.train < FEWEST:
        raise UserError(
            f"--data {path}: {found.count} samples: at least {3 * FEWEST} are needed, for training, dev and test"
        )
    return found


def _found(path: Path) -> Samples:
    place = path.expanduser()
    if not place.exists():
        if str(path) == "digits":
            return _of("digits", None, read_digits(), "the name of the digits that come with scikit-learn")
        raise UserError(f"--data {path}: no such folder: give images, an EDM zip, an .npz, or digits ({HELP})")
    if place.is_file():
        return _file(path, place)
    packed = sorted(file for file in place.iterdir() if file.suffix.lower() in (ZIP, ARRAYS))
    loose = next(_images_of(place), None) is not None
    if loose or not packed:
        return _folder(path)
    test = [file for file in packed if set(re.split(r"[^a-z]+", file.stem.lower())) & {*DEV_NAMES, *TEST_NAMES}]
    train = [file for file in packed if file not in test]
    if len(train) != 1:
        raise UserError(f"--data {path}: it holds {', '.join(file.name for file in packed)}: name one of them")
    found = _file(path / train[0].name, train[0])
    if not test:
        return found
    section = {**found.section, "test_path": Noted(str(path / test[0].name), "found beside it: test samples")}
    return Samples(section, found.shape, found.count, found.classes, own_test=True, notes=found.notes)


def _images_of(place: Path) -> Iterator[str]:
    try:
        yield from Folder(place).names
    except UserError:
        return


def _folder(path: Path) -> Samples:
    data = DiffusionData(sources="folder", path=path)  # which finds train/ and test/
    assert data.path is not None
    with Folder(data.path.expanduser()) as store:
        shape, mode = first_of(store)
        classes, notes = _classes(store)
        count = len(store.names)
        if store.unread:
            notes.append(f"{len(store.unread)} images that Pillow cannot read here are left out, as {store.unread[0]}")
    section: dict[str, Any] = {
        "sources": Noted("folder", f"{count:,} images were found"),
        "path": Noted(str(path), "relative to where the command is called"),
    }
    if data.test_path is not None:
        section["path"] = Noted(str(path), f"its folders are splits: {data.path.name} and {data.test_path.name}")
    section |= _size(shape, mode, store.names[0])
    return Samples(section, shape, count, classes, data.test_path is not None, tuple(notes))


def _file(path: Path, place: Path) -> Samples:
    if place.suffix.lower() == ARRAYS:
        whole = read_arrays(place, conditional=False, latents=True)
        return _of("arrays", path, whole, f"an {ARRAYS} file with an array x of shape {whole.x.shape}")
    if place.suffix.lower() != ZIP:
        raise UserError(f"--data {path}: neither a folder of images, nor a zip, nor an .npz: {HELP}")
    try:
        store = Zip(place)
    except UserError as error:
        if "data.latents" not in str(error):
            raise
        return _of("edm", path, read_latents(place, conditional=False), "a zip of .npy arrays")
    with store:
        shape, mode = first_of(store)
        classes, notes = _classes(store)
    section: dict[str, Any] = {
        "sources": Noted("edm", f"a zip of {len(store.names):,} images"),
        "path": Noted(str(path), "relative to where the command is called"),
        **_size(shape, mode, store.names[0]),
    }
    return Samples(section, shape, len(store.names), classes, notes=tuple(notes))


def _of(sources: str, path: Path | None, whole: Images, why: str) -> Samples:
    """Samples that were read as a whole."""
    section: dict[str, Any] = {"sources": Noted(sources, why)}
    if path is not None:
        section["path"] = Noted(str(path), "relative to where the command is called")
        low, high = float(np.min(whole.x)), float(np.max(whole.x))
        if low < -1 or high > 1 or sources == "edm":
            section["latents"] = Noted(
                True, f"values from {low:.3g} to {high:.3g}: latents are neither scaled nor clamped"
            )
    return Samples(section, whole.shape, len(whole), whole.class_names)


def _size(shape: tuple[int, ...], mode: str, name: str) -> dict[str, Noted]:
    height, width = shape[1:]
    size: Any = height if height == width else [height, width]
    return {
        "size": Noted(size, f"height and width of {name}, which all must have"),
        "mode": Noted(mode, f"of {name}: L is 8-bit grey, RGB 8-bit colour"),
    }


def _classes(store: Folder | Zip) -> tuple[tuple[str, ...] | None, list[str]]:
    """Names of the classes, if there are any, and what is wrong with the labels."""
    try:
        labelling = store.labelling(None)
    except UserError as error:
        return None, [f"the labels are left out, which an unconditional model does not need: {error}"]
    return (None if labelling is None or len(labelling.names) < 2 else labelling.names), []


__all__ = ["Samples", "samples"]
