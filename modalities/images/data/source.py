"""The data section of a classifier's recipe, its splits, and the batches of one of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from xmodal_kd.adapter.images.read import Images
from xmodal_kd.adapter.images.section import SPLITS, ImageSection, Split
from xmodal_kd.adapter.images.splits import batches, check_classes, read_section, settled, split_images, told
from xmodal_kd.adapter.long_lists import Batches
from xmodal_kd.runtime.errors import UserError, nearest
from xmodal_kd.runtime.random_streams import Streams

from .keypoints_section import Keypoints
from .restoration_section import DIGIT, PHOTO, Restoration

Task = Literal["classes", "keypoints", "restoration"]
#: What each task reads.
SOURCES: Mapping[Task, tuple[str, ...]] = {
    "classes": ("digits", "folder", "edm", "webdataset", "datasets"),
    "keypoints": ("skeletons", "coco"),
    "restoration": ("photos", "folder", "edm", "digits"),
}
#: The keys of the data section that decide what is read and how it is split.
DECISIVE = ("sources", "path", "test_path", "dev", "test", "size", "mode", "skip", "classes")


class ImagesData(ImageSection):
    """Which images there are, what is looked for in them, and how training ones are moved."""

    made: ClassVar[frozenset[str]] = frozenset({"digits", "photos", "skeletons"})

    #: The class of an image, the joints of the figure that it shows, or the image that a smaller one was made of.
    task: Task = "classes"
    sources: Literal["digits", "folder", "edm", "webdataset", "datasets", "skeletons", "coco", "photos"]
    #: Of the task keypoints: which figures there are, and how fine their heat maps are.
    keypoints: Keypoints = Keypoints()
    #: Of the task restoration: what is taken from an image, to be given back.
    restoration: Restoration = Restoration()
    #: Of the task classes: only images of these, by name, in this order; dev and test have fewer images by as much.
    classes: tuple[str, ...] | None = Field(default=None, min_length=2)
    #: Pixels by which a training image is moved at most, each way; what comes in repeats the edge.
    shift: int = Field(default=0, ge=0, le=1 << 10)

    @model_validator(mode="after")
    def _check_shift(self) -> ImagesData:
        if self.sources == "digits" and self.shift > 4:
            raise ValueError("shift: moves most of an 8x8 digit out of sight: give at most 4")
        return self

    @model_validator(mode="after")
    def _check_classes(self) -> ImagesData:
        if self.classes is not None and self.task != "classes":
            raise ValueError(f"classes: the task {self.task} has none: leave it out")
        if self.classes is not None and len(set(self.classes)) < len(self.classes):
            raise ValueError("classes: one stands there twice: name each once")
        return self

    @model_validator(mode="after")
    def _check_task(self) -> ImagesData:
        if self.sources not in SOURCES[self.task]:
            fits = next(task for task, sources in SOURCES.items() if self.sources in sources)
            raise ValueError(
                f"sources: {self.sources} is of the task {fits}: set task to that, or sources to one of "
                f"{', '.join(SOURCES[self.task])}"
            )
        for task, section, plain in (
            ("keypoints", self.keypoints, Keypoints()), ("restoration", self.restoration, Restoration()),
        ):  # fmt: skip
            if self.task != task and section != plain:
                raise ValueError(f"{task}: the task is {self.task}: set task to {task}, or leave it out")
        if self.task == "keypoints":
            sides, stride = self.sides or (0, 0), self.keypoints.stride
            if any(side % stride for side in sides):
                raise ValueError(f"size: {list(sides)} are no multiples of keypoints.stride, which is {stride}")
            for source, keys in Keypoints.of.items():
                for key in keys if source != self.sources else ():
                    if getattr(self.keypoints, key) != getattr(Keypoints(), key):
                        raise ValueError(f"keypoints.{key}: only sources: {source} reads it: leave it out")
        return self

    @model_validator(mode="after")
    def _check_restoration(self) -> ImagesData:
        if self.task != "restoration":
            return self
        if self.shift:
            raise ValueError("shift: training crops of the task restoration lie anywhere in an image: leave it out")
        if self.sources != "photos" and self.size is not None:
            raise ValueError("size: images of the task restoration may have any: leave it out")
        if self.sources == "photos" and self.mode == "L":
            raise ValueError("mode: the photos are RGB (8-bit colour): leave it out")
        side, scale = self.restoration.side(self.sources), self.restoration.scale
        least = {"digits": DIGIT, "photos": min(self.sides or (PHOTO,))}.get(self.sources, side)
        if side > least:
            raise ValueError(f"restoration.crop: {side} is more than the {least} that an image has: set it lower")
        if side % scale:
            raise ValueError(f"restoration.crop: {side} is no multiple of restoration.scale, which is {scale}")
        return self


def load_split(config: ImagesData, split: str) -> Images:
    """The images of ``train``, ``dev`` or ``test``, all labelled; read once in a process: leave the arrays as they are.

    Raises:
        UserError: what the readers find wrong, a class that training never sees, fewer than two classes.
    """
    if split not in SPLITS:
        raise UserError(f"no split {split!r}{nearest(split, SPLITS)}")
    return _splits(settled(config, DECISIVE))[split]


@lru_cache(maxsize=4)
def _splits(config: ImagesData) -> dict[Split, Images]:
    splits = split_images(config, partial(read_section, config, who="a classifier"))
    if config.classes is not None:
        splits = {split: _only(images, config.classes, split) for split, images in splits.items()}
    check_classes(splits["train"], "a classifier")
    if splits["train"].classes == 1:
        raise UserError(f"data: {config.path} has one class only: there is nothing to tell apart")
    return splits


def _only(images: Images, classes: Sequence[str], split: Split) -> Images:
    """The images of some classes. Raises `UserError` for a name that is none, and where there is no such image."""
    names, labels = images.class_names or (), images.labels
    assert labels is not None  # the readers see to it
    for name in classes:
        if name not in names:
            raise UserError(f"data.classes: there is no class {name!r}{nearest(name, names)}")
    number = np.full(len(names), -1)
    number[[names.index(name) for name in classes]] = np.arange(len(classes))
    chosen = np.flatnonzero(number[labels] >= 0)
    if not len(chosen):
        raise UserError(
            f"data.classes: no image of {split} is of {', '.join(classes)}: name others, or raise data.{split}"
        )
    return replace(
        images.take(chosen), labels=number[labels[chosen]], class_names=tuple(classes), skipped=images.skipped,
        unread=images.unread,
    )  # fmt: skip


class Sample(NamedTuple):
    """One image, moved and mirrored."""

    id: int
    key: str
    label: int
    #: ``(c, h, w)`` float32 in [-1, 1].
    x: Tensor


class ImagesSource:
    """The images of one split; order, mirroring and shift are functions of (seed, split, epoch, sample).

    Raises:
        UserError: fewer training images than a batch.
    """

    def __init__(self, config: ImagesData, split: str, images: Images, streams: Streams, batch_size: int) -> None:
        self.config, self.split, self.images = config, split, images
        self.streams, self.batch_size = streams, batch_size
        assert images.labels is not None  # the readers see to it
        self.labels = torch.from_numpy(images.labels)
        if split == "train" and len(images) < batch_size:
            raise UserError(f"train.batch_size: {batch_size} is more than the {len(images)} training samples")

    @property
    def classes(self) -> list[int]:
        """Class of each sample, which pairs of a class are made by."""
        found: list[int] = self.labels.tolist()
        return found

    def __len__(self) -> int:
        return len(self.images)

    def plan(self, epoch: int) -> Batches:
        return batches(self.split, len(self), self.batch_size, self.streams, epoch)

    def sample(self, index: int, epoch: int) -> Sample:
        x, known = self.images.tensor([index])[0], (self.images.keys[index], int(self.labels[index]))
        if self.split != "train" or not (self.config.flip or self.config.shift):
            return Sample(index, *known, x)
        generator, far = self.streams.torch("augment", epoch, index), self.config.shift
        down, right, mirror = torch.rand(3, generator=generator).tolist()
        if self.config.flip and mirror < 0.5:
            x = x.flip(-1)
        x = _moved(x, int(down * (2 * far + 1)), int(right * (2 * far + 1)), far) if far else x
        return Sample(index, *known, x)

    def collate(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """``ids`` (b,) int64, ``keys`` list of names, ``x`` (b, c, h, w) float32, ``labels`` (b,) int64."""
        return {
            "ids": torch.tensor([sample.id for sample in samples]),
            "keys": [sample.key for sample in samples],
            "x": torch.stack([sample.x for sample in samples]),
            "labels": torch.tensor([sample.label for sample in samples]),
        }

    def describe(self) -> dict[str, Any]:
        """Facts for the report."""
        return told(self.images)


def _moved(x: Tensor, down: int, right: int, far: int) -> Tensor:
    """The window of `x`, padded by `far`, whose upper left corner lies at (down, right)."""
    _, height, width = x.shape
    padded = F.pad(x[None], (far, far, far, far), mode="replicate")[0]
    return padded[:, down : down + height, right : right + width]


__all__ = ["ImagesData", "ImagesSource", "Sample", "load_split"]
