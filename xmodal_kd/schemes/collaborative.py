"""KDCL: students that learn from one target, which is made of their scores with the help of labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from accelerate.utils import send_to_device
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from ..adapter.adapter import Adapter, Batch, Source
from ..objective.parts import LossOut
from ..runtime.errors import UserError
from ..runtime.random_streams import Streams
from ..signals.signals import OUTPUTS, Signals, TeacherSignals
from ..training.label_budget import LabelBudget
from ..training.method import Context, Roles, Stage
from ..training.modes import evaluating
from . import aggregate
from .base import SCHEMES
from .batches import Without
from .online import Group, OwnViews, Peers
from .rows import dense_rows, row_labels


class Collaborators(Peers, OwnViews):
    how: Literal["min_logit", "naive", "linear", "general"] = "min_logit"
    """What teaches all: of each class the least score, the label's taken off before; the scores of whoever is best on
    the row; the mean of scores by which the row's label is likeliest; or one by the students' errors on held-out
    samples."""
    held: float = Field(0.05, gt=0, lt=1)
    """Share of the training samples that nobody learns from, of `general`."""


class Weights(nn.Module):
    """Of each student's scores in the target of `general`, with the checkpoint."""

    weights: Tensor

    def __init__(self, students: int) -> None:
        super().__init__()
        self.register_buffer("weights", torch.full((students,), 1 / students, dtype=torch.float64))


@SCHEMES.register("kdcl")
class Collaborative(Group):
    """Students learn together, all from one target that is made of their scores with the help of the labels.

    Guo et al., "Online Knowledge Distillation via Collaborative Learning", CVPR 2020. KDCL-MinLogit takes off every
    student's score of the label and then the least of each class, so the target is as modest as the most modest of
    them; KDCL-Naive takes the student that is best on the row; KDCL-Linear the mean of scores sum_k a_k z_k whose
    cross-entropy with the row's label is least, a >= 0 and sum a = 1; KDCL-General one mean for all rows, sum_k w_k z_k
    with w = C^-1 1 / (1' C^-1 1), C_ij the mean of (p_i - y) . (p_j - y) over held-out samples, begun anew each epoch.
    With `own_views`, as published, each student sees an augmentation of its own. The students are stepped in turn, as
    in `dml`. Where a label may not be looked at, the target of a row is the mean of the scores (but for `general`).
    """

    Params: ClassVar[type[Any]] = Collaborators
    paper, year = "Online Knowledge Distillation via Collaborative Learning", 2020
    learner_first: ClassVar[bool] = True
    name: ClassVar[str] = "kdcl"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for term in self.objective:
            if term.spec.needs_teacher and not OUTPUTS.issuperset(term.term.signals("teacher")):
                raise UserError(
                    f"term {term.name!r}: what teaches in the scheme kdcl are scores, which have no features to learn "
                    "from: compare logits, or use the scheme dml"
                )
        self.weights = Weights(len(self.learners)) if self.params.how == "general" else None
        #: Batches of what nobody learns from, made once.
        self.held: list[Batch] | None = None

    @classmethod
    def source(cls, params: Any, source: Source, adapter: Adapter) -> Source:
        if params.how == "general":
            if isinstance(source, LabelBudget):
                raise UserError("scheme kdcl: how: general measures errors on held-out labels: leave labels out")
            source = Without(source, held_out(len(source), params.held))
        return super().source(params, source, adapter)

    def begin(self, stage: Stage, roles: Roles, batch: Batch) -> Mapping[str, Optimizer]:
        if self.weights is not None:
            self.weights.to(next(roles[self.role].parameters()).device)
        return super().begin(stage, roles, batch)

    def losses(self, batch: Batch, roles: Roles, ctx: Context) -> Iterator[tuple[str, LossOut]]:
        if self.weights is not None and ctx.micro < ctx.ranks.world:  # the first micro-batch of a step
            left = len(self.adapter.data("train")) * (1 - self.params.held)
            if ctx.step % max(1, round(left / self.train.batch_size)) == 0:
                self.weigh(roles)
        yield from super().losses(batch, roles, ctx)

    def modules(self) -> Mapping[str, nn.Module]:
        return {**super().modules(), **({} if self.weights is None else {"scheme": self.weights})}

    def teacher_signals(self, role: str, roles: Roles, batch: Batch, outputs: Signals | None) -> TeacherSignals:
        assert outputs is not None
        true, layout = row_labels("kdcl", outputs), outputs.layout("logits")
        others = [self.forward_role(one, roles, batch, of="teacher") for one in self.learners if one != role]
        if self.params.own_views:
            seen = torch.stack([one.layout("logits").mask for one in (outputs, *others)]).all(dim=0)
            layout = replace(layout, mask=seen, full=layout.full and all(one.layout("logits").full for one in others))
        said = dict(zip([role, *(one for one in self.learners if one != role)], (outputs, *others), strict=True))
        scores = torch.stack([dense_rows(said[one]["logits"]).detach() for one in self.learners])
        return Signals(outputs.ids).add("logits", self.target(scores, true), layout)

    def target(self, scores: Tensor, true: Tensor) -> Tensor:
        """``(n, c)`` of the students' scores ``(m, n, c)``, in the order of `learners`."""
        if self.weights is not None:
            return torch.einsum("m,mnc->nc", self.weights.weights.to(scores), scores)
        mix = {"min_logit": aggregate.least, "naive": aggregate.surest, "linear": aggregate.likeliest}
        return mix[self.params.how](scores, true)

    @torch.no_grad()
    def weigh(self, roles: Roles) -> None:
        """The weights, by the errors that all students make on the held-out samples as they are now."""
        assert self.weights is not None
        place = self.weights.weights.device
        if self.held is None:
            source, numbers = self.adapter.data("train"), held_out(len(self.adapter.data("train")), self.params.held)
            size = self.train.batch_size
            parts = [numbers[at : at + size] for at in range(0, len(numbers), size)]
            self.held = [source.collate([source.sample(i, 0) for i in part]) for part in parts]
        probabilities, labels = [], []
        with ExitStack() as stack:
            for role in self.learners:
                stack.enter_context(evaluating(roles[role]))
            for batch in (send_to_device(one, place) for one in self.held):
                # all as the student, so that all are shown the same view
                said = [self.forward_features(self.role, {self.role: roles[one]}, batch, ()) for one in self.learners]
                true = row_labels("kdcl", said[0])
                rows = torch.stack([dense_rows(one["logits"]).double().softmax(dim=-1) for one in said])
                probabilities.append(rows[:, true >= 0])
                labels.append(true[true >= 0])
        self.weights.weights.copy_(aggregate.by_errors(torch.cat(probabilities, dim=1), torch.cat(labels)))

    def facts(self, roles: Mapping[str, nn.Module], batch: Batch) -> Mapping[str, Any]:
        """Of `general` also the last weights."""
        found = dict(super().facts(roles, batch))
        if self.weights is not None:
            found["weights"] = dict(zip(self.learners, self.weights.weights.tolist(), strict=True))
        return found


def held_out(samples: int, share: float) -> Sequence[int]:
    """Which training samples nobody learns from: a function of the data alone, so that seeds and arms compare."""
    order = Streams(0).numpy("held out").permutation(samples)
    return sorted(order[: max(1, round(share * samples))].tolist())
