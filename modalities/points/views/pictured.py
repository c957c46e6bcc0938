"""What detectors see through cameras, and what of a frame these show: beside them a detector of points sees no more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from xmodal_kd.runtime.errors import UserError

from ..data.augment_config import Augment
from ..data.config import PointsData
from ..data.frame import Box, Camera, Frame, Scan
from ..data.readers.base import counted, in_view
from .augment import Motion, apply_image, turning
from .frustum import lift_of, nearest_depth
from .views import sized, taken


@dataclass(frozen=True)
class Pictured:
    """The photographs of a frame.

    Attributes:
        rgb: ``(n, h, w, 3)`` of each camera.
        lift: ``(n, 3, 4)`` see `frustum.lift_of`.
        depth: ``(n, h, w)`` of the nearest point of the scan on each pixel, metres along the axis, inf where none is.
        xyz: ``(m, 3)`` the points of the scan that they show.
    """

    rgb: UInt8[np.ndarray, "n h w 3"]
    lift: Float[np.ndarray, "n 3 4"]
    depth: Float[np.ndarray, "n h w"]
    xyz: Float[np.ndarray, "m 3"]

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in (self.rgb, self.lift, self.depth, self.xyz))

    def tensors(
        self, motion: Motion | None = None, colour: float = 0.0, rng: np.random.Generator | None = None
    ) -> tuple[Tensor, ...]:
        """Colours ``(n, 3, h, w)`` from 0 to 1, `lift`, `depth` as a step sees them.

        Args:
            motion: by which the scene was moved: what is lifted moves with it, the photographs stay.
            colour: the most that brightness, contrast and saturation change by, drawn from `rng`.
        """
        rgb = torch.from_numpy(np.ascontiguousarray(self.rgb.transpose(0, 3, 1, 2))).float() / 255
        if colour > 0 and rng is not None:
            rgb = torch.stack([apply_image(one, Augment(colour=colour), rng).inputs for one in rgb])
        lift = torch.from_numpy(self.lift)
        return rgb, lift if motion is None else turning(motion) @ lift, torch.from_numpy(self.depth)


def pictured(frame: Frame, data: PointsData) -> Pictured:
    """Through the cameras of the recipe. Raises `UserError` for a frame that lacks one."""
    pictures = [sized(picture, data.image) for picture in taken(frame, data.cameras)]
    cameras = [picture.camera for picture in pictures]
    xyz = frame.scan.xyz[within(cameras, frame.scan)]
    return Pictured(
        np.stack([picture.rgb for picture in pictures]),
        np.stack([lift_of(camera) for camera in cameras]),
        np.stack([nearest_depth(camera, xyz) for camera in cameras]),
        xyz,
    )


def limits(frame: Frame, data: PointsData) -> tuple[Camera, ...]:
    """The cameras beyond whose photographs no detector sees or looks for anything; empty: all around.

    Raises:
        UserError: the frame has no photograph of theirs.
    """
    if not data.partly:
        return ()
    if not frame.pictures:
        raise UserError(f"{frame.key}: its boxes are those of what a photograph shows, and it has none")
    return tuple(picture.camera for picture in taken(frame, data.cameras))


def within(cameras: Sequence[Camera], scan: Scan) -> Bool[np.ndarray, " n"]:
    """Which points one of the cameras at least shows, hidden or not; of no cameras all."""
    if not cameras:
        return np.ones(len(scan), bool)
    found: np.ndarray = np.any([in_view(camera, scan) for camera in cameras], axis=0)
    return found


def things_shown(frame: Frame, cameras: Sequence[Camera]) -> tuple[Box, ...]:
    """The things with a point on them that the cameras show, with no more points than these.

    Points beneath a thing lie in its box too, so that where a reader has counted those on it, there are no more.
    """
    boxes, scan = frame.boxes or (), frame.scan[within(cameras, frame.scan)]
    found = [
        now if box.points is None else replace(now, points=min(now.points or 0, box.points))
        for box, now in zip(boxes, counted(boxes, scan) or (), strict=True)
    ]
    return tuple(box for box in found if box.points)


def pictures_side(seen: Sequence[tuple[Tensor, ...]], shape: tuple[int, int]) -> Mapping[str, Any]:
    """What one role is given of a batch of b frames: ``pictures`` (b, n, 3, h, w), ``lift`` (b, n, 3, 4), ``depth`` (b,
    n, h, w), ``shape`` (b, and of the ground in pillars)."""
    parts = (torch.stack(part) for part in zip(*seen, strict=True))
    return dict(zip(("pictures", "lift", "depth"), parts, strict=True)) | {"shape": (len(seen), *shape)}


__all__ = ["Pictured", "limits", "pictured", "pictures_side", "things_shown", "within"]
