"""The splits of a data set, and the batches of one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from xmodal_kd.adapter.listed import Skipped
from xmodal_kd.runtime.errors import UserError, nearest
from xmodal_kd.runtime.random_streams import Streams

from .arrays import read_arrays, read_latents
from .config import SPLITS, TEST, DiffusionData, ProcessConfig, SamplingConfig, Split
from .images import Expected, Images, read_digits, read_images
from .listed import key_of

__all__ = ["DiffusionData", "DiffusionSource", "Images", "ProcessConfig", "Sample", "SamplingConfig", "load_split"]

#: The keys of the data section that decide what is read and how it is split.
DECISIVE = ("sources", "path", "test_path", "dev", "test", "conditional", "size", "mode", "latents", "skip")


def load_split(config: DiffusionData, split: str) -> Images:
    """The samples of ``train``, ``dev`` or ``test``; whichever is asked for first, all three are read and checked.

    They are read once in a process, and shared: leave the arrays as they are. The splits are disjoint by index.

    Raises:
        UserError: what the readers find wrong, splits that leave nothing for training, a class that training never
            sees though models are conditional, and test samples unlike the training samples.
    """
    if split not in SPLITS:
        raise UserError(f"no split {split!r}{nearest(split, SPLITS)}")
    decisive = {key: getattr(config, key) for key in DECISIVE}
    for key in ("path", "test_path", "skip"):
        if decisive[key] is not None:
            decisive[key] = Path.cwd() / decisive[key].expanduser()  # a relative path means another file elsewhere
    return _splits(DiffusionData(**decisive))[split]


@lru_cache(maxsize=4)
def _splits(config: DiffusionData) -> dict[Split, Images]:
    whole = _read(config, config.path, None)
    if config.test_path is None:
        parts = _cut(len(whole), [config.test or TEST, config.dev])
        test = whole.take(parts[0])
    else:
        parts = [[], *_cut(len(whole), [config.dev])]
        test = _own_test(config, config.test_path, whole)
    if not parts[-1]:
        taken = f"dev takes {config.dev}" + ("" if config.test_path else f" and test {config.test or TEST}")
        where = f"data: {config.path or config.sources} has {len(whole)} samples"
        raise UserError(f"{where}, of which {taken}: none are left for training: set data.dev and data.test lower")
    if whole.classes == 1:  # a classifier of one class learns nothing, and its features would judge
        if config.conditional:
            raise UserError(f"data: {config.path} has one class only: set data.conditional to false")
        whole, test = whole.unlabelled(), test.unlabelled()
    train = replace(whole.take(parts[-1]), skipped=whole.skipped, unread=whole.unread)
    splits: dict[Split, Images] = {"train": train, "dev": whole.take(parts[1]), "test": test}
    if config.conditional:
        _check_classes(splits["train"])
    return splits


def _cut(count: int, sizes: Sequence[int]) -> list[list[int]]:
    """Disjoint sorted parts of `sizes` of the indexes below `count`, and what is left over (nothing, if too few).

    Drawn by a hash: the same on every machine, with every version of NumPy, for every seed of a recipe.
    """
    order = sorted(range(count), key=lambda i: blake2b(i.to_bytes(8), digest_size=8).digest())
    ends = np.cumsum([0, *sizes]).tolist()
    return [sorted(order[start:end]) for start, end in pairwise([*ends, count])]


def _own_test(config: DiffusionData, path: Path, train: Images) -> Images:
    """The samples of `test_path`, or as many of them as the recipe says."""
    test = _read(config, path, train)
    if test.shape != train.shape:
        raise UserError(f"data.test_path: {path}: samples have shape {test.shape}, training samples {train.shape}")
    if test.class_names != train.class_names:
        told = [", ".join(names) if names else "no labels" for names in (test.class_names, train.class_names)]
        raise UserError(f"data.test_path: {path} has classes {told[0]:.200}; training has {told[1]:.200}")
    if config.test is None:
        return test
    if config.test > len(test):
        raise UserError(f"data.test: {config.test} test samples are asked for, {path} has {len(test)}")
    return replace(test.take(_cut(len(test), [config.test])[0]), skipped=test.skipped, unread=test.unread)


def _read(config: DiffusionData, path: Path | None, train: Images | None) -> Images:
    """All samples of `path`; `train` are the training samples if these are test samples of their own."""
    if path is None:
        return read_digits()
    if not path.exists():
        raise UserError(f"data.{'path' if train is None else 'test_path'}: {path} does not exist")
    classes = None if train is None else train.class_names
    skipped = Skipped.of(config.skip)
    if config.sources == "arrays":
        every = read_arrays(path, conditional=config.conditional, classes=classes, latents=config.latents)
        if train is not None or not skipped.keys:
            return every
        return replace(every.take(skipped.keep(range(len(every)), str)), skipped=skipped.found)
    size = (config.size, config.size) if isinstance(config.size, int) else config.size
    expected = Expected(size, config.mode)
    if train is not None and not config.latents:
        expected = Expected(
            (train.shape[-2], train.shape[-1]), {1: "L", 3: "RGB"}[train.shape[0]], "as the training images"
        )
    keep = partial(skipped.keep, key=lambda name: key_of(path, name, train is not None))
    if config.latents:
        latents = read_latents(path, conditional=config.conditional, classes=classes, keep=keep)
        return replace(latents, skipped=skipped.found)
    found = read_images(path, config.sources, expected, conditional=config.conditional, classes=classes, keep=keep)
    return replace(found, skipped=skipped.found)  # fmt: skip


def _check_classes(train: Images) -> None:
    if train.labels is None or train.class_names is None:
        raise ValueError("readers refuse conditional data without labels")
    counts = np.bincount(train.labels, minlength=len(train.class_names))
    if not counts.all():
        name = train.class_names[int(counts.argmin())]
        raise UserError(f"data: no training sample is of class {name!r}: a conditional model could not learn it")


class Sample(NamedTuple):
    """One sample and what the method draws for it."""

    id: int
    #: ``(*shape,)`` float32 in [-1, 1].
    x: Tensor
    #: Standard normal, of the shape of `x`.
    noise: Tensor
    #: ``()`` float32, uniform in [0, 1): which time.
    u: Tensor


class DiffusionSource:
    """The samples of one split; order, mirroring, noise and u are functions of (seed, split, epoch, sample).

    Args:
        streams: of the run.
    Raises:
        UserError: fewer training samples than a batch.
    """

    def __init__(self, config: DiffusionData, split: str, images: Images, streams: Streams, batch_size: int) -> None:
        self.config, self.split, self.images = config, split, images
        self.streams, self.batch_size = streams, batch_size
        if split == "train" and len(images) < batch_size:
            raise UserError(f"train.batch_size: {batch_size} is more than the {len(images)} training samples")

    def __len__(self) -> int:
        return len(self.images)

    def plan(self, epoch: int) -> list[list[int]]:
        """Training: full batches in random order; the samples left over wait for another epoch. Dev and test: all
        samples in order, the last batch may be smaller."""
        if self.split != "train":
            return [list(range(len(self)))[i : i + self.batch_size] for i in range(0, len(self), self.batch_size)]
        order = self.streams.numpy("order", epoch).permutation(len(self)).tolist()
        last = len(self) - self.batch_size
        return [order[i : i + self.batch_size] for i in range(0, last + 1, self.batch_size)]

    def sample(self, index: int, epoch: int) -> Sample:
        # One generator a sample: making and seeding it takes 5 microseconds, NumPy's 12.
        generator = self.streams.torch("noise", self.split, epoch, index)
        u, mirror = torch.rand(2, generator=generator).unbind()
        x = self.images.tensor([index])[0]
        noise = torch.randn(x.shape, generator=generator)
        if self.config.flip and self.split == "train" and mirror < 0.5:
            x = x.flip(-1)
        return Sample(index, x, noise, u)

    def collate(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """A batch of b samples.

        ``ids`` (b,) int64; ``keys`` list of names; ``x`` and ``noise`` (b, *shape) float32; ``u`` (b,) float32;
        ``labels`` (b,) int64 if models are conditional.
        """
        ids = [sample.id for sample in samples]
        batch = {
            "ids": torch.tensor(ids),
            "keys": [self.images.keys[i] for i in ids],
            "x": torch.stack([sample.x for sample in samples]),
            "noise": torch.stack([sample.noise for sample in samples]),
            "u": torch.stack([sample.u for sample in samples]),
        }
        if self.config.conditional and self.images.labels is not None:
            batch["labels"] = torch.from_numpy(self.images.labels[ids])
        return batch

    def describe(self) -> dict[str, Any]:
        """Facts for the report; left out are images of formats that are not read here, a broken image is an error."""
        unread = self.images.unread
        examples = [{"key": name, "reason": "a format that Pillow does not read here"} for name in unread[:5]]
        return ({"left_out_examples": examples} if examples else {}) | {
            "samples": len(self),
            "skipped": len(self.images.skipped),
            "left_out": len(unread),
            "shape": list(self.images.shape),
            "classes": self.images.classes,
        }
