"""The splits of a data set, and the batches of one of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from xmodal_kd.adapter.images.listed import key_of
from xmodal_kd.adapter.images.packed import index_of
from xmodal_kd.adapter.images.read import Images
from xmodal_kd.adapter.images.splits import (
    batches,
    check_classes,
    check_there,
    read_section,
    settled,
    split_images,
    told,
)
from xmodal_kd.adapter.listed import Skipped
from xmodal_kd.adapter.long_lists import Batches
from xmodal_kd.adapter.packed.packing import packing
from xmodal_kd.runtime.errors import UserError, nearest
from xmodal_kd.runtime.random_streams import Streams

from .arrays import packed_latents, read_arrays, read_latents
from .condition import Text, each
from .config import SPLITS, DiffusionData, ProcessConfig, SamplingConfig, Split

__all__ = [
    "DiffusionData",
    "DiffusionSource",
    "Encoded",
    "Images",
    "ProcessConfig",
    "Sample",
    "SamplingConfig",
    "load_split",
]

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
    return _splits(settled(config, DECISIVE))[split]


@lru_cache(maxsize=4)
def _splits(config: DiffusionData) -> dict[Split, Images]:
    splits = split_images(config, partial(_read, config))
    if splits["train"].classes == 1:  # a classifier of one class learns nothing, and its features would judge
        if config.conditional:
            raise UserError(f"data: {config.path} has one class only: set data.conditional to false")
        splits = {split: images.unlabelled() for split, images in splits.items()}
    if config.conditional:
        check_classes(splits["train"], "a conditional model")
    return splits


def _read(config: DiffusionData, path: Path | None, train: Images | None) -> Images:
    """All samples of `path`; `train` are the training samples if these are test samples of their own."""
    if path is None or not (config.sources == "arrays" or config.latents):
        return read_section(config, path, train, who="conditional" if config.conditional else None)
    check_there(path, train)
    classes = None if train is None else train.class_names
    skipped = Skipped.of(config.skip)
    if config.sources == "arrays":
        every = read_arrays(path, conditional=config.conditional, classes=classes, latents=config.latents)
        if train is not None or not skipped.keys:
            return every
        return replace(every.take(skipped.keep(range(len(every)), str)), skipped=skipped.found)
    called = partial(key_of, path, beside=train is not None)
    if config.sources == "webdataset":
        index = index_of(packing("webdataset", path), arrays=True)
        return packed_latents(
            index, path, conditional=config.conditional, classes=classes, skipped=skipped, called=called
        )
    keep = partial(skipped.keep, key=called)
    latents = read_latents(path, conditional=config.conditional, classes=classes, keep=keep)
    return replace(latents, skipped=skipped.found)


@dataclass(frozen=True)
class Encoded:
    """The samples of a split as the networks of a pipeline see them; arrays lie on disk.

    Attributes:
        latents: ``(n, *shape)`` float32, and the same of the mirrored images where mirroring is wanted.
        texts: of the k distinct captions, ``(k, ...)`` float32 each; see `condition.Text`.
        index: ``(n,)`` which of them a sample has.
        nothing: what the empty prompt says.
    """

    latents: Sequence[np.ndarray]
    texts: Sequence[np.ndarray] = ()
    index: np.ndarray | None = None
    nothing: Callable[[], Text] | None = None

    def said(self, samples: Any) -> list[Tensor]:
        """What the captions of some samples say, as `texts` has it."""
        assert self.index is not None
        return [torch.from_numpy(np.array(part[self.index[samples]])) for part in self.texts]


class Sample(NamedTuple):
    """One sample and what the method draws for it."""

    id: int
    #: ``(*shape,)`` float32 in [-1, 1], or a latent.
    x: Tensor
    #: Standard normal, of the shape of `x`.
    noise: Tensor
    #: ``()`` float32, uniform in [0, 1): which time.
    u: Tensor
    #: What its caption says, as `condition.Text` has it of one; nothing where models are not prompted.
    said: tuple[Tensor, ...] = ()


class DiffusionSource:
    """The samples of one split; order, mirroring, noise and u are functions of (seed, split, epoch, sample).

    Args:
        streams: of the run.
        encoded: gives the images' latents and captions where models see these; asked when a sample is.
    Raises:
        UserError: fewer training samples than a batch.
    """

    def __init__(
        self, config: DiffusionData, split: str, images: Images, streams: Streams, batch_size: int,
        encoded: Callable[[], Encoded] | None = None,
    ) -> None:  # fmt: skip
        self.config, self.split, self.images, self.encoded = config, split, images, encoded
        self.streams, self.batch_size = streams, batch_size
        if split == "train" and len(images) < batch_size:
            raise UserError(f"train.batch_size: {batch_size} is more than the {len(images)} training samples")

    def __len__(self) -> int:
        return len(self.images)

    def plan(self, epoch: int) -> Batches:
        return batches(self.split, len(self), self.batch_size, self.streams, epoch)

    def sample(self, index: int, epoch: int) -> Sample:
        # One generator a sample: making and seeding it takes 5 microseconds, NumPy's 12.
        generator = self.streams.torch("noise", self.split, epoch, index)
        u, mirror = torch.rand(2, generator=generator).unbind()
        mirrored = self.config.flip and self.split == "train" and bool(mirror < 0.5)
        if self.encoded is None:
            x = self.images.tensor([index])[0]
            x = x.flip(-1) if mirrored else x
        else:
            x = torch.from_numpy(np.array(self.encoded().latents[int(mirrored)][index]))
        noise = torch.randn(x.shape, generator=generator)
        return Sample(index, x, noise, u, self._said(index, generator))

    def _said(self, index: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """What the sample's prompt says; the empty one where it is left out, nothing where models take none."""
        if not self.config.captions or self.encoded is None:
            return ()
        found = self.encoded()
        if self.split == "train" and self.config.unprompted > float(torch.rand((), generator=generator)):
            assert found.nothing is not None
            return tuple(part[0] for part in each(found.nothing()))
        return tuple(found.said(index))

    def collate(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """A batch of b samples.

        ``ids`` (b,) int64; ``keys`` list of names; ``x`` and ``noise`` (b, *shape) float32; ``u`` (b,) float32;
        ``labels`` (b,) int64 if models are conditional, a `Text` if they are prompted.
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
        if samples[0].said:
            batch["labels"] = Text(*map(torch.stack, zip(*(sample.said for sample in samples), strict=True)))
        return batch

    def describe(self) -> dict[str, Any]:
        """Facts for the report."""
        return told(self.images)
