"""All that is registered, for who needs every name; loading a saved folder needs none of it."""

from __future__ import annotations

from . import fskd, l0, pc_lora, qat, quantise, starts
from .base import COMPRESSIONS, Compression, Ways

__all__ = ["COMPRESSIONS", "Compression", "Ways", "fskd", "l0", "pc_lora", "qat", "quantise", "starts"]
