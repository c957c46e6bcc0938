"""A graph whose neighbours help: blocks that are joined more within than between, features deep in noise."""

from __future__ import annotations

import numpy as np

from xmodal_kd.runtime.random_streams import Streams

from .graph import Graph, Nodes, both_ways
from .section import Simulated


def simulate(config: Simulated) -> Graph:
    """A stochastic block model (Holland, Laskey, Leinhardt, 1983) of blocks of equal size, without splits.

    The number of edges is Poisson of mean ``nodes * degree / 2``; one end of each is any node, the other one of the
    same class with probability `homophily`, else any of another class. What is drawn twice is one edge.
    """
    draw = Streams(config.seed).numpy("graph")
    labels = draw.permutation(config.nodes) % config.classes
    centres = draw.standard_normal((config.classes, config.features))
    x = centres[labels] + config.noise * draw.standard_normal((config.nodes, config.features))
    count = int(draw.poisson(config.nodes * config.degree / 2))
    source = draw.integers(config.nodes, size=count)
    step = np.where(draw.random(count) < config.homophily, 0, draw.integers(1, config.classes, size=count))
    target = _any_of((labels[source] + step) % config.classes, labels, draw.random(count))
    starts, neighbours = both_ways(source, target, config.nodes)
    return Graph(x.astype(np.float32), labels.astype(np.int64), starts, neighbours, config.classes, {})


def _any_of(classes: Nodes, labels: Nodes, place: np.ndarray) -> Nodes:
    """A node of each of `classes`, by a place in [0, 1) among those of its class."""
    order, counts = labels.argsort(kind="stable"), np.bincount(labels)
    found: Nodes = order[(counts.cumsum() - counts)[classes] + (place * counts[classes]).astype(np.int64)]
    return found


__all__ = ["simulate"]
