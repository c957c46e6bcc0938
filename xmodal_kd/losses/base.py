"""The registry of losses and the contract of one.

A loss is a plain function of rows. Its positional parameters name what it is given, its keyword-only parameters are
its hyper-parameters (validated from their annotations), and its `reduction` says what it returns:

========== =================================================== =====================================
reduction  returns                                             the objective divides the sum by
========== =================================================== =====================================
rows       ``(n,)``, one value a row                           the number of valid rows
items      ``(b,)``, one value an item of the batch            the number of items that were counted
batch      a scalar of all rows (Gram matrices, correlations)  one; rows are gathered over the ranks
========== =================================================== =====================================

An ``items`` loss may return ``(values, counted)`` when some items cannot be scored (an utterance that is too short
for its transcript), or when its mean is one over something within items: then `values` are an item's sums and `counted`
how many it has (regions).

**Several signals.** A loss that annotates ``student: list[...]`` compares lists, the terms' ``on`` being lists or globs
of several modules; ``teacher``, ``item``, ``cell`` and ``grid`` are then lists beside it. Lists of equal length are
pairs, valid where both of a pair are; of unequal length (layers of a deep and a shallow network) they hold the same
rows throughout.

**Maps.** A loss that needs neighbourhoods takes ``cell`` and ``grid`` and lays its valid rows out by `to_maps`. One
that annotates ``grid: tuple[int, ...] | None`` also takes rows without a grid, and is given None then.

**Modules.** What has parameters or memory is an ``nn.Module`` class instead of a function: it is built as
``cls(student_width, teacher_width, **params)`` (lists of widths for lists; a third positional ``axes`` is the number of
the grid's axes, 0 without a grid), called like a function, owned by the objective, seen by the optimizer; its buffers
are in the checkpoint. A part that learns beside the student (a critic, an auto-encoder of the teacher) adds its own
loss by `beside`, on detached rows, and stands `frozen` in the student's.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import wraps
from math import prod
from typing import Annotated, Any, Literal, TypeVar, get_origin, get_type_hints

import torch
from pydantic import BaseModel, ConfigDict, Field, create_model
from pydantic.fields import FieldInfo
from torch import Tensor, nn

from ..runtime.registry import Registry
from . import blocks
from .known_classes import among_known, known_classes

Reduction = Literal["rows", "items", "batch"]
#: A hyper-parameter above 0: a temperature, an exponent.
Positive = Annotated[float, Field(gt=0)]

#: What the objective can hand to a loss, by parameter name.
INPUTS: Mapping[str, str] = {
    "student": "(n, c) valid rows of the student",
    "teacher": "(n, d) rows of the teacher, row i beside row i of the student, without gradient",
    "item": "(n,) item of the batch of each row",
    "teacher_item": "(m,) of each of the teacher's, m of them: all that are valid, of which row i is beside no row i",
    "items": "number of items in the batch",
    "labels": "(m,) labels: one a row (m = n) or one a token of each item; (n, c) targets of a regression",
    "label_item": "(m,) item of the batch of each label",
    "ids": "(b,) ids of the samples in the whole training set",
    "regions": "(n,) region of each row, from the signal that the term's `regions` names; rows below 0 are left out",
    "grid": "shape of one item's rows, which must form a grid",
    "cell": "(n,) ascending: the cell of each row among the items x prod(grid) of the batch",
    "head": "the teacher's frozen module that the term's `head` names, from rows (n, d) to rows",
    "own_head": "the student's that it names, from rows (n, c) to rows; its weights get gradients by `learning` alone",
    "progress": "share of the training that is done, from 0 to 1",
}
#: Inputs that say where a row stands in its own process: they have no meaning among rows of all ranks.
LOCAL = frozenset({"label_item", "grid", "cell"})


@dataclass(frozen=True)
class LossSpec:
    """A registered loss: the function and what `list losses` says of it."""

    name: str
    fn: Callable[..., Any]
    reduction: Reduction
    inputs: tuple[str, ...]
    params: type[BaseModel]
    family: str
    paper: str
    year: int
    needs: frozenset[str]
    properties: frozenset[str]
    confidence: Literal["A", "B", "C"]
    many: bool = False
    """Compares lists of signals."""
    ragged: bool = True
    """Takes rows that form no grid."""
    inner: Callable[..., Any] | None = None
    """A function as the objective calls it, which has looked itself at what classes the teacher knows."""

    @property
    def summary(self) -> str:
        """First line of the docstring."""
        return (inspect.getdoc(self.fn) or "").partition("\n")[0]

    @property
    def experimental(self) -> bool:
        """The paper says too little: a design of our own after its idea, every constant of which is a parameter."""
        return self.confidence == "C"

    @property
    def needs_teacher(self) -> bool:
        return "teacher" in self.inputs

    @property
    def is_module(self) -> bool:
        return isinstance(self.fn, type)

    @property
    def alone(self) -> bool:
        """Each row's value is of that row alone, so that rows may be taken in chunks."""
        plain = not (self.is_module or self.many) and {"student", "teacher", "labels"}.issuperset(self.inputs)
        return plain and self.reduction == "rows"

    def make(self, student_width: Any, teacher_width: Any, axes: Any = 0, **params: Any) -> nn.Module:
        """The module of a loss that is one; `axes`, the number of axes of the grid, for those that ask for it."""
        asks = "axes" in inspect.signature(self.fn).parameters
        made: nn.Module = self.fn(student_width, teacher_width, *([axes] if asks else []), **params)
        return made

    def describe(self) -> dict[str, Any]:
        """The fields of ``list losses --json``."""
        return {
            "name": self.name,
            "family": self.family,
            "summary": f"Experimental. {self.summary}" if self.experimental else self.summary,
            "paper": self.paper,
            "year": self.year,
            "needs": sorted(self.needs),
            "reduction": self.reduction,
            "properties": sorted(self.properties),
            "confidence": self.confidence,
            "experimental": self.experimental,
            "parameters": {k: _plain(v) for k, v in self.params.model_fields.items()},
        }


def _plain(field: FieldInfo) -> Any:
    """A parameter's default as JSON has it; None where it has none."""
    default = None if field.is_required() else field.default
    return list(default) if isinstance(default, tuple) else default


LOSSES: Registry[LossSpec] = Registry("loss")
F = TypeVar("F", bound=Callable[..., Any])


# docs/decisions/005-losses.md
def loss(
    name: str,
    *,
    reduction: Reduction,
    family: str,
    paper: str,
    year: int,
    needs: str = "logits",
    properties: str = "",
    confidence: Literal["A", "B", "C"] = "A",
) -> Callable[[F], F]:
    """Register a loss. `needs` and `properties` are space-separated words.

    Properties that the tests hold a loss to: ``zero_at_teacher`` (its minimum, 0, at student = teacher),
    ``shift_invariant`` (a constant added to a row), ``row_shift_invariant`` (one vector added to all rows),
    ``scale_invariant`` (of either side), ``widths_differ`` (needs no projector), ``held_weight`` (a factor of the value
    is held fixed in the gradient), ``selective`` (some rows rightly get no gradient: maxima, rows outside a region),
    ``batch_statistics`` (an item's value depends on the batch's other rows), ``random`` (draws from torch's generator),
    ``tied_widths`` (beside ``widths_differ``: they differ, in a relation of their own), ``masks_unknown`` (looks itself
    at the classes of which the teacher's score is -inf), ``numbered`` (a parameter speaks of columns by their number),
    ``labelled_lists`` (labels stand beside its first signal), ``other_tokens`` (of two vocabularies, row i the i-th).
    """

    def add(fn: F) -> F:
        spec = _spec(fn)
        if spec.is_module:
            fn.forward = _knowing_all(_precise(fn.forward), spec)  # type: ignore[attr-defined]
        else:
            inner = _in_chunks(_precise(fn)) if spec.alone else _precise(fn)
            fn = _among_known(inner, spec)
            spec = replace(spec, fn=fn, inner=inner)
        LOSSES.add(name, spec)
        fn.spec = spec  # type: ignore[attr-defined]
        return fn

    def _spec(fn: F) -> LossSpec:
        forward: Any = fn.forward if isinstance(fn, type) and issubclass(fn, nn.Module) else fn
        inputs = tuple(_positional(forward))
        if unknown := set(inputs) - set(INPUTS):
            raise TypeError(
                f"loss {name!r} asks for unknown inputs {sorted(unknown)}; known: {', '.join(INPUTS)}; "
                "hyper-parameters stand behind a * in its signature"
            )
        if reduction == "batch" and (local := set(inputs) & LOCAL):
            raise TypeError(f"loss {name!r} is over all ranks' rows, where {sorted(local)} mean nothing")
        hints = get_type_hints(forward)
        many = get_origin(hints["student"]) is list
        ragged = "grid" not in inputs or "None" in str(hints["grid"])
        by_row = {"regions"} if "label_item" in inputs else {"labels", "regions"}  # tokens belong to items, not to rows
        by_row -= {"labels"} if "labelled_lists" in properties.split() else set()
        if many and (single := set(inputs) & by_row):
            raise TypeError(f"loss {name!r} compares lists of signals: it has no one row for {sorted(single)}")
        words = set(needs.split()) | ({"labels"} if "labels" in inputs else set())
        words |= {"teacher"} if "teacher" in inputs else set()
        return LossSpec(
            name, fn, reduction, inputs, _params_model(name, fn), family, paper, year,
            frozenset(words), frozenset(properties.split()), confidence, many, ragged,
        )  # fmt: skip

    return add


_NOTHING = nullcontext()


def _precise(fn: F) -> F:
    """`fn` in at least float32 whatever its inputs and the autocast: a KL of bf16 rows can come out negative.

    The teacher's rows are detached here as well, for losses in loops of one's own.
    """
    names = list(inspect.signature(fn).parameters)
    teacher = names.index("teacher") if "teacher" in names else len(names)

    @wraps(fn)
    def call(*inputs: Any, **params: Any) -> Any:
        given = [full_precision(x) for x in inputs]
        if teacher < len(given):
            given[teacher] = _detached(given[teacher])
        with without_autocast(next(_tensors(inputs)).device.type):
            return fn(*given, **params)

    return call  # type: ignore[return-value]


def _among_known(fn: F, spec: LossSpec) -> F:
    """`fn` of the classes that both sides know: `known_classes`. For calls beside an objective, which cuts rows itself.

    A row that cannot be compared has value 0. With ``index`` rows are chosen that a caller has looked at.
    """
    if spec.many or "student" not in spec.inputs or "masks_unknown" in spec.properties:
        return fn

    @wraps(fn)
    def call(*inputs: Any, **params: Any) -> Any:
        named = dict(zip(spec.inputs, inputs, strict=False))
        named |= {name: params.pop(name) for name in spec.inputs if name in params}
        if "index" in params or not isinstance(named.get("student"), Tensor):
            return fn(**named, **params)
        numbered, scores = "numbered" in spec.properties, "logits" in spec.needs
        given, keep = among_known(named, numbered=numbered, scores=scores)
        if keep is None:
            return fn(*given.values(), **params)
        if not spec.alone:
            raise ValueError("some rows have no label among the classes that it compares: leave them out")
        values = fn(*(rows[keep] for rows in given.values()), **params)
        return values.new_zeros(len(keep)).masked_scatter(keep, values)

    return call  # type: ignore[return-value]


def _knowing_all(fn: F, spec: LossSpec) -> F:
    """A module's `fn`, which refuses class scores of -inf: its weights are those of the classes it was built for."""
    if spec.many or "logits" not in spec.needs or not spec.needs_teacher:
        return fn

    @wraps(fn)
    def call(self: Any, *inputs: Any) -> Any:
        teacher = dict(zip(spec.inputs, inputs, strict=False)).get("teacher")
        if isinstance(teacher, Tensor) and teacher.device.type == "cpu" and known_classes(teacher) is not None:
            raise ValueError("the teacher's scores hold -inf: build and call it with the classes that both sides know")
        return fn(self, *inputs)

    return call  # type: ignore[return-value]


def without_autocast(device: str) -> AbstractContextManager[Any]:
    """No autocast inside, which costs nothing where there is none."""
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else _NOTHING


def _in_chunks(fn: F) -> F:
    """`fn`, whose rows know nothing of one another, in chunks where they are many.

    With ``index`` ``(m,)`` only the rows that it names are taken.
    """

    @wraps(fn)
    def call(student: Tensor, *others: Tensor, index: Tensor | None = None, **params: Any) -> Any:
        if index is None and (student.numel() <= blocks.BLOCK or any(len(x) != len(student) for x in others)):
            return fn(student, *others, **params)
        return blocks.row_by_row(lambda *rows: fn(*rows, **params), student, [x.detach() for x in others], index)

    return call  # type: ignore[return-value]


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list):
            yield from _tensors(value)


def _detached(value: Any) -> Any:
    return [x.detach() for x in value] if isinstance(value, list) else value.detach()


def full_precision(value: Any) -> Any:
    """Half-precision tensors in float32, also within a list; everything else, float64 included, as it is."""
    if isinstance(value, list):
        return [full_precision(x) for x in value]
    half = isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
    return value.float() if half else value


def _positional(fn: Callable[..., Any]) -> list[str]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p.name for p in inspect.signature(fn).parameters.values() if p.kind in kinds and p.name != "self"]


def _params_model(name: str, fn: Callable[..., Any]) -> type[BaseModel]:
    """A strict pydantic model of the keyword-only parameters, so that a recipe's misspelt one is caught."""
    target = fn.__init__ if isinstance(fn, type) else fn  # type: ignore[misc]
    hints = get_type_hints(target, include_extras=True)
    fields: dict[str, Any] = {
        p.name: (hints[p.name], p.default if p.default is not p.empty else ...)
        for p in inspect.signature(target).parameters.values()
        if p.kind is p.KEYWORD_ONLY
    }
    return create_model(
        f"{name}_params", __config__=ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False), **fields
    )


def same_shape(student: Tensor, teacher: Tensor) -> None:
    """Refuse what would broadcast: a teacher never stands against a student of another shape."""
    if student.shape != teacher.shape:
        raise ValueError(
            f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} differ in shape: "
            "map the classes, or give the term a projector"
        )


def same_rows(student: Tensor, teacher: Tensor) -> None:
    """As `same_shape`, for losses that compare rows of different widths."""
    if len(student) != len(teacher):
        raise ValueError(f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} differ in rows")


def item_sum(values: Tensor, item: Tensor, items: int) -> Tensor:
    """Sum rows ``(n, ...)`` into their items: ``(b, ...)``."""
    out = torch.zeros(items, *values.shape[1:], dtype=values.dtype, device=values.device)
    return out.index_add(0, item, values)


def item_mean(values: Tensor, item: Tensor, items: int) -> Tensor:
    """Mean of each item's rows: ``(b, ...)``; 0 for an item without rows."""
    count = torch.bincount(item, minlength=items).clamp(min=1)
    return item_sum(values, item, items) / count.reshape(-1, *[1] * (values.ndim - 1))


def to_maps(rows: Tensor, cell: Tensor, items: int, grid: tuple[int, ...]) -> Tensor:
    """Rows ``(n, c)`` laid out on their grid, channels first: ``(b, c, *grid)``, 0 where no row is valid."""
    cells = items * prod(grid)
    if len(rows) != cells:  # all cells, in order, are the rows as they are
        rows = rows.new_zeros(cells, rows.shape[1]).index_copy(0, cell, rows)
    return rows.reshape(items, *grid, rows.shape[1]).movedim(-1, 1)


def to_rows(maps: Tensor, cell: Tensor) -> Tensor:
    """The valid rows ``(n, c)`` of maps ``(b, c, *grid)``: what `to_maps` laid out."""
    rows = maps.movedim(1, -1).reshape(-1, maps.shape[1])
    return rows if len(rows) == len(cell) else rows[cell]


def beside(value: Tensor, own: Tensor) -> Tensor:
    """`value` with the gradient of `own` added: one backward pass trains the student and what learns beside it.

    `own` is the loss of a critic or an auto-encoder on detached rows; `value`, which is what is logged, must be
    computed with that part `frozen`, or its gradient would train it the other way. A term's weight scales both.
    """
    return value + (own - own.detach())


def frozen(module: nn.Module, *inputs: Any) -> Any:
    """``module(*inputs)`` whose parameters get no gradient and whose buffers stay, while the inputs get theirs."""
    like = next(_tensors(inputs)).dtype
    held = {name: _as(p.detach(), like) for name, p in module.named_parameters()}
    held |= {name: _as(b.detach().clone(), like) for name, b in module.named_buffers()}
    return torch.func.functional_call(module, held, inputs)


def _as(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.to(dtype) if value.is_floating_point() else value
