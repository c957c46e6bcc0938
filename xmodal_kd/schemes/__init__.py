"""Who teaches whom: the schemes, by name. Each says which trainings a run has and what teaches in them.

``base`` is the contract; ``rows``, ``batches``, ``sharing`` and ``aggregate`` are what several of them are made of. May
import ``teacher_cache``, ``training`` and what these may. Public are the names in recipes and their parameters.
"""

from __future__ import annotations

from . import (
    chains,
    collaborative,
    continual,
    cross_modal,
    data2vec,
    dino,
    disco,
    ensembles,
    exits,
    feature_aggregation,
    fusion,
    gradients,
    knowledge_flow,
    online,
    receptive,
    robust,
    second_head,
    self_distillation,
    several,
    stages,
    student_friendly,
    temporal,
    three_players,
    transfer_graph,
    transformed,
    two_momenta,
    views,
)
from .base import SCHEMES, Scheme

PAGE = "recipes/README.md#several-teachers"

__all__ = [
    "SCHEMES", "Scheme", "chains", "collaborative", "continual", "cross_modal", "data2vec", "dino", "disco",
    "ensembles", "exits", "feature_aggregation", "fusion", "gradients", "knowledge_flow", "online", "receptive",
    "robust", "second_head", "self_distillation", "several", "stages", "student_friendly", "temporal",
    "three_players", "transfer_graph", "transformed", "two_momenta", "views",
]  # fmt: skip
