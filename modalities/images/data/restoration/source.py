"""Images of a split beside what was taken from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from xmodal_kd.adapter.images.splits import batches
from xmodal_kd.adapter.long_lists import Batches
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams

from ..source import ImagesData
from .degraded import as_seen, degraded
from .pictures import Pictures


class Sample(NamedTuple):
    """A crop of an image, and the input that was made of it."""

    id: int
    #: ``(c, h, w)`` float32 in [-1, 1].
    x: Tensor
    #: ``(c, scale h, scale w)`` float32 in [-1, 1].
    target: Tensor


class RestorationSource:
    """The images of one split; order, crops and noise are functions of (seed, split, epoch, sample).

    A sample is a crop, of dev and test images their middle; `whole` is all of an image, which is what is measured. The
    noise of dev and test is the same for every seed.

    Raises:
        UserError: fewer training images than a batch.
    """

    def __init__(self, config: ImagesData, split: str, pictures: Pictures, streams: Streams, batch_size: int) -> None:
        self.config, self.split, self.pictures = config, split, pictures
        self.streams, self.batch_size = streams, batch_size
        self.side = config.restoration.side(config.sources)
        if split == "train" and len(pictures) < batch_size:
            raise UserError(f"train.batch_size: {batch_size} is more than the {len(pictures)} training samples")

    def __len__(self) -> int:
        return len(self.pictures)

    def plan(self, epoch: int) -> Batches:
        return batches(self.split, len(self), self.batch_size, self.streams, epoch)

    def sample(self, index: int, epoch: int) -> Sample:
        picture, side, training = self.pictures[index], self.side, self.split == "train"
        down, right, mirror = (0.5, 0.5, 1.0)
        if training:
            drawn = torch.rand(3, generator=self.streams.torch("augment", epoch, index), dtype=torch.float64)
            down, right, mirror = drawn.tolist()
        top, left = (int(at * (size - side + 1)) for at, size in zip((down, right), picture.shape[1:], strict=True))
        target = picture[:, top : top + side, left : left + side]
        if self.config.flip and mirror < 0.5:
            target = target[:, :, ::-1]
        return Sample(index, as_seen(self._input(target, index, epoch)), as_seen(target))

    def whole(self, index: int) -> tuple[UInt8[np.ndarray, "c h w"], UInt8[np.ndarray, "c i j"]]:
        """Input and target of a whole image of dev or test, less what of it no pixel of the input stands for."""
        picture, scale = self.pictures[index], self.config.restoration.scale
        height, width = (size - size % scale for size in picture.shape[1:])
        target = picture[:, :height, :width]
        return self._input(target, index, 0), target

    def _input(self, target: UInt8[np.ndarray, "c h w"], index: int, epoch: int) -> UInt8[np.ndarray, "c i j"]:
        """With noise of the sample's own: in training anew in each epoch."""
        streams, asked = self.streams if self.split == "train" else Streams(0), self.config.restoration
        return degraded(target, asked.scale, asked.noise, streams.torch("noise", self.split, epoch, index))

    def collate(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """``ids`` (b,), ``keys``, ``x`` (b, c, h, w) and ``target`` (b, c, scale h, scale w), float32 in [-1, 1]."""
        ids = torch.tensor([sample.id for sample in samples])
        return {
            "ids": ids,
            "keys": [self.pictures.keys[i] for i in ids.tolist()],
            "x": torch.stack([sample.x for sample in samples]),
            "target": torch.stack([sample.target for sample in samples]),
        }

    def describe(self) -> dict[str, Any]:
        """Facts for the report."""
        pictures = self.pictures
        return {
            "samples": len(pictures),
            "skipped": len(pictures.skipped),
            "left_out": len(pictures.unread),
            "channels": pictures.channels,
            "crop": self.side,
            "smallest": pictures.sizes.min(axis=0).tolist(),
            "largest": pictures.sizes.max(axis=0).tolist(),
        }


__all__ = ["RestorationSource", "Sample"]
