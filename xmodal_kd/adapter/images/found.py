"""What a folder or zip of images holds, for a recipe of it: shape, number, classes and splits of its samples."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...runtime.errors import UserError
from ..packed.packing import Kind, kind_at, packing
from ..packed.tables import split_tables
from ..sketch import Noted
from .digits import read_digits
from .packed import index_of
from .read import CHANNELS, Expected, Images, decoded, first_of
from .section import apart
from .stores import DEV as DEV_NAMES
from .stores import TEST as TEST_NAMES
from .stores import Folder, Zip, split_folders

#: Samples split off where there are enough of them, and else which share of all, but so many of each at least.
DEV, TEST, SHARE, FEWEST = 297, 500, 6, 6
HERE = "relative to where the command is called"


@dataclass(frozen=True)
class Found:
    """Samples that can be trained on.

    Attributes:
        section: keys of the data section that say where they are and what.
        shape: of a sample.
        count: of those that train, dev and perhaps test are taken from.
        classes: names; None where the samples have no labels.
        own_test: whether test samples lie apart.
        notes: what is odd, a line each.
        captions: whether captions lie packed beside all of them.
    """

    section: Mapping[str, Any]
    shape: tuple[int, ...]
    count: int
    classes: tuple[str, ...] | None
    own_test: bool = False
    notes: tuple[str, ...] = field(default=())
    captions: bool = False

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

    @property
    def splits(self) -> dict[str, Any]:
        """The keys of the data section that split dev and test samples off."""
        why = f"samples split off, of {self.count:,}"
        if self.own_test:
            return {"dev": Noted(self.dev, why)}
        return {"dev": Noted(self.dev, f"{why}; of test also"), "test": self.test}


#: What reads a packed file: from its path as it was given, and where that leads.
Reader = Callable[[Path, Path], Found]


def found(path: Path, readers: Mapping[str, Reader], *, who: str | None, what: str) -> Found:
    """What `path` holds, which may be the name ``digits``.

    Args:
        readers: of packed files, by their suffix.
        who: needs labels, for messages; None where nobody does: then wrong ones are left out with a note.
        what: is looked for, with the page that says more.

    Raises:
        UserError: it is not there, or nothing that is read here, or too little; it says what to do.
    """
    one = _found(path, readers, who, what)
    if one.train < FEWEST:
        raise UserError(
            f"--data {path}: {one.count} samples: at least {3 * FEWEST} are needed, for training, dev and test"
        )
    return one


def _found(path: Path, readers: Mapping[str, Reader], who: str | None, what: str) -> Found:
    place = path.expanduser()
    if (kind := kind_at(place)) is not None:
        return _packed(kind, path, who)
    if not place.exists():
        if str(path) == "digits":
            why = "the name of the digits that come with scikit-learn"
            return whole(read_digits(), {"sources": Noted("digits", why)})
        raise UserError(f"--data {path}: no such folder: give {what}")
    if place.is_file():
        return _file(path, place, readers, what)
    packed = sorted(file for file in place.iterdir() if file.suffix.lower() in readers)
    loose = next(_images_of(place), None) is not None
    if loose or not packed:
        return _folder(path, place, who)
    test = [file for file in packed if set(re.split(r"[^a-z]+", file.stem.lower())) & {*DEV_NAMES, *TEST_NAMES}]
    train = [file for file in packed if file not in test]
    if len(train) != 1:
        raise UserError(f"--data {path}: it holds {', '.join(file.name for file in packed)}: name one of them")
    one = _file(path / train[0].name, train[0], readers, what)
    if not test:
        return one
    section = {**one.section, "test_path": Noted(str(path / test[0].name), "found beside it: test samples")}
    return Found(section, one.shape, one.count, one.classes, own_test=True, notes=one.notes)


def _packed(kind: Kind, path: Path, who: str | None) -> Found:
    """Of shards or a table; those to test on apart, where names tell them."""
    place = path.expanduser()
    splits = split_tables(place) if kind == "datasets" and place.is_dir() else None
    both = apart(kind, place) if place.exists() else None
    train = both[0] if both is not None else next(iter(splits.values())) if splits else place
    index, notes = index_of(packing(kind, train, "--data")), list[str]()
    first = index.member(0)
    pixels, mode = decoded(first.read(), str(first), Expected())
    try:
        labelling = index.labels(train, None)
    except UserError as error:
        if who is not None:
            raise
        labelling = None
        notes.append(f"the labels cannot be used and are left out: {error}")
    if who is not None and labelling is None:
        raise UserError(f"--data {path}: {who} needs labels: no sample has a class (.cls, or label in its .json)")
    shape, count = (CHANNELS[mode], *pixels.shape[:2]), len(index)
    what = "shards of tars" if kind == "webdataset" else "what datasets has saved"
    where = HERE if both is None else f"its parts are splits: {both[0].name} and {both[1].name}"
    section = {
        "sources": Noted(kind, f"{what}: {count:,} images in {len(index.packed.files)} files"),
        "path": Noted(str(path if both is not None or not splits else path / train.name), where),
        **_size(shape, mode, first.name),
    }
    names = None if labelling is None or len(labelling[1]) < 2 else labelling[1]
    texted = bool(index.columns["texted"].all())
    return Found(section, shape, count, names, both is not None, tuple(notes), texted)


def _images_of(place: Path) -> Iterator[str]:
    try:
        yield from Folder(place).names
    except UserError:
        return


def _file(path: Path, place: Path, readers: Mapping[str, Reader], what: str) -> Found:
    if (reader := readers.get(place.suffix.lower())) is None:
        raise UserError(f"--data {path}: a file that is not read here: give {what}")
    return reader(path, place)


def _folder(path: Path, place: Path, who: str | None) -> Found:
    apart = split_folders(place)
    with Folder(place if apart is None else apart[0]) as store:
        shape, mode, first = first_of(store)
        classes, notes = _classes(store, who)
        count = len(store.names)
        if store.unread:
            notes.append(f"{len(store.unread)} images that Pillow cannot read here are left out, as {store.unread[0]}")
    where = HERE if apart is None else f"its folders are splits: {apart[0].name} and {apart[1].name}"
    section = {
        "sources": Noted("folder", f"{count:,} images were found"),
        "path": Noted(str(path), where),
        **_size(shape, mode, first),
    }
    return Found(section, shape, count, classes, apart is not None, tuple(notes))


def found_zip(path: Path, place: Path, *, who: str | None) -> Found:
    """Images of a zip in the EDM convention. Raises `UserError` where it holds none."""
    with Zip(place) as store:
        shape, mode, first = first_of(store)
        classes, notes = _classes(store, who)
    section = {
        "sources": Noted("edm", f"a zip of {len(store.names):,} images"),
        "path": Noted(str(path), HERE),
        **_size(shape, mode, first),
    }
    return Found(section, shape, len(store.names), classes, notes=tuple(notes))


def whole(images: Images, section: Mapping[str, Any]) -> Found:
    """Samples that were read as a whole."""
    return Found(section, images.shape, len(images), images.class_names)


def _size(shape: tuple[int, ...], mode: str, name: str) -> dict[str, Noted]:
    height, width = shape[1:]
    size: Any = height if height == width else [height, width]
    return {
        "size": Noted(size, f"height and width of {name}, which all must have"),
        "mode": Noted(mode, f"of {name}: L is 8-bit grey, RGB 8-bit colour"),
    }


def _classes(store: Folder | Zip, who: str | None) -> tuple[tuple[str, ...] | None, list[str]]:
    """Names of the classes, if there are any, and what is wrong with labels that nobody needs."""
    try:
        labelling = store.labelling(None)
    except UserError as error:
        if who is not None:
            raise
        return None, [f"the labels cannot be used and are left out: {error}"]
    if who is not None and labelling is None:
        raise UserError(store.unlabelled(who))
    return (None if labelling is None or len(labelling.names) < 2 else labelling.names), []


def shown(shape: tuple[int, ...]) -> str:
    """``(c, h, w)`` as people say it.

    >>> shown((1, 8, 8)), shown((3, 32, 48)), shown((2,))
    ('8x8 grey', '32x48 colour', '2')
    """
    kind = {1: "grey", 3: "colour"}.get(shape[0], f"{shape[0]} channels")
    return f"{'x'.join(map(str, shape[1:]))} {kind}" if len(shape) == 3 else "x".join(map(str, shape))


__all__ = ["FEWEST", "HERE", "Found", "Reader", "found", "found_zip", "shown", "whole"]
