"""Key frames of nuScenes, each a folder: a scan, six photographs, and ``frame.json``, which ties them together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from xmodal_kd.runtime.bounded_files import parse_json, read_bytes
from xmodal_kd.runtime.errors import UserError

from ..classes import EIGHT, Classes
from ..files import NUSCENES_TURN, read_points
from ..frame import Box, Frame, Scan
from . import base
from .base import Matrix

DESCRIPTION = "frame.json"
#: Where the description names the labels of the points, as mmdetection3d's does.
MASK = "pts_semantic_mask_path"
#: Bytes of such a file: no sensor has as many points.
MOST_POINTS = 1 << 26
#: Nearer returns come from the car itself, metres.
NEAREST = 1.0


class NuScenes:
    """A folder with ``frame.json``, or a folder of such folders.

    The description has ``lidar`` (``file``), ``images`` by camera (``file``, ``cam2img`` 3 x 3, ``lidar2cam`` 4 x 4),
    ``instances`` (``bbox_3d``: gravity centre, length, width, height, yaw in the LiDAR's frame; ``bbox_label_3d``) and
    the names of the labels, ``metainfo.categories``. nuScenes' LiDAR looks along y; here, as everywhere, along x.
    Where it has ``pts_semantic_mask_path``, a byte a point of nuScenes-lidarseg, and the recipe names classes, points
    are labelled: the eight have no ids there. A single frame has no pose.
    """

    def __init__(self, folder: Path, classes: Classes = EIGHT) -> None:
        places = [folder, *sorted(folder.glob("*"))]
        self._folders = [place for place in places if (place / DESCRIPTION).is_file()]
        if not self._folders:
            raise UserError(f"{folder}: no nuScenes frame: {DESCRIPTION} is expected there or in its folders")
        self.keys = [place.resolve().name for place in self._folders]
        self.warnings: list[str] = []
        self._classes = classes
        masked = [classes is not EIGHT and MASK in self._described(i)[1] for i in range(len(self._folders))]
        self._masked, self.classes = masked, classes.names if any(masked) else ()

    def __len__(self) -> int:
        return len(self.keys)

    def files(self, i: int, pictures: bool = True) -> list[Path]:
        folder = self._folders[i]
        path, content = self._described(i)
        images = _get(content, path, "images").values() if pictures else ()
        named = [_get(content, path, "lidar", "file"), *(_get(image, path, "file") for image in images)]
        named += [_get(content, path, MASK)] if self._masked[i] else []
        return [path, *(folder / name for name in named)]

    def labelled(self, i: int) -> bool:
        return self._masked[i]

    def boxed(self, i: int) -> bool:
        return "instances" in self._described(i)[1]

    def _described(self, i: int) -> tuple[Path, Any]:
        path = self._folders[i] / DESCRIPTION
        return path, parse_json(base.read_text(path), path)

    def frame(self, i: int, pictures: bool = True) -> Frame:
        """Frame `i`, without the points on the car itself."""
        folder = self._folders[i]
        path, content = self._described(i)
        scan = read_points(folder / _get(content, path, "lidar", "file"))
        if self._masked[i]:
            scan = with_mask(scan, folder / _get(content, path, MASK), self._classes)
        far = scan.distance > NEAREST
        if not far.any():
            raise UserError(
                f"{path}: none of the scan's {len(scan)} points is further than {NEAREST:g} m from the sensor"
            )
        scan = scan[far]
        taken = []
        for name, image in _get(content, path, "images").items() if pictures else ():
            where = f"{path}: {name}"
            intrinsics = _matrix(_get(image, path, "cam2img"), (3, 3), f"{where} cam2img")
            base.check_intrinsics(intrinsics, f"{where} cam2img")
            seen = _matrix(_get(image, path, "lidar2cam"), (4, 4), f"{where} lidar2cam")
            lidar_to_camera = base.rigid(seen[:3, :3], seen[:3, 3], f"{where} lidar2cam")
            lidar_to_camera[:3, :3] = lidar_to_camera[:3, :3] @ NUSCENES_TURN.T
            one = base.photograph(folder / _get(image, path, "file"), intrinsics, lidar_to_camera, scan)
            taken.append(replace(one, name=name))
        return Frame(self.keys[i], scan, pictures=tuple(taken), boxes=base.counted(_boxes(content, path), scan))


def with_mask(scan: Scan, path: Path, classes: Classes) -> Scan:
    """The scan with the labels of a nuScenes-lidarseg file: a byte a point. Raises `UserError` for another number."""
    ids = np.frombuffer(read_bytes(path, MOST_POINTS), np.uint8)
    if len(ids) != len(scan):
        raise UserError(f"{path}: {len(scan)} labels of a byte are expected, one a point; it has {len(ids)} bytes")
    return replace(scan, labels=classes.labels(ids, path))


def _boxes(content: Mapping[str, Any], path: Path) -> tuple[Box, ...] | None:
    """Those with a class; None if the frame lists none at all."""
    if "instances" not in content:
        return None
    names = {number: name for name, number in _get(content, path, "metainfo", "categories").items()}
    boxes = []
    for i, instance in enumerate(content["instances"]):
        label = _get(instance, path, "bbox_label_3d")
        if label == -1:
            continue
        if label not in names:
            raise UserError(
                f"{path}: instance {i}: label {label!r} is out of range (0 to {len(names) - 1}, -1 for none)"
            )
        values = _matrix(_get(instance, path, "bbox_3d"), (1, 7), f"{path}: instance {i} bbox_3d")[0]
        if values[3:6].min() <= 0:
            raise UserError(
                f"{path}: instance {i}: a box of {' x '.join(f'{v:g}' for v in values[3:6])} m is impossible"
            )
        x, y, z = map(float, NUSCENES_TURN @ values[:3])
        length, width, height, yaw = map(float, values[3:])
        boxes.append(Box(names[label], (x, y, z), (length, width, height), yaw - np.pi / 2))
    return tuple(boxes)


def _get(content: Any, path: Path, *keys: str) -> Any:
    """A value of nested objects. Raises `UserError` if it is not there."""
    for i, key in enumerate(keys):
        if not isinstance(content, Mapping) or key not in content:
            raise UserError(f"{path}: {'.'.join(keys[: i + 1])!r} is missing")
        content = content[key]
    return content


def _matrix(values: Any, shape: tuple[int, int], where: str) -> Matrix:
    try:
        found = np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where} must be numbers") from error
    if found.size != shape[0] * shape[1] or not np.isfinite(found).all():
        raise UserError(f"{where} must be {shape[0]} x {shape[1]} finite numbers, got {found.shape}")
    return found.reshape(shape)
