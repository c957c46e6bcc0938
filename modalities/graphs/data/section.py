"""The recipe's ``data`` section: which graph there is, which of its nodes are for what."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from xmodal_kd.adapter.source import Strict

#: Nodes of a graph that is simulated, or drawn for a split: more than fit, and a bound on what is made of it.
ALL = 10_000_000
Count = Annotated[int, Field(ge=1, le=ALL)]


class Simulated(Strict):
    """A stochastic block model (Holland et al., 1983): classes are blocks, features their centres in noise."""

    nodes: Annotated[int, Field(ge=20, le=ALL)] = 2000
    classes: Annotated[int, Field(ge=2, le=1000)] = 5
    degree: Annotated[float, Field(gt=0, le=1000)] = 6.0
    """Neighbours of a node, on average."""
    homophily: Annotated[float, Field(ge=0, le=1)] = 0.8
    """Share of the edges that join nodes of one class."""
    features: Annotated[int, Field(ge=1, le=1 << 16)] = 16
    noise: Annotated[float, Field(ge=0, le=1000)] = 2.0
    """Deviation of a feature around its class's centre; centres are normal of deviation 1."""
    seed: Annotated[int, Field(ge=0, le=ALL)] = 0
    """Of the graph: it is the same for every seed of the recipe."""


class Split(Strict):
    """How many nodes are for what, where they are drawn."""

    per_class: Count = 20
    """Labelled nodes of each class to train on."""
    dev: Count = 500
    test: Count = 1000


class GraphsData(Strict):
    """A graph, its splits, and how far a batch looks around its nodes."""

    sources: Literal["simulator", "npz"]
    path: Path | None = None
    """Of ``npz``: the file."""
    simulator: Simulated = Simulated()
    split: Split | None = None
    """Nodes are drawn so, the same for every seed; None: as the file says, or so with the defaults."""
    inductive: bool = False
    """Test nodes and their edges are not there while anything is trained; else their features are, without labels."""
    hops: Annotated[int, Field(ge=0, le=8)] = 2
    """Edges from a node of a batch to the farthest that a graph network sees: as many as its layers, or more."""
    license: str | None = None
    """Of the data: inherited by the models made from them, and said on their cards."""

    @field_validator("path")
    @classmethod
    def _expanded(cls, path: Path | None) -> Path | None:
        return None if path is None else path.expanduser()

    @model_validator(mode="after")
    def _check(self) -> GraphsData:
        if self.sources == "npz" and self.path is None:
            raise ValueError("path: name the .npz file of the graph")
        if self.sources == "simulator" and self.path is not None:
            raise ValueError("path: the simulator reads no file: leave it out, or set sources to npz")
        if self.sources == "npz" and self.simulator != Simulated():
            raise ValueError("simulator: sources: npz reads a file: leave it out")
        return self


__all__ = ["GraphsData", "Simulated", "Split"]
