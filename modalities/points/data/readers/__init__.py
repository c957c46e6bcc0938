"""Readers of recordings, by the name that a recipe calls them."""

from __future__ import annotations

from .base import Reader
from .kitti import Kitti
from .kitti_raw import KittiRaw
from .nuscenes import NuScenes
from .range_images import RangeImages
from .semantickitti import SemanticKitti

READERS: dict[str, type[Reader]] = {
    "kitti": Kitti,
    "kitti_raw": KittiRaw,
    "nuscenes": NuScenes,
    "range_images": RangeImages,
    "semantickitti": SemanticKitti,
}

__all__ = ["READERS", "Kitti", "KittiRaw", "NuScenes", "RangeImages", "Reader", "SemanticKitti"]
