"""The `Source` of one split for detectors: the points or photographs that each side sees of a frame, and its things."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from xmodal_kd.adapter.adapter import is_teacher
from xmodal_kd.runtime.bounded_cache import BoundedCache
from xmodal_kd.runtime.random_streams import Streams

from ..data.config import PointsData, View
from ..data.frame import Box, Camera, Frame, Scan
from ..data.frames import Frames, frames_of
from .augment import apply_points, drawn, turned
from .ground import Ground, pillars
from .pictured import Pictured, limits, pictured, pictures_side, things_shown, within
from .plan import batches_of
from .views import seen_scan

#: Bytes of points that one source keeps in memory; past that they are made anew.
MEMORY = 1 << 30


@dataclass(frozen=True)
class Moment:
    """A frame as it is.

    Attributes:
        seen: by role that sees something of its own, its photographs, or ``(n, 3)`` points in metres, with their
            intensity ``(n, 4)``.
        boxes: ``(m, 7)`` x, y, z, length, width, height, yaw of the things to find.
        numbers: ``(m,)`` their classes.
        things: all labelled boxes; where detectors look through cameras, those that these show.
        camera: that sees what has boxes, where others have none; None: all around.
    """

    key: str
    seen: Mapping[str, Float[np.ndarray, "n c"] | Pictured]
    boxes: Float[np.ndarray, "m 7"]
    numbers: Int[np.ndarray, " m"]
    things: tuple[Box, ...] = ()
    camera: Camera | None = None

    @property
    def nbytes(self) -> int:
        return sum(seen.nbytes for seen in self.seen.values())

    def pictured(self, role: str) -> Pictured:
        """The photographs that a role sees, or a further teacher that sees what the teacher sees."""
        seen = self.seen[role if role in self.seen else "teacher" if is_teacher(role) else "student"]
        assert isinstance(seen, Pictured)
        return seen

    def points(self, role: str) -> Float[np.ndarray, "n c"]:
        """Those that a role sees; of one that sees photographs those that they show."""
        seen = self.seen[role]
        return seen.xyz if isinstance(seen, Pictured) else seen


@dataclass(frozen=True)
class Sample:
    """A frame as a step sees it: by role features and pillar of each point, or photographs, their lifts and depths;
    boxes and classes of the things."""

    index: int
    key: str
    seen: Mapping[str, tuple[Tensor, ...]]
    boxes: Tensor
    numbers: Tensor


class DetectionSource:
    """The frames of one split, as functions of (epoch, index). Teacher and student see the same augmented frame.

    Raises:
        UserError: a folder that is not what `data.sources` says, or frames that are not there.
    """

    def __init__(self, data: PointsData, split: str, streams: Streams, batch_size: int) -> None:
        self.data, self.split, self.streams, self.batch_size = data, split, streams, batch_size
        self.frames: Frames = frames_of(data, split)
        #: What each role sees; a further teacher without a view of its own sees what the teacher sees.
        self.views = {"student": data.student, "teacher": data.teacher}
        self.views |= {f"teacher-{name}": view for name, view in data.teachers.items()}
        self.grounds = {role: Ground.of(data.detection, view.cell) for role, view in self.views.items()}
        self._memory: BoundedCache[Moment] = BoundedCache(MEMORY)

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def labelled(self) -> Sequence[int]:
        """Indexes of the frames whose things have boxes."""
        return self.frames.labelled

    def plan(self, epoch: int) -> Sequence[Sequence[int]]:
        """Shuffled full batches of the training split; every sample in order otherwise."""
        return batches_of(self.split, len(self), self.batch_size, self.streams, epoch)

    def moment(self, index: int) -> Moment:
        return self._memory.get(index, lambda: self._make(index))

    def _make(self, index: int) -> Moment:
        frames = self.frames[index]
        things, cameras = frames[0].boxes or (), limits(frames[0], self.data)
        if cameras and self.data.sources != "kitti":  # whose boxes are those of the photograph already
            things = things_shown(frames[0], cameras)
        seen = {
            role: pictured(frames[0], self.data) if view.sees == "image" else points_of(frames, view, cameras)
            for role, view in self.views.items()
        }
        wanted = [box for box in things if self.data.detection.wanted(box)]
        numbers = np.array([self.data.detection.number(box) for box in wanted], dtype=np.int64)
        camera = frames[0].pictures[0].camera if self.data.sources == "kitti" else None
        return Moment(frames[0].key, seen, as_rows(wanted), numbers, things, camera)

    def sample(self, index: int, epoch: int) -> Sample:
        if self.split != "train":
            return self.clean(index)
        moment, at = self.moment(index), (self.split, epoch, index)
        motion = drawn(self.data.augment, self.streams.numpy("augment", *at))
        boxes = turned(moment.boxes, motion)
        seen = {}
        for role, view in moment.seen.items():
            rng = self.streams.numpy("points", role, *at)
            if isinstance(view, Pictured):
                seen[role] = view.tensors(motion, self.data.augment.colour, rng)
                continue
            moved = apply_points(torch.from_numpy(view), self.data.augment, rng, motion=motion)
            seen[role] = pillars(moved.inputs.numpy(), self.grounds[role])
        return self._sample(index, moment, seen, boxes)

    def clean(self, index: int) -> Sample:
        """A frame as it is."""
        moment = self.moment(index)
        seen = {
            role: view.tensors() if isinstance(view, Pictured) else pillars(view, self.grounds[role])
            for role, view in moment.seen.items()
        }
        return self._sample(index, moment, seen, moment.boxes)

    @staticmethod
    def _sample(
        index: int, moment: Moment, seen: Mapping[str, tuple[Tensor, ...]], boxes: Float[np.ndarray, "m 7"]
    ) -> Sample:
        places, numbers = torch.from_numpy(boxes).float(), torch.from_numpy(moment.numbers)
        return Sample(index, moment.key, seen, places, numbers)

    def collate(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """A batch of b frames.

        ``ids`` (b,), ``keys``; ``boxes`` and ``numbers``: of each frame (m, 7) and (m,); ``seen``: by role ``points``
        (n, 8 or 9), ``cell`` (n,) pillar counted through the batch, and ``shape`` (b, h, w), or what `pictures_side`
        gives of photographs.
        """
        return {
            "ids": torch.tensor([s.index for s in samples]),
            "keys": [s.key for s in samples],
            "boxes": [s.boxes for s in samples],
            "numbers": [s.numbers for s in samples],
            "seen": {role: self._side(role, [s.seen[role] for s in samples]) for role in self.views},
        }

    def _side(self, role: str, seen: Sequence[tuple[Tensor, ...]]) -> Mapping[str, Any]:
        ground = self.grounds[role]
        return pictures_side(seen, ground.shape) if self.views[role].sees == "image" else side(seen, ground)

    def describe(self) -> dict[str, Any]:
        return {"split": self.split, "frames": len(self), "labelled": len(self.labelled)} | self.frames.describe()


def side(seen: Sequence[tuple[Tensor, ...]], ground: Ground) -> dict[str, Any]:
    """What one role is given of a batch, of points in pillars."""
    cells = [cell + item * ground.cells for item, (_, cell) in enumerate(seen)]
    return {
        "points": torch.cat([points for points, _ in seen]), "cell": torch.cat(cells),
        "shape": (len(seen), *ground.shape),
    }  # fmt: skip


def points_of(frames: list[Frame], view: View, cameras: Sequence[Camera] = ()) -> Float[np.ndarray, "n c"]:
    """The points that a detector is given, as `columns`: what the view leaves, and of that what the cameras show."""
    scan, _ = seen_scan(frames, view)
    return columns(scan[scan.there & within(cameras, scan)], view)


def columns(scan: Scan, view: View) -> Float[np.ndarray, "n c"]:
    """x, y, z of each point, and its intensity where the view has it."""
    more = [scan.intensity[:, None]] if view.intensity else []
    found: np.ndarray = np.concatenate([scan.xyz, *more], axis=1).astype(np.float32)
    return found


def as_rows(boxes: Sequence[Box]) -> Float[np.ndarray, "m 7"]:
    """x, y, z, length, width, height, yaw of each."""
    rows: np.ndarray = np.array([(*box.centre, *box.size, box.yaw) for box in boxes], dtype=np.float64).reshape(-1, 7)
    return rows


__all__ = ["DetectionSource", "Moment", "Sample", "as_rows", "columns", "points_of", "side"]
