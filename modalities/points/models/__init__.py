"""Models by name: U-Nets over range images, photographs and voxels, encoders of torchvision and timm, a transformer
over points, detectors over pillars and photographs.

Every model is built as ``cls(config, channels=, classes=)`` and has

* ``Config``: its pydantic parameters, the ``params`` of a recipe and of a saved folder;
* ``view``: ``"range"``, ``"image"``, ``"points"`` or ``"pillars"``: what it is shown;
* ``features``, ``encoder.*``, ``decoder.*``: paths to capture, see `SceneModel`.

A model of a grid is called as ``model(x)``, one of points as ``model(points, lengths)``, a detector as ``model(seen,
cell, shape)``. None has batch statistics but those of weights that it was given.

A network of somebody else's is a `PointModel`, or, of boxes, a `BoxesModel` (docs/own_models.md).

May import ``views`` and ``data``, beside the core. Public are the names in recipes and their parameters, and these two.
"""

from __future__ import annotations

from xmodal_kd.runtime.registry import Registry

from .boxes_model import BoxesModel
from .camera import CenterPointCamera
from .centre import CenterPoint
from .pillars import CenterPointPillar
from .point_transformer import PointTransformer
from .pretrained import TimmSegmenter, TorchvisionSegmenter
from .scene import PointModel, SceneModel, View
from .unet import ImageUNet, RangeUNet
from .voxel_unet import VoxelUNet

MODELS: Registry[type[SceneModel]] = Registry("points model", needs=("Config", "view"))
MODELS.add("range_unet", RangeUNet)
MODELS.add("image_unet", ImageUNet)
MODELS.add("torchvision", TorchvisionSegmenter)
MODELS.add("timm", TimmSegmenter)
MODELS.add("point_transformer", PointTransformer)
MODELS.add("voxel_unet", VoxelUNet)
MODELS.add("centerpoint_pillar", CenterPointPillar)
MODELS.add("centerpoint_camera", CenterPointCamera)
#: Names of those with centre heads.
HEADED = tuple(name for name in MODELS if issubclass(MODELS[name], CenterPoint))

__all__ = [
    "HEADED",
    "MODELS",
    "BoxesModel",
    "CenterPoint",
    "CenterPointCamera",
    "CenterPointPillar",
    "ImageUNet",
    "PointModel",
    "PointTransformer",
    "RangeUNet",
    "SceneModel",
    "TimmSegmenter",
    "TorchvisionSegmenter",
    "View",
    "VoxelUNet",
]
