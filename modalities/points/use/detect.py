"""A saved detector: the boxes of the things in a scan, or in photographs of one moment."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from xmodal_kd.runtime.checkpoint import write_json
from xmodal_kd.runtime.errors import UserError

from ..data.calibration import read_camera
from ..data.files import read_points
from ..data.frame import Camera, Frame, Picture, Scan
from ..data.kitti_labels import lines, rectangles, write_lines
from ..data.readers.base import read_rgb
from ..data.readers.kitti import read_object_calibration
from ..evaluate.whole_scan import VEHICLE
from ..models import CenterPointCamera
from ..models.decoding import Found, found
from ..show.boxes import from_above
from ..show.pictures import write_picture
from ..views.detection_source import columns, side
from ..views.frustum import focal, lift_of
from ..views.ground import Ground, pillars
from ..views.views import seen_scan, sized
from .output import stem
from .saved import Saved, prepared
from .unlike import unlike

#: What KITTI calls our classes; others keep their names.
NAMES = {"car": "Car", "truck": "Truck", "van": "Van", "cyclist": "Cyclist", "person": "Pedestrian"}
NAMES |= {"pedestrian": "Pedestrian", "tram": "Tram"}
#: Height and width of KITTI's photographs, where there is none beside the scan.
PHOTOGRAPH = (375, 1242)
FORMATS = ("kitti", "json")
#: Share by which a focal length may differ from the learned one.
LENS = 0.1


@dataclass(frozen=True)
class Detected:
    """What a detector makes of a scan or of photographs.

    Attributes:
        found: its boxes, the surest first, in the scan's own axes and metres; of photographs in the LiDAR's, beside
            which their calibration says that the cameras stand.
        xyz: ``(n, 3)`` the points that the detector was given, none of photographs.
        notes: what was done to the scan so that the detector could see it, and how it is unlike what it learned.
    """

    found: Found
    xyz: Float[np.ndarray, "n 3"]
    notes: tuple[str, ...] = ()


class Detector(Saved):
    """Detects with a saved detector; see `Saved`."""

    detects = True

    def __init__(self, folder: Path | str, device: str = "cpu") -> None:
        super().__init__(folder, device)
        assert self.card.detection is not None
        self.detection = self.card.detection
        self.ground = Ground.of(self.detection, self.view.cell)
        self.cells = Ground.of(self.detection, self.view.cell, getattr(self.model, "merged", 1))

    def detect(self, scan: Scan, *, beams: int | None = None, least: float = 0.3) -> Detected:
        """The boxes of the things in a scan.

        Args:
            scan: as the sensor saw it, with all beams; those that the model was not trained on are left out.
            beams: lasers of the sensor, where the scan does not know its rings; None: as many as the sensor has that
                the model was trained on.
            least: score of a box, from 0 to 1.

        Raises:
            UserError: no point lies where the detector looks, rings cannot be found, or it sees photographs.
        """
        if self.view.sees == "image":
            raise UserError("the detector sees photographs, and this is a scan: give it photographs")
        there = scan[scan.there & (scan.distance >= VEHICLE)]
        if not len(there):
            raise UserError(f"none of the scan's {len(scan)} points lies beyond {VEHICLE:g} m: nothing to detect in")
        ready, notes = prepared(there, self.view, self.sensor, beams)
        seen, _ = seen_scan([Frame("scan", ready)], self.view.model_copy(update={"sweeps": 1}))
        points, cell = pillars(columns(seen, self.view), self.ground)
        if not len(points):
            x0, y0, x1, y1 = self.detection.range
            raise UserError(
                f"no point lies where the detector looks, {x0:g} to {x1:g} m ahead and {y0:g} to {y1:g} m to the left"
            )
        given = side([(points, cell)], self.ground)
        with torch.no_grad():
            answer = self.model(given["points"].to(self.device), given["cell"].to(self.device), given["shape"])
        boxes = found(answer, self.cells, least=least)[0]
        return Detected(boxes, seen.xyz, notes + unlike(there, self.view, self.sensor))

    def look(self, pictures: Sequence[Picture], *, least: float = 0.3) -> Detected:
        """The boxes of the things that photographs of one moment show.

        Args:
            pictures: of any size, one for each camera that the model learned from, in that order.
            least: score of a box, from 0 to 1.

        Raises:
            UserError: it sees scans, or another number of photographs.
        """
        model, number = self.model, max(1, len(self.view.cameras))
        if not isinstance(model, CenterPointCamera):
            raise UserError("the detector sees LiDAR scans, and this is a photograph: give it scans")
        if len(pictures) != number:
            raise UserError(
                f"the detector sees {number} photographs of a moment ({', '.join(self.view.cameras) or 'one camera'}), "
                f"not {len(pictures)}"
            )
        ready = [sized(picture, self.card.image) for picture in pictures]
        lifts = np.stack([lift_of(picture.camera) for picture in ready])
        rgb = np.stack([picture.rgb.transpose(2, 0, 1) for picture in ready])
        given = torch.from_numpy(rgb).float()[None].to(self.device) / 255
        with torch.no_grad():
            cell = model.cells(torch.from_numpy(lifts)[None].to(self.device), self.card.image, self.ground)
            answer = model(given, cell, (1, *self.ground.shape))
        boxes = found(answer, self.cells, least=least)[0]
        return Detected(boxes, np.zeros((0, 3), np.float32), self._other_lens(focal(lifts[0])))

    def _other_lens(self, mine: float) -> tuple[str, ...]:
        """Whether a focal length is another than was learned: depth is told by size."""
        learned = self.card.focal
        if learned is None or abs(mine / learned - 1) <= LENS:
            return ()
        height, width = self.card.image
        return (
            f"the focal length is {mine:.0f} pixels at {height} x {width}, the model learned {learned:.0f}: boxes will "
            f"be {'too near' if mine > learned else 'too far'}",
        )


def process(
    detector: Detector, path: Path, out: Path, *, beams: int | None = None, calib: Path | None = None,
    least: float = 0.3, below: Path = Path(), form: str = "kitti",
) -> dict[str, Any]:  # fmt: skip
    """Detect in one file and write ``NAME.txt`` (KITTI's lines) or ``NAME.json``, and ``NAME.png``, from above.

    Where the scan lies in a folder ``velodyne`` with ``calib`` beside it, or the file is a photograph, the lines are in
    the camera's frame, of what its photograph shows, as the benchmark wants them; else in the LiDAR's own place, with
    axes as a camera's.

    Args:
        calib: of a photograph, as `read_camera` reads it; None: ``calib/NAME.txt`` beside its folder.

    Returns:
        What ``--json`` prints: ``path``, ``points`` (of a scan), ``boxes`` (name, score, centre, size, yaw in the
        LiDAR's frame), ``txt`` or ``json``, ``png``, ``notes``.

    Raises:
        UserError: a file is missing or broken, or the detector cannot see it.
    """
    said: dict[str, Any] = {"path": str(path)}
    rectified: np.ndarray | None
    if detector.view.sees == "image":
        if beams is not None:
            raise UserError("--beams is of scans, and the detector sees photographs: leave it out")
        rectified, picture = photographed(path, calib)
        camera: Camera | None = picture.camera
        seen = detector.look([picture], least=least)
    else:
        if calib is not None:
            raise UserError("--calib is of photographs, and the detector sees scans: leave it out")
        scan = read_points(path)
        seen = detector.detect(scan, beams=beams, least=least)
        said["points"] = len(scan)
        rectified, camera = calibrated(path)
    some, name = seen.found, out / below / stem(path)
    said |= {
        "boxes": [
            {"name": detector.classes[number], "score": round(float(score), 4), "centre": _rounded(box[:3]),
             "size": _rounded(box[3:6]), "yaw": round(float(box[6]), 4)}
            for box, number, score in zip(some.boxes, some.numbers.tolist(), some.scores, strict=True)
        ],
    }  # fmt: skip
    notes, written = list(seen.notes), {}
    if form == "json":
        write_json(name.with_name(f"{name.name}.json"), said | {"notes": notes})
        written["json"] = str(name.with_name(f"{name.name}.json"))
    else:
        if rectified is None:
            notes.append("no calib beside its folder velodyne: the lines are of the LiDAR's place, not of a camera's")
        shown = some if camera is None else some[in_photograph(some, camera)]
        if len(shown) < len(some):
            notes.append(
                f"{len(some) - len(shown)} boxes outside the photograph are not in the text: it is its camera's"
            )
        names = [NAMES.get(detector.classes[i], detector.classes[i]) for i in shown.numbers.tolist()]
        text = lines(shown.boxes, names, shown.scores, rectified=rectified, camera=camera)
        written["txt"] = str(write_lines(name.with_name(f"{name.name}.txt"), text))
    drawn = from_above(seen.xyz, some.boxes[:0], some, detector.detection.range)
    png = write_picture(name.with_name(f"{name.name}.png"), drawn)
    return said | written | {"png": str(png), "notes": notes}


def calibrated(scan: Path) -> tuple[np.ndarray | None, Camera | None]:
    """Of a scan in KITTI's layout: from the LiDAR to the rectified camera, and camera 2."""
    folder = scan.resolve().parent
    path = folder.parent / "calib" / f"{stem(scan)}.txt"
    if folder.name != "velodyne" or not path.is_file():
        return None, None
    calibration = read_object_calibration(path)
    photograph = path.parents[1] / "image_2" / f"{path.stem}.png"
    height, width = read_rgb(photograph).shape[:2] if photograph.is_file() else PHOTOGRAPH
    return calibration.lidar_to_rectified, Camera(calibration.intrinsics, calibration.lidar_to_camera, height, width)


def photographed(path: Path, calib: Path | None) -> tuple[np.ndarray, Picture]:
    """From the LiDAR to the frame of a camera's lines, and its photograph.

    Raises:
        UserError: the photograph or its calibration is missing or broken.
    """
    beside = Path(os.path.realpath(path)).parent.parent / "calib" / f"{path.stem}.txt"
    if calib is None and not beside.is_file():
        raise UserError(f"{path}: no calibration {beside}: name one by --calib")
    rgb = read_rgb(path)
    if calib is None:
        read = read_object_calibration(beside)
        rectified, intrinsics, moved = read.lidar_to_rectified, read.intrinsics, read.lidar_to_camera
    else:
        intrinsics, moved = read_camera(calib)
        rectified = moved
    return rectified, Picture(Camera(intrinsics, moved, rgb.shape[0], rgb.shape[1]), rgb)


def in_photograph(some: Found, camera: Camera) -> np.ndarray:
    """Which boxes a photograph shows a part of."""
    left, top, right, bottom = rectangles(some.boxes, camera).T
    found: np.ndarray = (right > left) & (bottom > top)
    return found


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 4) for value in values]


__all__ = ["FORMATS", "Detected", "Detector", "process"]
