"""The nodes of a split, and batches of them with what lies around."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
import torch

from xmodal_kd.losses.known_classes import IGNORED
from xmodal_kd.runtime.errors import UserError, nearest
from xmodal_kd.runtime.random_streams import Streams

from .files import read_graph
from .graph import Graph, Nodes
from .section import GraphsData, Split
from .simulator import simulate

SPLITS = ("train", "dev", "test")


class Loaded(NamedTuple):
    """A graph, what is left of it without the edges of its test nodes, and a digest of both."""

    whole: Graph
    observed: Graph
    digest: str


def load_graph(config: GraphsData) -> Loaded:
    """The graph of a data section with its splits; read once in a process: leave the arrays as they are.

    Raises:
        UserError: what is wrong with the file, or fewer nodes than the splits ask for.
    """
    return _loaded(config.model_copy(update={"hops": 0, "inductive": False, "license": None}))


@lru_cache(maxsize=4)
def _loaded(config: GraphsData) -> Loaded:
    graph = read_graph(config.path) if config.path is not None else simulate(config.simulator)
    if config.split is not None or not graph.splits:
        graph = replace(graph, splits=_drawn(graph, config.split or Split()))
    missing = np.setdiff1d(np.arange(graph.classes), graph.labels[graph.splits["train"]])
    if len(missing):
        raise UserError(f"data: class {missing[0]} has no train node: label some, or draw all splits by data.split")
    digest = blake2b(digest_size=8)
    for part in (graph.x, graph.starts, graph.neighbours, graph.splits["test"]):
        digest.update(np.ascontiguousarray(part).tobytes())
    return Loaded(graph, graph.without(graph.splits["test"]), digest.hexdigest())


def _drawn(graph: Graph, split: Split) -> dict[str, Nodes]:
    order = Streams(0).numpy("split").permutation(len(graph))
    train = []
    for number in range(graph.classes):
        mine = order[graph.labels[order] == number]
        if len(mine) < split.per_class:
            raise UserError(
                f"data.split.per_class: {split.per_class}, and class {number} has {len(mine)} nodes: set it lower"
            )
        train.append(mine[: split.per_class])
    taken = np.concatenate(train)
    left = order[(graph.labels[order] >= 0) & ~np.isin(order, taken)]
    if len(left) < split.dev + split.test:
        raise UserError(
            f"data.split: {split.dev} dev and {split.test} test nodes, and {len(left)} labelled ones are left beside "
            f"{len(taken)} to train on: set them lower"
        )
    found = {"train": taken, "dev": left[: split.dev], "test": left[split.dev : split.dev + split.test]}
    return {name: np.sort(nodes) for name, nodes in found.items()}


class Sample(NamedTuple):
    """A node: its place in the split, its number in the graph, and a digest of the graph that it is seen in."""

    id: int
    node: int
    graph: str


class GraphsSource:
    """The nodes of one split; order is a function of (seed, split, epoch).

    The train split has all nodes that may be seen while something is trained, of which those of ``labelled`` show
    their classes; the others' are `IGNORED`, which no loss reads.

    Raises:
        UserError: fewer train nodes than a batch.
    """

    def __init__(self, config: GraphsData, split: str, streams: Streams, batch_size: int) -> None:
        if split not in SPLITS:
            raise UserError(f"no split {split!r}{nearest(split, SPLITS)}")
        self.hops, self.split, self.streams, self.batch_size = config.hops, split, streams, batch_size
        whole, observed, digest = load_graph(config)
        self.graph = observed if config.inductive and split != "test" else whole
        #: Of what a network sees around a node.
        self.digest = f"{digest} {'observed' if self.graph is observed else 'whole'} {self.hops}"
        unseen = whole.splits["test"] if config.inductive else ()
        pool = np.setdiff1d(np.arange(len(whole)), unseen)
        self.nodes: Nodes = pool if split == "train" else whole.splits[split]
        self.labels = self.graph.labels[self.nodes]
        if split == "train":
            known = np.isin(self.nodes, whole.splits["train"])
            self.labels = np.where(known, self.labels, IGNORED)
            #: Places of the nodes whose classes may be looked at.
            self.labelled: list[int] = np.flatnonzero(known).tolist()
            if len(self.nodes) < batch_size:
                raise UserError(f"train.batch_size: {batch_size} is more than the {len(self.nodes)} nodes to train on")

    def __len__(self) -> int:
        return len(self.nodes)

    def plan(self, epoch: int) -> list[list[int]]:
        """Nodes in batches; of the train split shuffled, without those that fill none."""
        train, size = self.split == "train", self.batch_size
        order = self.streams.numpy("order", epoch).permutation(len(self)) if train else np.arange(len(self))
        whole = len(self) - len(self) % size if train else len(self)
        return [order[i : min(i + size, whole)].tolist() for i in range(0, whole, size)]

    def sample(self, index: int, epoch: int) -> Sample:
        return Sample(index, int(self.nodes[index]), self.digest)

    def collate(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """``ids`` (b,) int64, ``keys`` list of numbers as text, ``x`` (b, f) float32, ``labels`` (b,) int64.

        What lies within ``hops`` edges: features ``around`` (m, f) float32, ``edges`` (2, e) int64 from and to places
        in it, ``degree`` (m,) float32 in the whole graph; ``at`` (b,) int64 is where the batch's nodes stand in it.
        """
        ids = np.array([sample.id for sample in samples])
        nodes = self.nodes[ids]
        seen = self.graph.around(nodes, self.hops)
        return {
            "ids": torch.from_numpy(ids),
            "keys": [str(node) for node in nodes],
            "x": torch.from_numpy(self.graph.x[nodes]),
            "labels": torch.from_numpy(self.labels[ids]),
            "around": torch.from_numpy(self.graph.x[seen.nodes]),
            "edges": torch.from_numpy(seen.edges),
            "degree": torch.from_numpy(seen.degree.astype(np.float32)),
            "at": torch.from_numpy(seen.at),
        }

    def classes_around(self, index: int) -> tuple[np.ndarray, int]:
        """The share of each class among a node's neighbours, and how many it has: for whoever looks on."""
        graph, node = self.graph, self.nodes[index]
        labels = graph.labels[graph.neighbours[graph.starts[node] : graph.starts[node + 1]]]
        return np.bincount(labels[labels >= 0], minlength=graph.classes) / max(1, len(labels)), len(labels)

    def describe(self) -> dict[str, Any]:
        """Facts for the report."""
        found: dict[str, Any] = {"samples": len(self), "edges": len(self.graph.neighbours) // 2}
        return found | ({"labelled": len(self.labelled)} if self.split == "train" else {})


__all__ = ["GraphsSource", "Loaded", "Sample", "load_graph"]
