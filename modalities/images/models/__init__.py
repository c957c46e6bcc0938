"""Image classifiers by name: a plain CNN, a ResNet and a vision transformer, by width and depth.

Every model is built as ``cls(config, channels=, classes=)`` and has ``embedding`` and ``head`` to capture; the first
two also ``stages.*`` and ``cells`` (see `Classifier`), the last ``blocks.*`` and ``distilled`` (`ViT`). Batch
statistics are there only where ``norm`` asks for them.

May import ``data``, beside the core. Public are the names in recipes and their parameters.
"""

from __future__ import annotations

from typing import Any

from xmodal_kd.runtime.registry import Registry

from .classifier import CNN, Classifier, Network, ResNet
from .vit import ViT

MODELS: Registry[Any] = Registry("images model")
MODELS.add("cnn", CNN)
MODELS.add("resnet", ResNet)
MODELS.add("vit", ViT)

__all__ = ["CNN", "MODELS", "Classifier", "Network", "ResNet", "ViT"]
