"""What makes a student smaller before, while or after it learns, by name."""

from __future__ import annotations

from . import fskd, qat, quantise, starts
from .base import COMPRESSIONS, Compression

__all__ = ["COMPRESSIONS", "Compression", "fskd", "qat", "quantise", "starts"]
