"""A graph in compressed rows: who is whose neighbour, and what lies around some of its nodes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from jaxtyping import Float, Int
from scipy.sparse import coo_array

Nodes = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Neighbourhood:
    """What some nodes see of the graph: all that lies within so many edges, numbered anew.

    Every node but the farthest has all of its edges, so what a network of as many layers says of the nodes asked for
    is what it says of them in the whole graph.

    Attributes:
        nodes: their numbers in the graph, ascending.
        at: where among them the nodes asked for stand, in the order of asking.
        edges: from the first row's to the second row's node, by their places in `nodes`.
        degree: neighbours of each in the whole graph.
    """

    nodes: Int[np.ndarray, " m"]
    at: Int[np.ndarray, " b"]
    edges: Int[np.ndarray, "2 e"]
    degree: Int[np.ndarray, " m"]


@dataclass(frozen=True, eq=False)
class Graph:
    """Nodes, their features and classes, and edges both ways, without loops.

    Attributes:
        labels: a class of each, below 0 where nobody knows.
        starts, neighbours: those of node i are ``neighbours[starts[i] : starts[i + 1]]``, ascending.
        splits: nodes of ``train`` (labelled), ``dev`` and ``test``, ascending.
    """

    x: Float[np.ndarray, "n f"]
    labels: Int[np.ndarray, " n"]
    starts: Int[np.ndarray, " n_and_1"]
    neighbours: Int[np.ndarray, " e"]
    classes: int
    splits: dict[str, Nodes]

    def __len__(self) -> int:
        return len(self.x)

    @property
    def degree(self) -> Nodes:
        return np.diff(self.starts)

    def without(self, nodes: Nodes) -> Graph:
        """The same numbers of nodes, of which these have no edges any more."""
        gone = np.zeros(len(self), dtype=bool)
        gone[nodes] = True
        ends = np.arange(len(self)).repeat(self.degree)
        kept = ~(gone[ends] | gone[self.neighbours])
        starts, neighbours = both_ways(self.neighbours[kept], ends[kept], len(self))
        return replace(self, starts=starts, neighbours=neighbours)

    def around(self, nodes: Nodes, hops: int) -> Neighbourhood:
        """What lies within `hops` edges of `nodes`, which may recur."""
        reached = inner = np.unique(nodes)
        for _ in range(hops):
            inner = reached
            reached = np.union1d(reached, self._into(inner)[0])
        edges = np.stack(self._into(inner)) if hops else np.zeros((2, 0), dtype=np.int64)
        local = np.searchsorted(reached, edges)
        return Neighbourhood(reached, np.searchsorted(reached, nodes), local, self.degree[reached])

    def _into(self, nodes: Nodes) -> tuple[Nodes, Nodes]:
        """The edges that end in `nodes`: where each begins, and where it ends."""
        counts = self.degree[nodes]
        shift = self.starts[nodes] - (counts.cumsum() - counts)
        return self.neighbours[np.arange(counts.sum()) + shift.repeat(counts)], nodes.repeat(counts)


def both_ways(source: Nodes, target: Nodes, nodes: int) -> tuple[Nodes, Nodes]:
    """Rows of neighbours: every edge once in either direction, loops left out."""
    apart = source != target
    ends = np.concatenate([source[apart], target[apart]]), np.concatenate([target[apart], source[apart]])
    rows = coo_array((np.ones(len(ends[0]), dtype=bool), ends), shape=(nodes, nodes)).tocsr()
    rows.sort_indices()
    return rows.indptr.astype(np.int64), rows.indices.astype(np.int64)


__all__ = ["Graph", "Neighbourhood", "Nodes", "both_ways"]
