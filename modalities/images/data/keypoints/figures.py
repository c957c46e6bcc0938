"""What joints are, and the figures of a split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from xmodal_kd.adapter.images.later import Later

SIDES = ("left", "right")


@dataclass(frozen=True)
class Skeleton:
    """The joints of a figure.

    Attributes:
        names: of the joints, in order.
        edges: pairs of joints between which a bone is drawn.

    >>> Skeleton(("nose", "left_eye", "right_eye"), ((0, 1), (0, 2))).mirrored
    (0, 2, 1)
    """

    names: tuple[str, ...]
    edges: tuple[tuple[int, int], ...]

    @cached_property
    def mirrored(self) -> tuple[int, ...]:
        """Which joint each is in a mirror: left and right of one name change places."""
        at = {name: i for i, name in enumerate(self.names)}
        return tuple(at.get(_other(name), i) for i, name in enumerate(self.names))


def _other(name: str) -> str:
    left, right = SIDES
    return name.replace(left, right) if left in name else name.replace(right, left)


@dataclass(frozen=True, eq=False)
class Figures:
    """The samples of a split, an image of one figure each.

    Attributes:
        x: ``(n, c, h, w)`` uint8; in memory, or cut out when it is asked for.
        joints: ``(n, j, 2)`` float32: x and y in pixels of the image, the left upper corner of which is (0, 0).
        visible: ``(n, j)`` uint8 as COCO has it: 0 not labelled, 1 labelled and hidden, 2 labelled and seen.
        sizes: ``(n,)`` float32: the larger side of the figure's box in pixels of the image.
        keys: the name of each sample.
        clips: ``(n,)`` int64: what each is a part of that no split may part: a clip, the persons of an image.
        frames: consecutive samples that are the frames of a clip; 1 where there are none.
    """

    x: npt.NDArray[np.uint8] | Later
    joints: npt.NDArray[np.float32]
    visible: npt.NDArray[np.uint8]
    sizes: npt.NDArray[np.float32]
    keys: Sequence[str]
    clips: npt.NDArray[np.int64]
    skeleton: Skeleton
    frames: int = 1
    skipped: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.joints)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        _, channels, height, width = self.x.shape
        return channels, height, width

    def take(self, rows: npt.NDArray[np.int64]) -> Figures:
        return Figures(
            self.x.take(rows, axis=0), self.joints[rows], self.visible[rows], self.sizes[rows],
            [self.keys[i] for i in rows.tolist()], self.clips[rows], self.skeleton, self.frames,
        )  # fmt: skip

    def tensor(self, rows: Sequence[int]) -> Tensor:
        """``(b, c, h, w)`` float32 in [-1, 1]."""
        x: npt.NDArray[Any] = self.x[list(rows)]
        return torch.from_numpy(x.astype(np.float32)).div_(127.5).sub_(1)


__all__ = ["Figures", "Skeleton"]
