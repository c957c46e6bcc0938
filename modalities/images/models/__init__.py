"""Networks by name: classifiers (a plain CNN, a ResNet, a vision transformer), of joints, restorers of images.

A classifier is built as ``cls(config, channels=, classes=)`` and has ``embedding`` and ``head`` to capture; the first
two also ``stages.*`` and ``cells`` (see `Classifier`), the last ``blocks.*`` and ``distilled`` (`ViT`). Batch
statistics are there only where ``norm`` asks for them. What is of another task says so by ``task``, and is built as
that task builds it (`HeatMaps`, `Restorer`).

May import ``data``, beside the core. Public are the names in recipes and their parameters.
"""

from __future__ import annotations

from typing import Any

from xmodal_kd.runtime.registry import Registry

from .classifier import CNN, Classifier, Network, ResNet
from .dynamic_kernels import DynamicKernels
from .keypoints import HeatMaps, PoseResNet, StackedHourglass, heat_maps
from .restoration import EDSR, Restorer
from .vit import ViT

MODELS: Registry[Any] = Registry("images model")
MODELS.add("cnn", CNN)
MODELS.add("resnet", ResNet)
MODELS.add("vit", ViT)
MODELS.add("hourglass", StackedHourglass)
MODELS.add("pose_resnet", PoseResNet)
MODELS.add("dynamic_kernels", DynamicKernels)
MODELS.add("edsr", EDSR)


def task_of(model: str) -> str:
    """The ``data.task`` that a model by name is of."""
    found: str = getattr(MODELS[model], "task", "classes")
    return found


__all__ = [
    "CNN",
    "EDSR",
    "MODELS",
    "Classifier",
    "DynamicKernels",
    "HeatMaps",
    "Network",
    "PoseResNet",
    "ResNet",
    "Restorer",
    "StackedHourglass",
    "ViT",
    "heat_maps",
    "task_of",
]
