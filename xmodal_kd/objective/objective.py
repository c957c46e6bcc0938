"""Weighted terms between a student's and a teacher's signals.

The objective gathers the rows that are valid on both sides before a loss sees them, so padding, even NaN, changes
nothing; computes in at least float32 whatever the autocast; owns projectors and the modules of its losses; and returns
for each term a sum and a count, so that accumulation and several ranks give the true mean.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, cast

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from ..losses import LOSSES, LossSpec
from ..losses.base import full_precision, without_autocast
from ..recipe.balance_spec import Balance
from ..recipe.recipe import Term
from ..runtime.distributed import Ranks
from ..runtime.errors import UserError, nearest
from ..runtime.random_streams import Streams
from ..signals.signals import OUTPUTS, Signal, Signals, TeacherSignals
from .balance import GradNorm, Uncertainty, make
from .class_rows import only_known, what_both_know
from .loss_inputs import LossInputs, Plain, as_they_are, collect, compared, gather, named, rows_in, teacher_signals
from .parts import LossOut, Part
from .resample import WAYS, Way, choose, pair


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
        _selects(self.spec, term)
        self.plain = Plain.of(term, self.spec)
        self.projector: nn.Module | None = None
        self.module: nn.Module | None = None
        #: Of each pair of signals, the number in `WAYS` of what a dry run chose: in checkpoints, and rank 0's for all.
        self.register_buffer("resampling", None)
        self.resampling: Tensor | None
        self._ways: tuple[Way, ...] | None = None
        self.register_load_state_dict_post_hook(_forget)  # type: ignore[no-untyped-call]
        #: Rows of student and teacher, by kind, in the dry run.
        self.rows: list[tuple[str, int, int]] = []
        #: How many of the student's classes the teacher knows, where it does not know all.
        self.classes: dict[str, int] = {}

    @property
    def name(self) -> str:
        return self.term.name or self.term.loss

    @property
    def ways(self) -> tuple[Way, ...]:
        """How each of the teacher's signals is brought to the student's rows; empty where nothing was decided."""
        if self.resampling is None:
            plain = self.term.resample in ("auto", "none") or self.spec.many or not self.spec.needs_teacher
            return () if plain else (cast(Way, self.term.resample),)
        if self._ways is None:  # read once, as a GPU would be waited for
            self._ways = tuple(WAYS[i] for i in self.resampling.tolist())
        return self._ways

    def forget(self) -> None:
        """After the choice was made, and before a checkpoint's or rank 0's may take its place."""
        self._ways = None

    def decide(self, student: Signals, teacher: Signals | None) -> None:
        """Choose how the teacher's rows are brought to the student's, from signals of a real batch."""
        mine, theirs = named(student, self.term.signals("student"), self.spec.many), list[Signal]()
        if self.spec.needs_teacher:
            theirs = teacher_signals(self.name, self.term, self.spec, teacher)
        wanted = self.term.resample
        if teacher is None or not theirs or wanted == "none" or "teacher_item" in self.spec.inputs:
            return
        if len(mine) != len(theirs):
            if wanted != "auto":
                raise UserError(
                    f"term {self.name!r}: resample: {wanted}: {len(mine)} signals of the student and {len(theirs)} of "
                    "the teacher are no pairs"
                )
            return
        if wanted == "auto" and OUTPUTS.issuperset(self.term.signals("teacher")):
            return  # a mean of scores is no mean of probabilities: the recipe must say that it is wanted
        pairs = [pair(a, b, student, teacher) for a, b in zip(mine, theirs, strict=True)]
        ways: list[Way] = [choose(one) if wanted == "auto" else wanted for one in pairs]
        codes = torch.tensor([WAYS.index(way) for way in ways], device=mine[0].rows.device)
        self.register_buffer("resampling", codes)
        self.rows = [(a.layout.kind, len(a.layout), len(b.layout)) for a, b, _ in pairs]

    def made(self) -> dict[str, Any]:
        """What was built for this term, for a report."""
        out: dict[str, Any] = {"term": self.name}
        if isinstance(self.projector, nn.Linear):
            out["projector"] = [self.projector.in_features, self.projector.out_features]
        resampled = [
            {"way": way, "kind": kind, "student": mine, "teacher": theirs}
            for way, (kind, mine, theirs) in zip(self.ways, self.rows, strict=True)
            if way != "none"
        ]
        out |= {"classes": self.classes} if self.classes else {}
        return out | ({"resample": resampled} if resampled else {})

    @cached_property
    def unit(self) -> str:
        """Terms of equal unit count the same rows: same signals, same masks."""
        if self.spec.reduction == "items" or self.term.weights is not None:
            return self.name
        sides = ["student", "teacher"] if self.spec.needs_teacher else ["student"]
        read = [f"{side} {' '.join(self.term.signals(side))}" for side in sides]
        if "labels" in self.spec.inputs:
            read.append("labels" if self.term.labels == "labels" else f"labels {self.term.labels}")
        if "regions" in self.spec.inputs:
            read.append(f"regions {self.term.regions}")
        if self.term.min_confidence is not None:
            read.append(f"confidence {self.term.min_confidence}")
        return f"{self.spec.reduction} of {', '.join(read)}"


def _forget(term: _Compiled, _: Any) -> None:
    term.forget()


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


def _selects(spec: LossSpec, term: Term) -> None:
    """Raises `UserError` where a term weighs or chooses rows that its loss does not have."""
    if term.weights is not None and spec.reduction != "rows":
        raise UserError(
            f"term {term.name or term.loss!r}: weights are for losses that give a value a row, and "
            f"{spec.name!r} gives one {'an item' if spec.reduction == 'items' else 'a batch'}: leave weights out"
        )
    if term.min_confidence is not None and not (spec.needs_teacher and term.signals("teacher") == ("logits",)):
        raise UserError(
            f"term {term.name or term.loss!r}: min_confidence asks how sure the teacher is of its class: "
            "only terms that compare with a teacher's logits can have it"
        )


class Objective(nn.Module):
    """Weighted losses with schedules; its parameters are projectors and whatever its losses learn.

    In a loop of your own:

    >>> from xmodal_kd.signals.signals import Layout
    >>> student, teacher, x = nn.Linear(8, 4), nn.Linear(8, 4), torch.randn(16, 8)
    >>> objective = Objective([Term(loss="kd", params={"temperature": 2.0})])
    >>> with torch.no_grad():
    ...     t = Signals().add("logits", teacher(x), Layout.samples(len(x)))
    >>> s = Signals().add("logits", student(x), Layout.samples(len(x)))
    >>> objective(s, t).value().backward()
    >>> student.weight.grad.shape
    torch.Size([4, 8])

    Call `build` once with signals of a real batch if a term needs a projector, a module or resampling, or if the terms
    are balanced, before the optimizer is made; with GradNorm also set ``.model`` of the student's signals, keep their
    graph in `build`, and say the `step` in every call.
    """

    def __init__(self, terms: Sequence[Term], *, steps: int = 1, balance: Balance | None = None) -> None:
        super().__init__()
        self.steps = steps
        several = sum(term.weight > 0 for term in terms) > 1  # one term alone has nothing to be weighed against
        self.asked = balance if balance is not None and several else Balance()
        self.balance: Uncertainty | GradNorm | None = None
        #: The same as the list of modules, which takes its time to go through.
        self._terms = tuple(_Compiled(term) for term in terms)
        self.terms = nn.ModuleList(self._terms)
        self._features: dict[str, list[str]] = {}
        self.built = False

    def __iter__(self) -> Iterator[_Compiled]:
        return iter(self._terms)

    @cached_property
    def needs_teacher(self) -> bool:
        return any(term.spec.needs_teacher for term in self)

    @property
    def reads_gradients(self) -> bool:
        """Whether `build` needs the student's rows with their graph."""
        return self.asked.name == "gradnorm"

    def features(self, role: str) -> list[str]:
        """Module paths (or globs) whose output the terms compare, for the adapter to capture."""
        if role not in self._features:
            terms = [t for t in self if role == "student" or t.spec.needs_teacher]
            paths = {path for t in terms for path in t.term.signals(role) if path.rpartition("/")[2] not in OUTPUTS}
            self._features[role] = sorted(paths)
        return self._features[role]

    def build(self, student: Signals, teacher: Signals | None, streams: Streams) -> Objective:
        """Make what these signals ask for: projectors, modules, resampling, learned weights. Returns self.

        Their initial weights come from streams of their own, so one more changes nothing else.
        """
        sides: dict[str, list[Tensor]] = {}
        for term in self:
            term.decide(student, teacher)
            mine, theirs = compared(term.name, term.term, term.spec, student, teacher, term.ways)
            known = what_both_know(term.name, term.term, term.spec, mine, theirs)
            if known is not None:
                term.classes = {"known": int(known.sum()), "of": len(known)}
                mine, theirs = only_known(mine, known), only_known(theirs, known)
            if term.term.weight > 0:
                sides[term.name] = [signal.rows for signal in mine]
            widths_s = [signal.rows.shape[-1] for signal in mine]
            widths_t = [signal.rows.shape[-1] for signal in theirs] or widths_s
            like = full_precision(mine[0].rows)
            with streams.forked("objective", term.name):
                if term.spec.needs_teacher and self._wants_projector(term, widths_s[0], widths_t[0]):
                    term.projector = nn.Linear(widths_s[0], widths_t[0]).to(like)
                    widths_s = widths_t
                if term.spec.is_module:
                    shape = (widths_s, widths_t, [len(signal.layout.grid or ()) for signal in mine])
                    term.module = self._made(term, *(shape if term.spec.many else (each[0] for each in shape))).to(like)
        if self.asked.name != "fixed":
            self.balance = make(self.asked, sides, student.model).to(like)
        for term in self:
            term.forget()
        self.built = True
        return self

    def describe(self) -> dict[str, Any]:
        """What `build` made, and the weights as they are now, for a report."""
        out: dict[str, Any] = {"terms": [made for term in self if len(made := term.made()) > 1]}
        if self.balance is not None:
            weights = dict(zip(self.balance.names, self.balance.weights().tolist(), strict=True))
            out["balance"] = {"name": self.asked.name, "weights": weights}
            if isinstance(self.balance, GradNorm):
                out["balance"]["layer"] = self.balance.path
        return out

    @staticmethod
    def _made(term: _Compiled, *shape: Any) -> nn.Module:
        try:
            return term.spec.make(*shape, **term.params)
        except ValueError as error:
            raise UserError(f"term {term.name!r}: {error}") from None

    @staticmethod
    def _wants_projector(term: _Compiled, width_s: int, width_t: int) -> bool:
        if term.spec.many:
            if term.term.projector == "linear":
                raise UserError(f"term {term.name!r} compares several signals: no projector goes before it")
            return False
        if term.term.projector == "auto":
            return width_s != width_t and "widths_differ" not in term.spec.properties and term.term.on not in OUTPUTS
        return term.term.projector == "linear"

    def forward(
        self, student: Signals, teacher: TeacherSignals = None, *, step: int = 0, ranks: Ranks | None = None,
        only: Collection[str] | None = None,
    ) -> LossOut:  # fmt: skip
        """The parts of all terms whose scheduled weight is not zero at `step`.

        Of several teachers, given by name, each term with a teacher has a part for each; together they have its weight.

        Args:
            only: names of terms; the others have no part in this batch.
        """
        if self.asked.name != "fixed" and (self.balance is None or isinstance(teacher, Mapping)):
            reason = "knows one teacher: leave it out" if self.balance else "learns weights: call build() first"
            raise UserError(f"balance {self.asked.name} {reason}")
        parts, all_ranks = {}, ranks or Ranks()
        taught: Mapping[str, Signals | None] = teacher if isinstance(teacher, Mapping) else {"": teacher}
        untaught: Mapping[str, Signals | None] = {"": None} if isinstance(teacher, Mapping) else taught
        for term in self:
            weight = term.term.weight * term.term.schedule(step, self.steps)
            if weight <= 0 or (only is not None and term.name not in only):
                continue
            several = taught if term.spec.needs_teacher else untaught
            for who, one in several.items():
                total, count, unit = self._term(term, student, one, all_ranks, step / self.steps)
                name, unit = (f"{term.name}/{who}", f"{unit} of {who}") if who else (term.name, unit)
                parts[name] = Part(total, count, weight / len(several), unit)
        if not parts:
            raise UserError(f"every term's weight is 0 at step {step} of {self.steps}: there is nothing to learn from")
        return LossOut(parts if self.balance is None else self._balanced(self.balance, parts, student, step, ranks))

    def _balanced(
        self, balance: Uncertainty | GradNorm, parts: dict[str, Part], student: Signals, step: int, ranks: Ranks | None
    ) -> dict[str, Part]:
        """The parts weighed, and each weight as a part that is only logged."""
        parts = balance(parts, student.model, step, ranks or Ranks())
        weights = dict(zip(balance.names, balance.weights().detach().clone(), strict=True))
        one = next(iter(weights.values())).new_ones(())
        shown = {
            f"weight/{name}": Part(part.weight * weights[name], one, 0.0, "weight") for name, part in parts.items()
        }
        return parts | shown

    def _term(
        self, term: _Compiled, student: Signals, teacher: Signals | None, ranks: Ranks, progress: float
    ) -> tuple[Tensor, Tensor | float, str]:
        """Total, count and what was counted: a loss that leaves out some of its rows counts as no other does."""
        projected, ways, given = term.projector is not None, term.ways, None
        if term.plain is not None and (not ways or set(ways) == {"none"}):
            given = as_they_are(term.plain, student, teacher)
        if given is None:
            given = collect(term.name, term.term, term.spec, student, teacher, progress, projected, ways)
        some = given["student"][0] if term.spec.many else given["student"]
        with without_autocast(some.device.type):
            if term.projector is not None:
                given["student"] = term.projector(given["student"])
            if term.spec.reduction == "batch":
                return *self._batch(term, given, ranks), term.unit
            out = self._call(term, given)
        if "labelled" in given and term.spec.reduction == "items":  # without labels an item is not counted
            values, counted = out if isinstance(out, tuple) else (out, torch.ones_like(out))
            out = torch.where(given["labelled"], values, 0.0), given["labelled"] * counted
        if isinstance(out, tuple):
            values, counted = out
            weights = given.get("weights", torch.ones_like(values)).to(values.dtype)
            return (weights * values).sum(), (weights * counted).sum(), term.name
        if "weights" in given:
            weights = given["weights"].to(out.dtype)
            return (weights * out).sum(), weights.sum(), term.unit
        return out.sum(), float(out.numel()), term.unit

    def _batch(self, term: _Compiled, given: LossInputs, ranks: Ranks) -> tuple[Tensor, float]:
        """A loss over all ranks' rows: every rank computes the same value and keeps its own rows' gradient.

        Each reports 1/world of the value with the whole gradient, so that the sum over ranks is right for both.
        """
        gathered = gather(term.spec, given, ranks)
        if rows_in(gathered) < 2:  # no relation to learn from: nothing to add, the graph stays intact
            rows = gathered["student"]
            total = torch.stack([x.sum() for x in (rows if isinstance(rows, list) else [rows])]).sum()
            return total * 0.0, 0.0
        value = self._call(term, gathered, share=1 / ranks.world)
        if ranks.world > 1:
            value = value / ranks.world + (value - value.detach()) * (1 - 1 / ranks.world)
        return value, 1 / ranks.world

    def _call(self, term: _Compiled, given: LossInputs, share: float = 1.0) -> Any:
        """The loss's values. A module's parameters get `share` of the gradient: that of one rank of several."""
        inputs = [given[name] for name in term.spec.inputs]
        try:
            if not term.spec.is_module:
                chunks = {"index": given["index"]} if "index" in given else {}
                return (term.spec.inner or term.spec.fn)(*inputs, **term.params, **chunks)
            if term.module is None:
                raise UserError(f"term {term.name!r} has modules: call build() before the first step")
            if share == 1:
                return term.module(*inputs)
            shared = {name: share * p + (1 - share) * p.detach() for name, p in term.module.named_parameters()}
            return torch.func.functional_call(term.module, shared, tuple(inputs))
        except ValueError as error:
            raise UserError(f"term {term.name!r}: {error}") from None
        except ArithmeticError as error:  # of a number of the recipe that no computer holds the square of
            params = ", ".join(f"{key} {value}" for key, value in term.params.items()) or "its defaults"
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise UserError(f"term {term.name!r} cannot be computed ({reason}): change its params: {params}") from None
