"""Distillation without data: methods whose inputs are made, by a generator or by gradients, and asked of the teacher.

``base`` is what they share, ``draws`` what stands in the place of samples, ``generators`` and ``inversion`` hold the
methods, ``shown`` what of them comes onto a run's page. May import ``training`` and what it may. Public are the names
in recipes and their parameters. What an input looks like is the adapter's to say: `Adapter.input`, `Adapter.given`.
"""

from __future__ import annotations

from . import generators, inversion
from .base import DataFree

PAGE = "recipes/README.md#without-data"

__all__ = ["DataFree", "generators", "inversion"]
