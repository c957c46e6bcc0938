"""Networks of nodes: layers, some of which read neighbours, and a linear head.

Neighbours are summed by ``index_add``: torch's sparse products of matrices do the same, but CSR is in beta, warns at
every start, and is counted as dense in a run's FLOPs.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from xmodal_kd.adapter.adapter import Strict
from xmodal_kd.losses.base import full_precision


class LayerConfig(Strict):
    """Sizes of a network of one layer."""

    width: int = Field(64, ge=1, le=1 << 14)
    """Features of a node behind each layer."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of them that is dropped in training."""


class LayersConfig(LayerConfig):
    """Sizes of a network of several layers."""

    layers: int = Field(2, ge=1, le=8)
    """Below the head; of graph networks each reads neighbours, so ``data.hops`` must be as many."""


class Around:
    """Edges between nodes, and what a layer does with them.

    Args:
        edges: from the first row's to the second row's node.
        degree: neighbours of each node in the whole graph, of which some may lack here.
    """

    def __init__(self, edges: Int[Tensor, "2 e"], degree: Float[Tensor, " m"]) -> None:
        self.source, self.target = edges
        self.degree = degree

    def sum(self, messages: Float[Tensor, "e c"]) -> Float[Tensor, "m c"]:
        """Of the messages that reach each node, in at least float32."""
        messages = full_precision(messages)
        return messages.new_zeros(len(self.degree), messages.shape[1]).index_add(0, self.target, messages)

    def mean(self, x: Float[Tensor, "m c"]) -> Float[Tensor, "m c"]:
        """Of each node's neighbours; 0 where it has none."""
        return self.sum(x[self.source]) / self.degree.clamp(min=1)[:, None].to(x)

    def smoothed(self, x: Float[Tensor, "m c"]) -> Float[Tensor, "m c"]:
        """``D^-1/2 (A + I) D^-1/2 x``, with D the degrees of ``A + I`` (Kipf, Welling, 2017, eq. 2)."""
        scale = (self.degree + 1).rsqrt()[:, None].to(x)
        return scale * (self.sum((scale * x)[self.source]) + scale * x)

    def attended(
        self, query: Float[Tensor, "m c"], key: Float[Tensor, "m c"], value: Float[Tensor, "m c"]
    ) -> Float[Tensor, "m c"]:
        """Of each node and its neighbours, by the softmax of ``query . key / sqrt(c)`` over them."""
        own = torch.arange(len(query), device=query.device)
        all_ = Around(torch.stack([torch.cat([self.source, own]), torch.cat([self.target, own])]), self.degree)
        query, key = full_precision(query), full_precision(key)
        scores = (query[all_.target] * key[all_.source]).sum(dim=1) / query.shape[1] ** 0.5
        most = (
            scores.detach().new_full((len(query),), -torch.inf).scatter_reduce(0, all_.target, scores.detach(), "amax")
        )
        shares = (scores - most[all_.target]).exp()[:, None]
        return all_.sum(shares * value[all_.source]) / all_.sum(shares)


class Layer(nn.Module):
    """What a node becomes by itself and by what lies around it; ReLU, dropout."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)

    def mixed(self, x: Float[Tensor, "m c"], around: Around | None) -> Float[Tensor, "m d"]:
        raise NotImplementedError

    def forward(self, x: Float[Tensor, "m c"], around: Around | None = None) -> Float[Tensor, "m d"]:
        found: Tensor = self.dropout(self.mixed(x, around).relu())
        return found


class Plain(Layer):
    """``W x``: nothing of the neighbours."""

    def __init__(self, features: int, width: int, dropout: float) -> None:
        super().__init__(dropout)
        self.own = nn.Linear(features, width)

    def mixed(self, x: Tensor, around: Around | None) -> Tensor:
        return self.own(x)  # type: ignore[no-any-return]


class Mean(Layer):
    """``W x + V mean of the neighbours``: GraphSAGE's mean aggregator (Hamilton et al., 2017, algorithm 1)."""

    def __init__(self, features: int, width: int, dropout: float) -> None:
        super().__init__(dropout)
        self.own = nn.Linear(features, width)
        self.others = nn.Linear(features, width, bias=False)

    def mixed(self, x: Tensor, around: Around | None) -> Tensor:
        assert around is not None
        return self.own(x) + self.others(around.mean(x))  # type: ignore[no-any-return]


class Convolved(Plain):
    """``W`` of the smoothed features (Kipf, Welling, 2017)."""

    def mixed(self, x: Tensor, around: Around | None) -> Tensor:
        assert around is not None
        return self.own(around.smoothed(x))  # type: ignore[no-any-return]


class Attentive(Layer):
    """``W x + self-attention over the node and its peers``, which are its neighbours here."""

    def __init__(self, features: int, width: int, dropout: float) -> None:
        super().__init__(dropout)
        self.own = nn.Linear(features, width)
        self.query, self.key, self.value = (nn.Linear(features, width, bias=False) for _ in range(3))

    def mixed(self, x: Tensor, around: Around | None) -> Tensor:
        assert around is not None
        return self.own(x) + around.attended(self.query(x), self.key(x), self.value(x))  # type: ignore[no-any-return]


class Network(nn.Module):
    """Base of all: nodes ``(m, f)`` to scores ``(m, classes)``.

    * ``layers.*``: what a node is behind each layer ``(m, width)``
    * ``head``: its scores
    """

    Config: ClassVar[type[Strict]] = LayersConfig
    Layer: ClassVar[type[Plain | Mean | Attentive]]
    #: Whether it sees neighbours, so that it is given more nodes than those it is asked for.
    sees_edges: ClassVar[bool] = True
    #: Its name and parameters, as a recipe and a saved folder give them; set by whoever builds it from them.
    card: dict[str, Any]

    def __init__(self, config: LayerConfig, *, features: int, classes: int) -> None:
        super().__init__()
        widths = [features] + [config.width] * getattr(config, "layers", 1)
        self.layers = nn.ModuleList(self.Layer(before, after, config.dropout) for before, after in pairwise(widths))
        self.head = nn.Linear(config.width, classes)

    @property
    def hops(self) -> int:
        """Edges from a node to the farthest that decides what is said of it."""
        return len(self.layers) if self.sees_edges else 0

    def forward(
        self, x: Float[Tensor, "m f"], edges: Int[Tensor, "2 e"], degree: Float[Tensor, " m"]
    ) -> Float[Tensor, "m k"]:
        """What is said of nodes whose neighbourhoods within `hops` edges are all there, `Around` has the rest."""
        around = Around(edges, degree)
        for layer in self.layers:
            x = layer(x, around)
        return self.head(x)  # type: ignore[no-any-return]


class Sage(Network):
    """GraphSAGE by means of all neighbours, none of which are sampled."""

    Layer = Mean


class GCN(Network):
    """Graph convolutions."""

    Layer = Convolved


class PeerAware(Network):
    """One layer, in which a node attends to its peers; experimental.

    After what TinyGNN (Yan et al., 2020) says of its student in words: a small graph network that models the local
    structure by peer nodes, explicitly, and learns the rest from a deeper one. The formula of its peer-aware module
    could not be read, so that its queries, keys and peers may be others.
    """

    Config = LayerConfig
    Layer = Attentive


class MLP(Network):
    """A node by its own features alone."""

    Layer = Plain
    sees_edges = False

    def forward(self, x: Float[Tensor, "b f"]) -> Float[Tensor, "b k"]:  # type: ignore[override]
        for layer in self.layers:
            x = layer(x)
        return self.head(x)  # type: ignore[no-any-return]


__all__ = ["GCN", "MLP", "Around", "LayerConfig", "LayersConfig", "Network", "PeerAware", "Sage"]
