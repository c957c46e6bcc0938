"""Online: students that teach each other along the edges of a graph, each edge with a gate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool
from pydantic import Field, model_validator
from torch import Tensor

from ..adapter.adapter import Batch, Strict
from ..objective.parts import LossOut, Part
from ..runtime.errors import UserError
from ..signals.signals import OUTPUTS, Signals
from ..training.method import Context, Roles
from .base import SCHEMES
from .online import Mutual
from .rows import dense_rows, replaced, row_labels, terms_of

Gate = Literal["through", "cutoff", "linear", "correct"]


class Edges(Strict):
    edges: tuple[tuple[Gate, ...], ...] = Field(min_length=2)
    """Of each student a row, the kept one's first: the gate of what every student, in that order, teaches it; in its
    own place that of the labels."""

    @property
    def peers(self) -> int:
        """Students beside the one that is kept."""
        return len(self.edges) - 1

    @model_validator(mode="after")
    def _check_square(self) -> Edges:
        for number, row in enumerate(self.edges):
            if len(row) != len(self.edges):
                raise ValueError(f"edges: row {number} has {len(row)} gates for {len(self.edges)} students")
            if set(row) == {"cutoff"}:
                raise ValueError(f"edges: nothing teaches the student of row {number}: open one of its gates")
        return self


@SCHEMES.register("ktg")
class TransferGraph(Mutual):
    """Students teach each other along a graph of the recipe, whose gates say when and on which rows.

    Minami et al., "Knowledge Transfer Graph for Deep Collaborative Learning", ACCV 2020, as released: student i
    minimises ``G_ii(CE(z_i)) + sum over j of G_ji(T^2 KL(z_j || z_i))`` with a gate for each edge: ``through`` all rows
    at all times, ``cutoff`` none, ``linear`` all, with a weight that rises from 0 to 1 over the steps, ``correct``
    those that the source classifies rightly, in a mean over all. Terms without a teacher stand for CE, those with one
    for KL (kd at temperature 1), each source with the term's whole weight. All students speak once in a step and learn
    at the same time. The paper searches for the graph among all of them; here the recipe gives it. All `through` is
    `dml`, but for turns. The students are one model with initial weights of their own, of which the first is kept.
    """

    Params: ClassVar[type[Strict]] = Edges
    paper, year = "Knowledge Transfer Graph for Deep Collaborative Learning", 2020
    name: ClassVar[str] = "ktg"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for term in terms_of(self.objective, with_teacher=True):
            answers = OUTPUTS.issuperset(term.signals("teacher"))
            if not answers and any("correct" in row for row in self.params.edges):
                raise UserError(
                    f"term {term.name or term.loss!r}: the gate correct knows rows of answers alone: compare answers, "
                    "or open that edge by through or linear"
                )

    def losses(self, batch: Batch, roles: Roles, ctx: Context) -> Iterator[tuple[str, LossOut]]:
        with ctx.timer.time("student"):
            outputs = {role: self.forward_role(role, roles, batch) for role in self.learners}
        with ctx.timer.time("loss"):
            found = {role: self.gated(role, outputs, ctx) for role in self.learners}
        for role, out in found.items():
            yield role, out if role == self.role else out.named(role)
        self.settle(roles, ctx)

    def gated(self, role: str, outputs: Mapping[str, Signals], ctx: Context) -> LossOut:
        """What a student minimises, of what all say."""
        gates = dict(zip(self.learners, self.params.edges[self.learners.index(role)], strict=True))
        mine, sources = outputs[role], {one: outputs[one] for one, gate in gates.items() if gate != "cutoff"}
        sources.pop(role, None)
        right = {one: self._right(said) for one, said in sources.items() if gates[one] == "correct"}
        output = self.adapter.output
        given = {
            one: replaced(said, {output: said.rows(output)}, right[one]) if one in right else said
            for one, said in sources.items()
        }
        out = self.objectives[role](mine, given, step=ctx.step, ranks=ctx.ranks)
        parts = {}
        for name, part in out.parts.items():
            source = next((one for one in sources if name.endswith(f"/{one}")), role)
            factor = share(gates[source], ctx) * (1 if source == role else len(sources))
            parts[name] = replace(part, weight=part.weight * factor)
            if source in right:
                both = mine.layout(output).mask & sources[source].layout(output).mask
                parts[name] = of_all(parts[name], both, right[source])
        return LossOut(parts)

    def _right(self, said: Signals) -> Bool[Tensor, " n"]:
        """Rows that a source classifies rightly; none whose label may not be looked at."""
        known = row_labels(self.name, said)
        return (dense_rows(said["logits"]).argmax(dim=1) == known) & (known >= 0)


def share(gate: Gate, ctx: Context) -> float:
    """The weight that a gate leaves at a step."""
    if gate == "linear":
        return (ctx.step + 1) / ctx.stage.steps
    return 0.0 if gate == "cutoff" else 1.0


def of_all(part: Part, rows: Bool[Tensor, " n"], kept: Bool[Tensor, " n"]) -> Part:
    """A part that counted only the `kept` ones of some rows, as a mean over all of them."""
    all_, few = rows.sum(), (rows & kept).sum()
    whole = torch.where(few > 0, torch.as_tensor(part.count) * all_ / few.clamp(min=1), all_.to(part.total.dtype))
    return replace(part, count=whole, unit=f"{part.unit}, of all")


__all__ = ["Edges", "TransferGraph", "of_all", "share"]
