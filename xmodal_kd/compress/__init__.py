"""What makes a student smaller before, while or after it learns, by name."""

from __future__ import annotations

from . import fskd, qat, quantise, starts
from .base import COMPRESSIONS, Compression, Ways

__all__ = ["COMPRESSIONS", "Compression", "Ways", "fskd", "qat", "quantise", "starts"]
