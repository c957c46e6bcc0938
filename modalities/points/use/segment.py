"""A saved student as a segmenter of scans: a class for every point, whatever of them the model itself sees."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int
from PIL import Image

from xmodal_kd.runtime.errors import UserError

from ..data.config import PointsData
from ..data.frame import UNLABELLED, Camera, Frame, Picture, Scan
from ..evaluate.whole_scan import VEHICLE, answer, whole_scan
from ..views.views import see
from .saved import Saved, prepared
from .unlike import unlike


@dataclass(frozen=True)
class Segmented:
    """What a model makes of a scan.

    Attributes:
        labels: ``(n,)`` class of each point; -1 for missing points (NaN), for returns from the vehicle itself, and, of
            models that see photographs, outside them or hidden in them.
        confidence: ``(n,)`` probability that the model gives its class, 0 where there is none.
        seen: ``(n,)`` whether the model itself saw the point; others have the answer of the nearest that it saw.
        pixels: ``(h, w)`` class of each pixel of the photograph, of models that see photographs.
        notes: what was done to the scan so that the model could see it, and how it is unlike what the model learned.
    """

    labels: Int[np.ndarray, " n"]
    confidence: Float[np.ndarray, " n"]
    seen: Bool[np.ndarray, " n"]
    pixels: Int[np.ndarray, "h w"] | None = None
    notes: tuple[str, ...] = ()


class Segmenter(Saved):
    """Segments with a saved student; see `Saved`."""

    def __init__(self, folder: Path | str, device: str = "cpu") -> None:
        super().__init__(folder, device)
        self._data = PointsData.model_validate(
            {
                "sensor": self.card.sensor,
                "student": self.view.model_copy(update={"classes": None}),
                "image": self.card.image,
            }
        )

    def segment(self, scan: Scan, *, picture: Picture | None = None, beams: int | None = None) -> Segmented:
        """A class for every point.

        Args:
            scan: as the sensor saw it, with all beams; those that the model was not trained on are left out.
            picture: for a model that sees photographs.
            beams: lasers of the sensor, where the scan does not know its rings; None: as many as the sensor has that
                the model was trained on.

        Raises:
            UserError: the scan is empty or lies out of view, a photograph is needed, or rings cannot be found.
        """
        if not len(scan):
            raise UserError("the scan is empty")
        if not (there := scan.there).all():
            return self._present(scan, there, picture, beams)
        if self.view.sees == "image":
            return self._pixels(scan, picture)
        outside, given = np.flatnonzero(scan.distance >= VEHICLE), scan
        scan, notes = prepared(scan, self.view, self.sensor, beams)
        if len(outside) < len(scan):
            notes += (f"{len(scan) - len(outside)} points within {VEHICLE:g} m are the vehicle itself: no label",)
        if not len(outside):
            raise UserError(f"all {len(scan)} points lie within {VEHICLE:g} m of the sensor: nothing to segment")
        notes += unlike(given[outside], self.view, self.sensor)
        found = whole_scan(self.model, [Frame("scan", scan)], self.view, self._data)
        if not found.seen.any():
            raise UserError(f"no point is in the model's view: {VEHICLE:g} to {self.sensor.max_range:g} m are needed")
        return Segmented(found.labels, found.confidence, found.seen, notes=notes)

    def _present(self, scan: Scan, there: np.ndarray, picture: Picture | None, beams: int | None) -> Segmented:
        """What is made of the points with a place, in the places of the file; the others have no label."""
        if not there.any():
            raise UserError(f"all {len(scan)} points are NaN or infinite: nothing to segment")
        found = self.segment(scan[there], picture=picture, beams=beams)
        whole = Segmented(np.full(len(scan), UNLABELLED), np.zeros(len(scan)), np.zeros(len(scan), bool), found.pixels)
        for name in ("labels", "confidence", "seen"):
            getattr(whole, name)[there] = getattr(found, name)
        missing = f"{len(scan) - int(there.sum())} of {len(scan)} points are missing (NaN): no label"
        return replace(whole, notes=(*found.notes, missing))

    def _pixels(self, scan: Scan, picture: Picture | None) -> Segmented:
        if picture is None:
            raise UserError("this model sees photographs: give one (--image), and a calibration to label points")
        seen = see([Frame("scan", scan, pictures=(picture,))], self.view, self._data)
        rows, sure = answer(self.model, seen.inputs[None])
        height, width = picture.rgb.shape[:2]
        small = Image.fromarray(rows.reshape(self.card.image).astype(np.uint8))
        pixels = np.asarray(small.resize((width, height), Image.Resampling.NEAREST)).astype(np.int64)
        here = seen.element >= 0
        labels = np.where(here, rows[seen.element], UNLABELLED)
        return Segmented(labels, np.where(here, sure[seen.element], 0.0), here, pixels)


def uncalibrated(rgb: np.ndarray) -> Picture:
    """A photograph of which nobody knows what it shows of the scan: all points lie behind its camera."""
    behind = np.diag([1.0, 1.0, 0.0, 1.0])
    behind[2, 3] = -1
    return Picture(Camera(np.eye(3), behind, *rgb.shape[:2]), rgb)


__all__ = ["Segmented", "Segmenter", "uncalibrated"]
