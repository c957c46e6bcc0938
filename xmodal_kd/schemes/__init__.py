"""Who teaches whom: the schemes, by name. Each says which trainings a run has and what teaches in them."""

from __future__ import annotations

from . import chains, continual, ensembles, exits, online, self_distillation, several
from .base import SCHEMES, Scheme

__all__ = ["SCHEMES", "Scheme", "chains", "continual", "ensembles", "exits", "online", "self_distillation", "several"]
