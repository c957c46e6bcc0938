"""The `Source` of one split: frames, made or read, and what teacher and student see of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from xmodal_kd.adapter.adapter import is_teacher
from xmodal_kd.runtime.bounded_cache import BoundedCache
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.progress import console, each
from xmodal_kd.runtime.random_streams import Streams

from ..data.config import PointsData, View
from ..data.frame import UNLABELLED, Frame
from ..data.frames import Frames, Kept, frames_of
from ..data.stored_logits import StoredLogits
from .correspondence import Correspondence, from_elements
from .correspondence import collate as collate_matches
from .plan import batches_of
from .regions import VOXELS, cells, minor, supervoxels
from .superpixels import superpixels
from .views import Seen, augmented, fitted, see, thinned

#: Bytes of views that one source keeps in memory; past that they are made anew.
MEMORY = 1 << 30
#: Frames at most that the rows of each class are counted in, for the weights of classes.
COUNTED = 1000


@dataclass(frozen=True)
class Moment:
    """A frame as it is, seen from both sides."""

    key: str
    teacher: Seen
    student: Seen
    others: Mapping[str, Seen]
    """By further teachers that see something of their own, by role."""
    patch: Int[np.ndarray, " N"] | None = None
    """The superpixel of the photograph that shows each point of the sweep, -1 for none; None where nobody asks."""

    @property
    def nbytes(self) -> int:
        patch = 0 if self.patch is None else self.patch.nbytes
        return patch + sum(seen.nbytes for seen in (self.teacher, self.student, *self.others.values()))


@dataclass(frozen=True)
class Sample:
    """A frame as a step sees it.

    Attributes:
        supervoxel: ``(rows,)`` of the student, 0 to K - 1, or -1.
        superpixel: ``(rows,)`` of the student, or -1; None where nobody asks.
        others: what further teachers see, by role, where that is not what the teacher sees.
    """

    index: int
    key: str
    student: Seen
    teacher: Seen
    supervoxel: Int[np.ndarray, " rows"]
    others: Mapping[str, Seen]
    superpixel: Int[np.ndarray, " rows"] | None = None


class PointsSource:
    """The frames of one split, as functions of (epoch, index).

    Args:
        frames: those of the split, where they are known already.
    Raises:
        UserError: a folder that is not what `data.sources` says, or frames that are not there.
    """

    def __init__(
        self, data: PointsData, split: str, streams: Streams, batch_size: int, frames: Frames | None = None
    ) -> None:
        self.data, self.split, self.streams, self.batch_size = data, split, streams, batch_size
        self.frames: Frames = frames_of(data, split) if frames is None else frames
        if split == "test":  # measured on, and then seen with fewer beams, point by point and in pictures
            self.frames = self.frames if isinstance(self.frames, Kept) else Kept(self.frames)
        #: The role that is trained: a teacher that learns sees augmented frames, a frozen one as the recipe says.
        self.learns = "student"
        #: Of which frames the labels may be looked at.
        self.known = frozenset(self.frames.labelled)
        self._memory: BoundedCache[Moment] = BoundedCache(MEMORY)

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def labelled(self) -> Sequence[int]:
        """Indexes of the frames that have labels."""
        return self.frames.labelled

    def plan(self, epoch: int) -> Sequence[Sequence[int]]:
        """Shuffled full batches of the training split; every sample in order otherwise."""
        return batches_of(self.split, len(self), self.batch_size, self.streams, epoch)

    def tell(self, role: str, stored: StoredLogits) -> None:
        """From now on `role`, a teacher that ran elsewhere, sees what it said of each frame."""
        self.frames.tell(role, stored)
        self.data, self._memory = self.data.answered(role), BoundedCache(MEMORY)

    def moment(self, index: int) -> Moment:
        return self._memory.get(index, lambda: self._make(index))

    def _make(self, index: int) -> Moment:
        frames, data = self.frames[index], self.data
        others = {role: see(frames, view, data) for role, view in self._others.items()}
        patch = None if data.superpixels is None else patches(frames[0], data, data.superpixels)
        teacher = see(frames, data.teacher, data)
        student = teacher if data.student == data.teacher else see(frames, data.student, data)
        return Moment(frames[0].key, teacher, student, others, patch)

    def sample(self, index: int, epoch: int) -> Sample:
        if self.split != "train":
            return self.clean(index)
        moment, at, data = self.moment(index), (self.split, epoch, index), self.data
        student = self._augmented(moment.student, data.student, "student", at)
        teacher, *others = (
            self._clean(seen, view, index) if self.repeats else self._augmented(seen, view, side, at)
            for side, (seen, view) in self._teachers(moment).items()
        )
        labels = student.labels if index in self.known else np.full_like(student.labels, UNLABELLED)
        rng = self.streams.numpy("supervoxels", *at)
        drawn = supervoxels(student.xyz, labels, data.supervoxels, rng, minor(data.taxonomy))
        beside = dict(zip(self._others, others, strict=True))
        return Sample(index, moment.key, student, teacher, drawn, beside, _shown(moment, student))

    @property
    def _others(self) -> dict[str, View]:
        """Further teachers' own views, by role."""
        return {f"teacher-{name}": view for name, view in self.data.teachers.items()}

    def _teachers(self, moment: Moment) -> dict[str, tuple[Seen, View]]:
        """What each teacher sees of a moment, the first one's first."""
        others = {role: (moment.others[role], view) for role, view in self._others.items()}
        return {"teacher": (moment.teacher, self.data.teacher), **others}

    @property
    def repeats(self) -> bool:
        """Whether the teacher sees the same of a training frame every time."""
        return self.split == "train" and self.data.teacher_view == "clean" and not is_teacher(self.learns)

    def _augmented(self, seen: Seen, view: View, side: str, at: tuple[str, int, int]) -> Seen:
        """Both sides are turned alike where both see the scan; what they drop is each side's own."""
        seen = thinned(seen, view.points, self.streams.numpy("thin", side, *at))
        return augmented(seen, view, self.data.augment, self.streams.numpy("augment", *at))

    def clean(self, index: int) -> Sample:
        """A frame as it is."""
        moment = self.moment(index)
        student = self._clean(moment.student, self.data.student, index)
        teacher, *others = (self._clean(seen, view, index) for seen, view in self._teachers(moment).values())
        empty, beside = np.full(student.rows, -1), dict(zip(self._others, others, strict=True))
        return Sample(index, moment.key, student, teacher, empty, beside, _shown(moment, student))

    def _clean(self, seen: Seen, view: View, index: int) -> Seen:
        return thinned(seen, view.points, self.streams.numpy("thin", self.split, index))

    def collate(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """A batch of b frames.

        ``ids`` (b,), ``keys``; ``student`` and ``teacher``: what each sees, with ``inputs`` (b, c, h, w) or
        (points, 4), ``lengths`` (b,) rows of each frame, ``labels``, ``valid`` (rows,), and of the student's rows
        ``distance``, ``voxels``, ``supervoxels``, ``superpixels`` (rows,) and ``xyz`` (rows, 3); ``match``: from the
        teacher's rows to the student's; ``repeats``: whether the teacher sees these frames the same way every time;
        ``others``: the like of
        ``teacher`` for each further teacher with a view of its own, by role, with its ``match`` inside.
        """
        return {
            "others": {
                role: _side(seen := [s.others[role] for s in samples]) | {"match": _match(seen, samples)}
                for role in self._others
            },
            "ids": torch.tensor([s.index for s in samples]),
            "keys": [s.key for s in samples],
            "student": _side([s.student for s in samples]) | self._places(samples),
            "teacher": _side([s.teacher for s in samples]),
            "match": _match([s.teacher for s in samples], samples),
            "repeats": self.repeats,
        }

    def _places(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Where the student's rows lie, and in which regions, numbered through the batch."""
        xyz = np.concatenate([s.student.xyz for s in samples])
        item = np.repeat(np.arange(len(samples)), [s.student.rows for s in samples])
        voxel, supervoxel = cells(xyz, VOXELS), np.concatenate([s.supervoxel for s in samples])
        shown = [s.superpixel for s in samples if s.superpixel is not None]
        return ({"superpixels": torch.from_numpy(np.concatenate(shown))} if shown else {}) | {
            "xyz": torch.from_numpy(xyz),
            "distance": torch.from_numpy(np.nan_to_num(np.linalg.norm(xyz, axis=1), nan=np.inf)),
            "voxels": torch.from_numpy(np.where(voxel >= 0, voxel + item * int(np.prod(VOXELS)), -1)),
            "supervoxels": torch.from_numpy(np.where(supervoxel >= 0, supervoxel + item * self.data.supervoxels, -1)),
        }

    def count(self, indexes: Sequence[int] | None = None) -> Int[np.ndarray, " c"]:
        """Rows of each class that the student sees in the labelled frames, or in those of `indexes`: of more than
        `COUNTED` in as many of them, evenly among all."""
        total, asked = np.zeros(len(self.data.taxonomy), dtype=np.int64), self.labelled if indexes is None else indexes
        chosen = np.linspace(0, len(asked) - 1, min(len(asked), COUNTED)).round().astype(int).tolist()
        for index in each([asked[at] for at in chosen], "counting classes", console):
            labels = self.moment(index).student.labels
            total += np.bincount(labels[labels >= 0], minlength=len(total))
        return total

    def describe(self) -> dict[str, Any]:
        return {"split": self.split, "frames": len(self), "labelled": len(self.labelled)} | self.frames.describe()


def patches(frame: Frame, data: PointsData, count: int) -> Int[np.ndarray, " N"]:
    """The superpixel that shows each point of a sweep, -1 for none, in the photograph as it is seen."""
    pixel = see([frame], View(sees="image"), data).element
    found: np.ndarray = np.where(pixel >= 0, superpixels(fitted(frame, data.image).rgb, count).reshape(-1)[pixel], -1)
    return found


def _shown(moment: Moment, student: Seen) -> Int[np.ndarray, " rows"] | None:
    """The superpixel of each row of the student: of its points that the photograph shows, the last one's."""
    if moment.patch is None:
        return None
    rows = np.full(student.rows, -1, dtype=np.int64)
    both = (student.element >= 0) & (moment.patch >= 0)
    rows[student.element[both]] = moment.patch[both]
    return rows


def _match(seen: Sequence[Seen], samples: Sequence[Sample]) -> Correspondence:
    """From the rows of what a teacher has seen of each sample to the student's."""
    pairs = zip(seen, samples, strict=True)
    return collate_matches([from_elements(x.element, s.student.element, x.rows, s.student.rows) for x, s in pairs])


def _side(seen: Sequence[Seen]) -> dict[str, Tensor]:
    inputs = [one.inputs for one in seen]
    if inputs[0].ndim == 3 and (odd := next((x for x in inputs if x.shape != inputs[0].shape), None)) is not None:
        raise UserError(
            f"a batch of range images of {inputs[0].shape[1]} and of {odd.shape[1]} beams: the frames come from "
            "different sensors: give one sensor's, which data.sensor names, or set data.student.beams and "
            "data.teacher.beams to what both have"
        )
    return {
        "inputs": torch.stack(inputs) if inputs[0].ndim == 3 else torch.cat(inputs),
        "lengths": torch.tensor([one.rows for one in seen]),
        "labels": torch.from_numpy(np.concatenate([one.labels for one in seen]).astype(np.int64)),
        "valid": torch.from_numpy(np.concatenate([one.valid for one in seen])),
    }


__all__ = ["Moment", "PointsSource", "Sample"]
