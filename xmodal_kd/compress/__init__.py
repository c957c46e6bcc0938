"""What makes a student smaller before, while or after it learns, by name.

``base`` is the contract; ``channels`` follows channels through a model, ``buckets`` chooses few-bit values, ``packed``
writes them. May import ``teacher_cache``, ``training`` and what these may. Public are the names in recipes, their
parameters and the format of ``packed.safetensors``.
"""

from __future__ import annotations

from . import fskd, qat, quantise, starts
from .base import COMPRESSIONS, Compression, Ways

PAGE = "recipes/README.md#small-students"

__all__ = ["COMPRESSIONS", "Compression", "Ways", "fskd", "qat", "quantise", "starts"]
