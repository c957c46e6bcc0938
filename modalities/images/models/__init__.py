"""Image classifiers by name: a plain CNN and a ResNet, by width and depth.

Every model is built as ``cls(config, channels=, classes=)`` and has ``stages.*``, ``embedding``, ``cells`` and ``head``
to capture, see `Classifier`. Batch statistics are there only where ``norm`` asks for them.

May import ``data``, beside the core. Public are the names in recipes and their parameters.
"""

from __future__ import annotations

from typing import Any

from xmodal_kd.runtime.registry import Registry

from .classifier import CNN, Classifier, ResNet

MODELS: Registry[Any] = Registry("images model")
MODELS.add("cnn", CNN)
MODELS.add("resnet", ResNet)

__all__ = ["CNN", "MODELS", "Classifier", "ResNet"]
