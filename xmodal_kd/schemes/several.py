"""Several teachers of one student, of any modality: what they say becomes one teacher's signals, row by row.

The recipe's ``teacher`` is the first; ``teachers`` names the others. A term reads of the teachers

* ``logits``: the mixture of all, by the scheme's weights, over the teachers that see a row;
* a module path: the first teacher's feature; ``camera/encoder.out``: that of the teacher called ``camera`` (the first
  is called ``teacher``), as is ``camera/logits``;
* ``weights: camera/weight``: how much that teacher counts in a row, so that features can be weighed as answers are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from ..adapter.adapter import Batch, Strict
from ..objective.objective import Objective
from ..objective.parts import LossOut
from ..recipe.recipe import On, Recipe, Term
from ..runtime.distributed import Ranks
from ..runtime.errors import UserError, nearest
from ..signals.signals import OUTPUTS, WEIGHT, Layout, Signals, TeacherSignals, of_teacher, teacher_name
from ..training.method import Context, Roles
from ..training.role_plan import RolePlan
from . import aggregate
from .base import SCHEMES, Scheme


class Tempered(Strict):
    temperature: float | None = Field(None, gt=0)
    """At which answers are mixed; None: that of the terms that compare with them, which must agree, else 1."""


class Several(Scheme):
    """Base of the schemes whose teachers are weighed row by row."""

    Params: ClassVar[type[Strict]] = Tempered
    family = "several teachers"
    several: ClassVar[bool] = True
    _ranks: Ranks = Ranks()
    _known = False

    @classmethod
    def refuse(cls, recipe: Recipe) -> None:
        super().refuse(recipe)
        assert recipe.scheme is not None
        if not recipe.teachers:
            raise UserError(f"scheme {recipe.scheme.name}: one teacher is not several: name others under teachers")
        names = [teacher_name(role) for role in recipe.taught_by()]
        for term in recipe.objective:
            for signal in term.signals("teacher"):
                if "/" in signal and (name := signal.partition("/")[0]) not in names:
                    raise UserError(
                        f"term {term.name or term.loss!r}: no teacher is called {name!r}{nearest(name, names)}"
                    )

    @property
    def temperature(self) -> float:
        """Raises `UserError` where the terms disagree and the recipe does not say."""
        if self.params.temperature is not None:
            return float(self.params.temperature)
        asked = {float(term.params["temperature"]) for term in self._answered() if "temperature" in term.params}
        if len(asked) > 1:
            shown = ", ".join(f"{value:g}" for value in sorted(asked))
            raise UserError(f"scheme.params.temperature: terms compare at temperatures {shown}: say which one mixes")
        return asked.pop() if asked else 1.0

    def _answered(self) -> list[Any]:
        """The terms that compare with what the teachers answer together."""
        terms: Objective = self.objectives[self.role]
        return [t for t in terms if t.spec.needs_teacher and OUTPUTS.issuperset(t.term.signals("teacher"))]

    def loss(self, role: str, roles: Roles, batch: Batch, ctx: Context) -> LossOut:
        self._ranks = ctx.ranks
        return super().loss(role, roles, batch, ctx)

    def teacher_signals(self, role: str, roles: Roles, batch: Batch, outputs: Signals | None) -> TeacherSignals:
        each = self._say(roles, batch)
        output = self.adapter.output
        layouts = [one.layout(output) for one in each.values()]
        _aligned(list(each), layouts)
        if not self._known:
            self._know(each)
        seen = torch.stack([layout.mask for layout in layouts])
        scores = [one.rows(output) for one in each.values()]
        weights = self.weigh(scores, seen, outputs)
        layout = replace(layouts[0], mask=seen.any(dim=0), full=all(layout.full for layout in layouts))
        out = self._together(list(each.values()), weights, layout)
        mixed = aggregate.mixture(scores, weights, self.temperature) if output == "logits" else None
        out.add(output, aggregate.mean(scores, weights) if mixed is None else mixed, layout)
        for (name, one), weight in zip(each.items(), weights, strict=True):
            for signal in one:
                out.add(f"{name}/{signal}", *one[signal])
            out.add(f"{name}/{WEIGHT}", weight, layout)
        out.model = roles[self.teachers[0]]
        return out

    def weigh(
        self, scores: Sequence[Float[Tensor, "n c"]], seen: Bool[Tensor, "m n"], outputs: Signals | None
    ) -> Float[Tensor, "m n"]:
        """Weights of the teachers in each row, of those that see it (`seen`); each row's sum to 1.

        Args:
            outputs: by the student, where `learner_first`.
        """
        return aggregate.equal(seen)

    def _say(self, roles: Roles, batch: Batch) -> dict[str, Signals]:
        """What each teacher says, by its name, with the features that the terms ask of it."""
        found, paths = {}, self.objectives[self.role].features("teacher")
        for role in self.teachers:
            mine = {own for path in paths if (own := of_teacher(role, path)) is not None}
            found[teacher_name(role)] = self.adapter.signals(role, roles[role], batch, sorted(mine))
        return found

    def _together(self, each: Sequence[Signals], weights: Tensor, layout: Layout) -> Signals:
        """The first teacher's signals; of numbers that all give a row (weights of classes), the mean."""
        out, first = Signals(each[0].ids), each[0]
        for name in first:
            rows, own = first[name]
            alike = all(name in one and one.layout(name).same_rows(layout) for one in each)
            if alike and rows.ndim == 1 and rows.is_floating_point():
                columns = [one.rows(name)[:, None] for one in each]
                rows, own = aggregate.mean(columns, weights).squeeze(1), layout
            out.add(name, rows, own)
        return out

    def _know(self, each: Mapping[str, Signals]) -> None:
        """Looked at once: a mixture has no meaning among teachers of different classes."""
        short = lacking(each, self.adapter.output)
        if short and self._answered():
            name = next(iter(short))
            raise UserError(
                f"teacher {name!r} knows {short[name]} of the student's classes, and a mixture needs all: take the "
                f"scheme uhc, or terms {{loss: uhc, on: {{student: logits, teacher: {name}/logits}}}}"
            )
        self._known = True

    def facts(self, roles: Mapping[str, nn.Module], batch: Batch) -> Mapping[str, Any]:
        """Mean weights of the teachers over a batch's rows."""
        outputs = self.forward_role(self.role, dict(roles), batch)
        teacher_signals = self.teacher_signals(self.role, dict(roles), batch, outputs)
        assert isinstance(teacher_signals, Signals)
        found: dict[str, float] = {}
        for role in self.teachers:
            weight, layout = teacher_signals[f"{teacher_name(role)}/{WEIGHT}"]
            found[teacher_name(role)] = float(weight[layout.mask].mean())
        return {"weights": found}


def _aligned(names: Sequence[str], layouts: Sequence[Layout]) -> None:
    for name, layout in zip(names, layouts, strict=True):
        if not layout.same_rows(layouts[0]):
            raise UserError(
                f"teachers {names[0]!r} and {name!r} answer on {len(layouts[0])} and {len(layout)} rows that do not "
                "mean the same: bring them to one grid"
            )


def lacking(each: Mapping[str, Signals], output: str) -> dict[str, int]:
    """How many of the student's classes a teacher knows, by name, of those that do not know all."""
    found: dict[str, int] = {}
    for name, one in each.items():
        rows, layout = one[output]
        if output == "logits" and bool(layout.mask.any()):
            known = int((rows[layout.mask] > -torch.inf).any(dim=0).sum())
            found |= {name: known} if known < rows.shape[1] else {}
    return found


@SCHEMES.register("average")
class Average(Several):
    """Several teachers, each of the same weight: the student learns from the mean of their tempered probabilities.

    You et al., "Learning from Multiple Teacher Networks", KDD 2017, eq. 2: ``q = mean_j softmax(z_j / T)``, published
    with T from 3 to 4 and a weight of 0.7. In a row that only some teachers see, the mean is over those.
    """

    paper, year = "Learning from Multiple Teacher Networks", 2017


class Votes(Tempered):
    on: str
    """The student's module whose embeddings of samples are compared."""
    teachers: str | dict[str, str]
    """The teachers' module, or one by teacher's name (the first is called ``teacher``)."""
    weight: float = Field(1.0, ge=0)
    margin: float = Field(0.0, ge=0)


@SCHEMES.register("you")
class You(Average):
    """The mean of several teachers, and the order of samples by distance on which most of them agree.

    You et al., "Learning from Multiple Teacher Networks", KDD 2017: to `average` it adds the term `triplet_votes` on
    an intermediate layer, over all triplets of a batch where the paper samples some. A layer whose name differs between
    teachers is given by teacher.
    """

    Params: ClassVar[type[Strict]] = Votes

    @classmethod
    def plan(cls, params: Any, recipe: Recipe, student: RolePlan) -> Sequence[RolePlan]:
        names, paths = [teacher_name(role) for role in student.teachers], params.teachers
        if isinstance(paths, dict) and (missing := sorted(set(names) ^ set(paths))):
            raise UserError(f"scheme.params.teachers: give a module for each of {', '.join(names)}: see {missing[0]!r}")
        asked = tuple(f"{name}/{paths if isinstance(paths, str) else paths[name]}" for name in names)
        votes = Term(
            loss="triplet_votes", on=On(student=params.on, teacher=asked), weight=params.weight,
            params={"margin": params.margin},
        )  # fmt: skip
        [role_plan] = super().plan(params, recipe, student)
        return [replace(role_plan, terms=(*role_plan.terms, votes))]


@SCHEMES.register("ca_mkd")
class Confident(Several):
    """Several teachers, in each row the heavier the surer they are of the true label.

    Zhang, Chen, Wang, "Confidence-Aware Multi-Teacher Knowledge Distillation", ICASSP 2022, eq. 3:
    ``w_j = (1 - exp(CE_j) / sum_k exp(CE_k)) / (m - 1)``. Of a transcript, whose frames have no labels of their own,
    CE is CTC's negative log-likelihood per symbol, and an utterance's frames share its weights. Where labels may not be
    looked at, all teachers weigh the same. The paper's second term weighs features likewise: ``weights: NAME/weight``.
    """

    paper, year = "Confidence-Aware Multi-Teacher Knowledge Distillation", 2022
    learner_first: ClassVar[bool] = True

    def weigh(
        self, scores: Sequence[Float[Tensor, "n c"]], seen: Bool[Tensor, "m n"], outputs: Signals | None
    ) -> Float[Tensor, "m n"]:
        assert outputs is not None
        if "labels" not in outputs or outputs.rows("labels").is_floating_point():
            raise UserError("scheme ca_mkd: it weighs teachers by the labels of classes, and this data has none")
        layout, labels = outputs.layout(self.adapter.output), outputs["labels"]
        if labels.layout.same_rows(layout):
            held = labels.layout.mask & self._shown(outputs, labels.layout)
            true = torch.where(held, labels.rows, -1)
            rows = [torch.where(here[:, None], z, 0.0) for z, here in zip(scores, seen, strict=True)]
            return aggregate.by_confidence(torch.stack([aggregate.cross_entropy(z, true) for z in rows]), seen)
        ce = torch.stack([self._transcript(z, here, outputs) for z, here in zip(scores, seen, strict=True)])
        return aggregate.by_confidence(ce[:, layout.item], seen)

    @staticmethod
    def _shown(outputs: Signals, layout: Layout) -> Tensor:
        """``(n,)`` rows whose labels may be looked at."""
        return torch.ones_like(layout.mask) if outputs.labelled is None else outputs.labelled[layout.item]

    def _transcript(self, scores: Tensor, seen: Tensor, outputs: Signals) -> Tensor:
        """``(b,)`` of each item's label sequence, 0 where it may not be looked at."""
        layout, (labels, places) = outputs.layout(self.adapter.output), outputs["labels"]
        blank = self.adapter.blank
        if blank is None or places.grid is None or layout.grid is None or len(layout.grid) != 1:
            raise UserError("scheme ca_mkd: the labels stand neither beside the rows nor are they a transcript of them")
        lengths = places.mask.reshape(places.items, -1).sum(dim=1)
        frames = seen.reshape(layout.items, -1).sum(dim=1)
        rows = torch.where(seen[:, None], scores, 0.0).reshape(layout.items, -1, scores.shape[-1])
        found = aggregate.transcript_entropy(rows, frames, labels.reshape(places.items, -1), lengths, blank)
        return found if outputs.labelled is None else torch.where(outputs.labelled, found, 0.0)


class Capped(Tempered):
    cap: float = Field(2.0, ge=1)
    """C: no teacher of m weighs more than C / m; 1: all weigh the same, m: they are free. The release's is C / m."""
    released: bool = False
    """Average each teacher's gradient over its rows first, as the released code does: what it asks of different rows
    then cancels, while the paper weighs the gradients of all rows."""


@SCHEMES.register("ae_kd")
class Agreed(Several):
    """Several teachers, weighed so that the student's step serves all of them: the least norm of their gradients' mix.

    Du et al., "Agree to Disagree: Adaptive Ensemble Knowledge Distillation in Gradient Space", NeurIPS 2020, eq. 9:
    the w that minimise ``||sum_j w_j g_j||^2`` with ``sum w = 1`` and ``0 <= w_j <= C / m``, g_j the gradient of kd
    from teacher j at the student's scores. One weight a teacher and batch; with ``accumulate``, a micro-batch.
    """

    Params: ClassVar[type[Strict]] = Capped
    paper, year = "Agree to Disagree: Adaptive Ensemble Knowledge Distillation in Gradient Space", 2020
    learner_first: ClassVar[bool] = True

    def weigh(
        self, scores: Sequence[Float[Tensor, "n c"]], seen: Bool[Tensor, "m n"], outputs: Signals | None
    ) -> Float[Tensor, "m n"]:
        assert outputs is not None
        if self.adapter.output != "logits":
            raise UserError("scheme ae_kd: its gradients are those of class scores: take average")
        held = seen & outputs.layout("logits").mask
        rows = [torch.where(here[:, None], z, 0.0) for z, here in zip(scores, held, strict=True)]
        student = torch.where(held.any(dim=0)[:, None], outputs.rows("logits"), 0.0)
        slopes = aggregate.gradients(student, rows, self.temperature) * held[..., None]
        if self.params.released:
            means = (
                self._ranks.sum(slopes.sum(dim=1)) / self._ranks.sum(held.sum(dim=1).to(slopes)).clamp(min=1)[:, None]
            )
            gram = means @ means.T
        else:
            gram = self._ranks.sum(torch.einsum("inc,jnc->ij", slopes, slopes))
        weights = seen * slopes.new_tensor(aggregate.min_norm(gram, self.params.cap))[:, None]
        whole = weights.sum(dim=0)
        return torch.where(whole > 0, weights / whole.clamp(min=1e-12), aggregate.equal(seen))


@SCHEMES.register("uhc")
class OtherClasses(Scheme):
    """Teachers that tell other classes apart: each teaches the classes that it knows, matched by their names.

    Vongkulbhisal et al., "Unifying Heterogeneous Classifiers with Distillation", CVPR 2019: the term `uhc` compares
    each teacher with the student's probabilities renormalised on that teacher's classes; every term with a teacher is
    the mean over the teachers. What a teacher knows is the modality's to say (``data.teacher.classes`` of points,
    ``data.vocabulary`` of speech).
    """

    Params: ClassVar[type[Strict]] = Strict
    paper, year = "Unifying Heterogeneous Classifiers with Distillation", 2019
    family = "several teachers"
    several: ClassVar[bool] = True
    _known = False

    def teacher_signals(self, role: str, roles: Roles, batch: Batch, outputs: Signals | None) -> TeacherSignals:
        each = {teacher_name(teacher): self.forward_role(teacher, roles, batch) for teacher in self.teachers}
        if not self._known:
            self._know(each)
        return each

    def _know(self, each: Mapping[str, Signals]) -> None:
        short = lacking(each, self.adapter.output)
        for term in self.objectives[self.role] if short else ():
            answers = term.spec.needs_teacher and not OUTPUTS.isdisjoint(term.term.signals("teacher"))
            if answers and term.spec.name != "uhc":
                name = next(iter(short))
                raise UserError(
                    f"term {term.name!r}: teacher {name!r} knows {short[name]} of the student's classes, which only "
                    "the loss uhc can compare"
                )
        self._known = True

    def facts(self, roles: Mapping[str, nn.Module], batch: Batch) -> Mapping[str, Any]:
        """How many of the student's classes each teacher knows."""
        each = {teacher_name(teacher): self.forward_role(teacher, dict(roles), batch) for teacher in self.teachers}
        short, output = lacking(each, self.adapter.output), self.adapter.output
        return {"classes": {name: short.get(name, one.rows(output).shape[1]) for name, one in each.items()}}
