"""Weighted terms between a student's and a teacher's signals.

The objective gathers the rows that are valid on both sides before a loss sees them, so padding, even NaN, changes
nothing; computes in at least float32 whatever the autocast; owns projectors and the modules of its losses; and returns
for each term a sum and a count, so that accumulation and several ranks give the true mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import reduce
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from .errors import UserError, nearest
from .losses import LOSSES, LossSpec
from .losses.base import full_precision
from .ranks import Ranks
from .recipe import Term
from .signals import OUTPUTS, Layout, Signal, Signals
from .streams import Streams


@dataclass(frozen=True)
class Part:
    """One term on one (micro-)batch: its value is ``total / count`` once both are summed over the global batch.

    Parts of equal `unit` have equal counts on every batch, so that accumulation may treat them as one.
    """

    total: Tensor
    count: Tensor
    weight: float
    unit: str


@dataclass(frozen=True)
class LossOut:
    """What a step minimises: the weighted sum of its parts' means.

    Each part has a count of its own, because a mean over utterances and a mean over frames have different ones.
    """

    parts: Mapping[str, Part] = field(default_factory=dict)

    @classmethod
    def mean(cls, name: str, values: Tensor, weight: float = 1.0) -> LossOut:
        """A single part from one value a sample: what a method with a loss of its own returns."""
        return cls({name: Part(values.sum(), values.new_tensor(float(values.numel())), weight, name)})

    def value(self) -> Tensor:
        """The loss of this batch alone, for a loop of your own on one process."""
        terms = [part.weight * part.total / safe(part.count) for part in self.parts.values()]
        return torch.stack(terms).sum()

    def __add__(self, other: LossOut) -> LossOut:
        if both := self.parts.keys() & other.parts.keys():
            raise ValueError(f"two parts are called {', '.join(sorted(both))}")
        return LossOut({**self.parts, **other.parts})


def safe(count: Tensor) -> Tensor:
    """A count to divide by, above 0 where nothing was counted: the total is 0 then, and so is the mean."""
    return count.clamp(min=1e-6)


def spec_of(term: Term) -> LossSpec:
    """A term's loss, by registered name, import path or entry point. Raises `UserError` for what is none."""
    found = LOSSES[term.loss]  # the latter two give what the decorator returned
    spec = found if isinstance(found, LossSpec) else getattr(found, "spec", None)
    if not isinstance(spec, LossSpec):
        raise UserError(f"loss {term.loss!r} is not decorated with xmodal_kd.losses.loss")
    return spec


class _Compiled(nn.Module):
    """A term with the modules that belong to it."""

    def __init__(self, term: Term) -> None:
        super().__init__()
        self.term = term
        self.spec = spec_of(term)
        self.params = _checked(self.spec, term)
        self.projector: nn.Module | None = None
        self.module: nn.Module | None = None

    @property
    def name(self) -> str:
        return self.term.name or self.term.loss

    @property
    def unit(self) -> str:
        """Terms of equal unit count the same rows: same signals, same masks."""
        if self.spec.reduction == "items":
            return self.name
        sides = ["student", "teacher"] if self.spec.needs_teacher else ["student"]
        read = [f"{side} {self.term.signal(side)}" for side in sides]  # type: ignore[arg-type]
        if "labels" in self.spec.inputs:
            read.append("labels")
        return f"{self.spec.reduction} of {', '.join(read)}"


def _checked(spec: LossSpec, term: Term) -> dict[str, Any]:
    """The term's hyper-parameters against the model that its loss declares."""
    try:
        return spec.params.model_validate(term.params).model_dump()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            raise UserError(
                f"loss {spec.name!r} has no parameter {name!r}{nearest(name, spec.params.model_fields)}"
            ) from None
        raise UserError(f"loss {spec.name!r}, parameter {name!r}: {first['msg']}") from None


class Objective(nn.Module):
    """Weighted losses with schedules; its parameters are projectors and whatever its losses learn.

    In a loop of your own::

        objective = Objective([Term(loss="kd", params={"temperature": 2.0})])
        with torch.no_grad():
            t = Signals().add("logits", teacher(x), Layout.samples(len(x)))
        s = Signals().add("logits", student(x), Layout.samples(len(x)))
        objective(s, t).value().backward()

    Call `build` once with signals of a real batch if a term needs a projector or a module, before the optimizer is
    made.
    """

    def __init__(self, terms: Sequence[Term], *, steps: int = 1) -> None:
        super().__init__()
        self.steps = steps
        self.terms = nn.ModuleList(_Compiled(term) for term in terms)
        self.built = False

    def __iter__(self) -> Iterator[_Compiled]:
        return iter(self.terms)  # type: ignore[arg-type]

    @property
    def needs_teacher(self) -> bool:
        return any(term.spec.needs_teacher for term in self)

    def features(self, role: str) -> list[str]:
        """Module paths (or globs) whose output the terms compare, for the adapter to capture."""
        wanted = [t.term.signal(role) for t in self if role == "student" or t.spec.needs_teacher]  # type: ignore[arg-type]
        return sorted({path for path in wanted if path not in OUTPUTS})

    def build(self, student: Signals, teacher: Signals | None, streams: Streams) -> Objective:
        """Make the projectors and modules that these signals' widths ask for. Returns self.

        Their initial weights come from streams of their own, so one more changes nothing else.
        """
        for term in self:
            pair = self._signals(term, student, teacher)
            width_s = pair[0].rows.shape[-1]
            width_t = pair[1].rows.shape[-1] if pair[1] is not None else width_s
            like = full_precision(pair[0].rows)
            with streams.forked("objective", term.name):
                if term.spec.needs_teacher and self._wants_projector(term, width_s, width_t):
                    term.projector = nn.Linear(width_s, width_t).to(like)
                    width_s = width_t
                if term.spec.is_module:
                    term.module = term.spec.fn(width_s, width_t, **term.params).to(like)
        self.built = True
        return self

    @staticmethod
    def _wants_projector(term: _Compiled, width_s: int, width_t: int) -> bool:
        if term.term.projector == "auto":
            return width_s != width_t and "widths_differ" not in term.spec.properties and term.term.on not in OUTPUTS
        return term.term.projector == "linear"

    def forward(
        self, student: Signals, teacher: Signals | None = None, *, step: int = 0, ranks: Ranks | None = None
    ) -> LossOut:
        """The parts of all terms whose scheduled weight is not zero at `step`."""
        parts = {}
        for term in self:
            weight = term.term.weight * term.term.schedule(step, self.steps)
            if weight > 0:
                total, count = self._term(term, student, teacher, ranks or Ranks())
                parts[term.name] = Part(total, count, weight, term.unit)
        if not parts:
            raise UserError(f"every term's weight is 0 at step {step} of {self.steps}: there is nothing to learn from")
        return LossOut(parts)

    def _signals(self, term: _Compiled, student: Signals, teacher: Signals | None) -> tuple[Signal, Signal | None]:
        mine = _named(student, term.term.signal("student"))
        if not term.spec.needs_teacher:
            return mine, None
        if teacher is None:
            raise UserError(f"term {term.name!r} compares with a teacher, and there is none")
        theirs = _named(teacher, term.term.signal("teacher"))
        if not mine.layout.same_rows(theirs.layout):
            raise UserError(
                f"term {term.name!r}: the student's {len(mine.layout)} {mine.layout.kind} rows and the teacher's "
                f"{len(theirs.layout)} {theirs.layout.kind} rows are not aligned: row i must mean the same in both"
            )
        return mine, theirs

    def _term(self, term: _Compiled, student: Signals, teacher: Signals | None, ranks: Ranks) -> tuple[Tensor, Tensor]:
        mine, theirs = self._signals(term, student, teacher)
        layouts = [mine.layout] if theirs is None else [mine.layout, theirs.layout]
        labels = student["labels"] if "labels" in term.spec.inputs else None
        by_row = labels is not None and labels.layout.kind == mine.layout.kind
        if labels is not None and by_row:  # a row without a label is no row of this term
            if not labels.layout.same_rows(mine.layout):
                raise UserError(
                    f"term {term.name!r}: {len(labels.layout)} labels and the student's {len(mine.layout)} "
                    f"{mine.layout.kind} rows are not aligned"
                )
            layouts.append(labels.layout)
        valid = _valid(layouts)
        given: dict[str, Any] = {
            "student": full_precision(_chosen(mine.rows, valid)),
            "item": _chosen(mine.layout.item, valid),
            "items": mine.layout.items,
            "ids": student.ids,
        }
        if theirs is not None:
            given["teacher"] = full_precision(_chosen(theirs.rows.detach(), valid))
        if labels is not None:
            which = valid if by_row else _valid([labels.layout])
            given |= {"labels": _chosen(labels.rows, which), "label_item": _chosen(labels.layout.item, which)}
        with torch.autocast(given["student"].device.type, enabled=False):
            if term.projector is not None:
                given["student"] = term.projector(given["student"])
            if term.spec.reduction == "batch":
                return self._batch(term, given, ranks)
            out = self._call(term, given)
        values, counted = out if isinstance(out, tuple) else (out, None)
        count = values.new_tensor(float(values.numel())) if counted is None else counted.sum().to(values.dtype)
        return values.sum(), count

    def _batch(self, term: _Compiled, given: dict[str, Any], ranks: Ranks) -> tuple[Tensor, Tensor]:
        """A loss over all ranks' rows: every rank computes the same value and keeps its own rows' gradient.

        Each reports 1/world of the value with the whole gradient, so that the sum over ranks is right for both.
        """
        item = given["item"]
        gathered = {
            key: ranks.gather_rows(value) if key in ("student", "teacher", "labels") else value
            for key, value in given.items()
        }
        if len(gathered["student"]) < 2:  # no relation to learn from: nothing to add, the graph stays intact
            return gathered["student"].sum() * 0.0, item.new_zeros((), dtype=torch.float32)
        value = self._call(term, gathered)
        if ranks.world > 1:
            value = value / ranks.world + (value - value.detach()) * (1 - 1 / ranks.world)
        return value, value.new_tensor(1 / ranks.world)

    def _call(self, term: _Compiled, given: Mapping[str, Any]) -> Any:
        inputs = [given[name] for name in term.spec.inputs]
        try:
            if term.spec.is_module:
                if term.module is None:
                    raise UserError(f"term {term.name!r} has modules: call build() before the first step")
                return term.module(*inputs)
            return term.spec.fn(*inputs, **term.params)
        except ValueError as error:
            raise UserError(f"term {term.name!r}: {error}") from None


def _valid(layouts: Sequence[Layout]) -> Tensor | None:
    """Rows valid in every layout; None where all are known to be, for then nothing is copied."""
    masks = [layout.mask for layout in layouts if not layout.full]
    return reduce(torch.Tensor.logical_and, masks) if masks else None


def _chosen(rows: Tensor, valid: Tensor | None) -> Tensor:
    return rows if valid is None else rows[valid]


def _named(signals: Signals, path: str) -> Signal:
    """A signal by name, or the only captured one that a glob matches."""
    if path in signals:
        return signals[path]
    found = [name for name in signals if fnmatchcase(name, path)]
    if len(found) > 1:
        raise UserError(f"{path!r} names {len(found)} signals ({', '.join(found[:4])}): one term compares one pair")
    return signals[found[0] if found else path]
