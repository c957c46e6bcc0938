"""What is measured of a detector: nuScenes' AP by distance and KITTI's AP by overlap, over the frames of a split."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..data.detection_config import Detection
from ..data.frame import Box, Camera
from ..data.kitti_labels import rectangles
from ..models.decoding import Found
from ..views.detection_source import as_rows
from ..views.overlap import iou, shared_ground
from . import kitti_ap, nuscenes_ap

LEVELS = ("easy", "moderate", "hard")
#: Pixels of height below which a detection counts neither way, by level.
PIXELS = (40, 25, 25)
#: Overlap above which a detection is a hit, of classes of which one name is this; others need a half.
OVERLAPS = {"car": 0.7, "truck": 0.7, "van": 0.7}
#: The second set that is usual beside it.
LOOSE = {0.7: 0.5, 0.5: 0.25}
#: Names of things that a class need not find and may, by one of its own names.
NEIGHBOURS = {"car": "van", "pedestrian": "person_sitting"}


class DetectionTally:
    """Boxes and detections, a frame at a time.

    ``map``, the main metric, is nuScenes' mean AP: over the distances 0.5, 1, 2 and 4 m, and over the classes of which
    there is a thing. ``ap`` has it by class, ``ap_at`` by distance. ``ap_r40`` is KITTI's AP by class, kind and level
    (``car 3d moderate``), ``ap_r40_loose`` the same with the smaller overlaps (0.5, people 0.25).
    """

    def __init__(self, detection: Detection) -> None:
        self.detection = detection
        self.frames: list[tuple[tuple[Box, ...], Found, Camera | None]] = []

    def add(self, boxes: tuple[Box, ...], found: Found, camera: Camera | None = None) -> None:
        """The boxes of a frame, whether they are to be found or not, and what was found.

        Args:
            camera: in whose photograph KITTI's rule of small detections holds.
        """
        self.frames.append((boxes, found, camera))

    def metrics(self) -> dict[str, Any]:
        names = self.detection.names
        places = {name: self.places(i) for i, name in enumerate(names)}
        near = {name: [nuscenes_ap.average_precision(places[name], d) for d in nuscenes_ap.DISTANCES] for name in names}
        there = {name: values for name, values in near.items() if np.isfinite(values).all()}
        table = np.array(list(there.values())).reshape(len(there), -1)
        strict, loose = self._overlapping()
        return {
            "map": float(table.mean()) if table.size else float("nan"),
            "ap": {name: float(np.mean(values)) for name, values in there.items()},
            "ap_at": {f"{d:g} m": float(v) for d, v in zip(nuscenes_ap.DISTANCES, table.mean(axis=0), strict=True)}
            if table.size
            else {},
            "ap_r40": strict,
            "ap_r40_loose": loose,
            "boxes": sum(len(one.truth) for some in places.values() for one in some),
        }

    def places(self, number: int) -> list[nuscenes_ap.Places]:
        """Of one class, by frame."""
        return [self._place(frame, number) for frame in self.frames]

    def _place(self, frame: tuple[tuple[Box, ...], Found, Camera | None], number: int) -> nuscenes_ap.Places:
        boxes, detections, _ = frame
        mine = [box for box in boxes if self.detection.number(box) == number and self.detection.wanted(box)]
        chosen = detections[detections.numbers == number]
        return nuscenes_ap.Places(as_rows(mine)[:, :2], chosen.boxes[:, :2], chosen.scores)

    def errors(self, at: int) -> float:
        """1 - ``map`` of one frame alone, over the classes that it holds; NaN where it holds none."""
        scenes = [[self._place(self.frames[at], i)] for i in range(len(self.detection.names))]
        known = [
            nuscenes_ap.average_precision(scene, d) for scene in scenes if len(scene[0].truth)
            for d in nuscenes_ap.DISTANCES
        ]  # fmt: skip
        return 1.0 - float(np.mean(known)) if known else float("nan")

    def _overlapping(self) -> tuple[dict[str, float], dict[str, float]]:
        """``ap_r40`` and ``ap_r40_loose``, by the same overlaps of the same boxes."""
        strict, loose = dict[str, float](), dict[str, float]()
        for number, (name, words) in enumerate(self.detection.classes.items()):
            least = max((OVERLAPS.get(word.lower(), 0.5) for word in words), default=0.5)
            frames = [self._scenes(number, one) for one in self.frames]
            for kind in ("bev", "3d"):
                for level, title in enumerate(LEVELS):
                    seen = [frame[kind][level] for frame in frames]
                    for out, bound in ((strict, least), (loose, LOOSE[least])):
                        if np.isfinite(value := kitti_ap.average_precision(seen, bound)):
                            out[f"{name} {kind} {title}"] = value
        return strict, loose

    def _scenes(
        self, number: int, frame: tuple[tuple[Box, ...], Found, Camera | None]
    ) -> dict[str, list[kitti_ap.Scene]]:
        """One frame as one class sees it at each level, from above and in space."""
        boxes, found, camera = frame
        words = {word.lower() for word in list(self.detection.classes.values())[number]}
        beside = {NEIGHBOURS[word] for word in words if word in NEIGHBOURS}
        mine = [b for b in boxes if self.detection.number(b) == number or b.name.lower() in beside - words]
        chosen = found[found.numbers == number]
        theirs = as_rows(mine)
        shared = shared_ground(chosen.boxes, theirs)
        overlaps = {kind: iou(chosen.boxes, theirs, above=kind == "bev", shared=shared) for kind in ("bev", "3d")}
        high = np.full(len(chosen), np.inf)
        if camera is not None:
            corners = rectangles(chosen.boxes, camera)
            high = corners[:, 3] - corners[:, 1]
        asked = [self.detection.number(b) == number and self.detection.wanted(b) for b in mine]
        passed = [
            np.array([not ask or (b.level or 0) > level for ask, b in zip(asked, mine, strict=True)], dtype=bool)
            for level in range(len(PIXELS))
        ]
        return {
            kind: [
                kitti_ap.Scene(overlap, chosen.scores, passed[level], high < pixels)
                for level, pixels in enumerate(PIXELS)
            ]
            for kind, overlap in overlaps.items()
        }


__all__ = ["LEVELS", "DetectionTally"]
