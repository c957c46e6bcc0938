"""The images of a data section, cut into train, dev and test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ...runtime.errors import UserError
from ...runtime.random_streams import Streams
from ..listed import Skipped
from ..long_lists import Batches
from ..packed.packing import KINDS as PACKED
from ..packed.packing import Kind as Packed
from ..packed.packing import packing
from ..packed.shards import absolute, is_pattern
from .digits import read_digits
from .listed import key_of
from .packed import Index, index_of, packed_images
from .read import Expected, Images, read_images
from .section import TEST, ImageSection, Split

S = TypeVar("S", bound=ImageSection)
#: Reads all samples of a path (None: of a source without files); beside it the training samples where they are test's.
Reader = Callable[[Path | None, Images | None], Images]


def settled(config: S, keys: Sequence[str]) -> S:
    """The part of a section that decides what is read, for a cache: a relative path means another file elsewhere."""
    decisive = {key: getattr(config, key) for key in keys}
    for key in ("path", "test_path", "skip"):
        if decisive[key] is not None:
            decisive[key] = absolute(decisive[key])
    return type(config)(**decisive)


def read_section(config: ImageSection, path: Path | None, train: Images | None, *, who: str | None) -> Images:
    """All images of `path`, or the digits.

    Args:
        train: the training samples, if these are test samples of their own: they must be alike.
        who: needs labels, for messages; None where nobody does.

    Raises:
        UserError: there is no such path, and what the readers find wrong.
    """
    if path is None:
        return read_digits()
    check_there(path, train)
    expected = Expected(config.sides, config.mode)
    if train is not None:
        side = (train.shape[-2], train.shape[-1])
        expected = Expected(side, {1: "L", 3: "RGB"}[train.shape[0]], "as the training images")
    skipped = Skipped.of(config.skip)
    called = partial(key_of, path, beside=train is not None)
    classes = None if train is None else train.class_names
    if (kind := next((one for one in PACKED if one == config.sources), None)) is not None:
        key = "data.path" if train is None else "data.test_path"
        index = index_of(packing(kind, path, key))
        _check_apart(config, kind, path, index, train)
        return packed_images(index, path, expected, who=who, classes=classes, skipped=skipped, name_of=called)
    keep = partial(skipped.keep, key=called)
    found = read_images(path, config.sources, expected, who=who, classes=classes, keep=keep)
    return replace(found, skipped=skipped.found)


def check_there(path: Path, train: Images | None) -> None:
    """Raises `UserError` where there is no such path."""
    if not path.exists() and not is_pattern(path):
        raise UserError(f"data.{'path' if train is None else 'test_path'}: {path} does not exist")


def _check_apart(config: ImageSection, kind: Packed, path: Path, index: Index, train: Images | None) -> None:
    """Raises `UserError` where a file of test samples is one of the training samples."""
    if train is not None and config.path is not None:
        both = {file.resolve() for file in index.packed.files} & {
            file.resolve() for file in packing(kind, config.path).files
        }
        if both:
            raise UserError(f"data.test_path: {path}: {min(both)} is of data.path too: test would be trained on")


def split_images(config: ImageSection, read: Reader) -> dict[Split, Images]:
    """What `read` gives of the section's paths, cut into splits that are disjoint by index.

    Raises:
        UserError: splits that leave nothing for training, and test samples unlike the training samples.
    """
    whole = read(config.path, None)
    if config.test_path is None:
        parts = cut(len(whole), [config.test or TEST, config.dev])
        test = whole.take(parts[0])
    else:
        parts = [np.empty(0, np.int64), *cut(len(whole), [config.dev])]
        test = _own_test(config, config.test_path, whole, read)
    if not len(parts[-1]):
        taken = f"dev takes {config.dev}" + ("" if config.test_path else f" and test {config.test or TEST}")
        where = f"data: {config.path or config.sources} has {len(whole)} samples"
        raise UserError(f"{where}, of which {taken}: none are left for training: set data.dev and data.test lower")
    train = replace(whole.take(parts[-1]), skipped=whole.skipped, unread=whole.unread)
    return {"train": train, "dev": whole.take(parts[1]), "test": test}


def check_classes(train: Images, who: str) -> None:
    """Raises `UserError` for a class that no training sample has, which `who` could not learn."""
    if train.labels is None or train.class_names is None:
        raise ValueError("readers refuse data without labels where they are needed")
    counts = np.bincount(train.labels, minlength=len(train.class_names))
    if not counts.all():
        name = train.class_names[int(counts.argmin())]
        raise UserError(f"data: no training sample is of class {name!r}: {who} could not learn it")


def cut(count: int, sizes: Sequence[int]) -> list[NDArray[np.int64]]:
    """Disjoint sorted parts of `sizes` of the indexes below `count`, and what is left over (nothing, if too few).

    Drawn by a hash: the same on every machine, with every version of NumPy, for every seed of a recipe.
    """
    drawn = (int.from_bytes(blake2b(i.to_bytes(8), digest_size=8).digest()) for i in range(count))
    order = np.argsort(np.fromiter(drawn, np.uint64, count), kind="stable")
    ends = np.cumsum([0, *sizes]).tolist()
    return [np.sort(order[start:end]) for start, end in pairwise([*ends, count])]


def _own_test(config: ImageSection, path: Path, train: Images, read: Reader) -> Images:
    """The samples of `test_path`, or as many of them as the recipe says."""
    test = read(path, train)
    if test.shape != train.shape:
        raise UserError(f"data.test_path: {path}: samples have shape {test.shape}, training samples {train.shape}")
    if test.class_names != train.class_names:
        told = [", ".join(names) if names else "no labels" for names in (test.class_names, train.class_names)]
        raise UserError(f"data.test_path: {path} has classes {told[0]:.200}; training has {told[1]:.200}")
    if config.test is None:
        return test
    return replace(test.take(tested(config, path, len(test))), skipped=test.skipped, unread=test.unread)


def tested(config: ImageSection, path: Path, count: int) -> NDArray[np.int64]:
    """Which of the `count` samples of `test_path` are tested on: all, or as many as the recipe says."""
    if config.test is None:
        return np.arange(count)
    if config.test > count:
        raise UserError(f"data.test: {config.test} test samples are asked for, {path} has {count}")
    return cut(count, [config.test])[0]


def batches(split: str, count: int, batch_size: int, streams: Streams, epoch: int) -> Batches:
    """Batches of an epoch. Of training samples full ones in an order of the epoch's own, and what is left over waits
    for another epoch; of dev and test all samples in order, the last batch may be smaller."""
    order = streams.numpy("order", epoch).permutation(count) if split == "train" else np.arange(count)
    starts = np.arange(0, count - batch_size + 1 if split == "train" else count, batch_size)
    return Batches(order, starts, np.minimum(batch_size, count - starts))


def told(images: Images) -> dict[str, object]:
    """Facts for the report; left out are images of formats that are not read here, a broken image is an error."""
    examples = [{"key": name, "reason": "a format that Pillow does not read here"} for name in images.unread[:5]]
    return ({"left_out_examples": examples} if examples else {}) | {
        "samples": len(images),
        "skipped": len(images.skipped),
        "left_out": len(images.unread),
        "shape": list(images.shape),
        "classes": images.classes,
    }


__all__ = [
    "batches",
    "check_classes",
    "check_there",
    "cut",
    "read_section",
    "settled",
    "split_images",
    "tested",
    "told",
]
