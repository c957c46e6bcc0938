"""What a loss is given of a batch: the rows that are valid on both sides, and what belongs to them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import reduce
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..losses import LossSpec, blocks
from ..losses.base import full_precision
from ..losses.known_classes import relabelled
from ..recipe.recipe import Term
from ..runtime.distributed import Ranks
from ..runtime.errors import UserError, nearest
from ..signals.signals import OUTPUTS, Layout, Signal, Signals
from .class_rows import all_classes, all_known, checked_labels, compares_scores, only_known, what_both_know
from .heads import head_of
from .resample import Way, pair, resample_rows

LossInputs = dict[str, Any]
#: Inputs of a loss over all ranks' rows that hold an entry for each row.
BY_ROW = ("student", "teacher", "labels", "regions", "item")


def compared(
    name: str, term: Term, spec: LossSpec, student: Signals, teacher: Signals | None, ways: Sequence[Way] = ()
) -> tuple[list[Signal], list[Signal]]:
    """The student's signals of a term and the teacher's (none where the loss needs none), known to be aligned.

    Args:
        ways: how each of the teacher's is brought to the rows of its partner; empty: not at all.
    """
    mine = named(student, term.signals("student"), spec.many)
    if not spec.needs_teacher:
        return mine, []
    theirs = teacher_signals(name, term, spec, teacher)
    if len(mine) == len(theirs):
        assert teacher is not None
        if any(way != "none" for way in ways):
            couples = [pair(a, b, student, teacher) for a, b in zip(mine, theirs, strict=True)]
            theirs = [resample_rows(name, way, couple) for way, couple in zip(ways, couples, strict=True)]
        pairs = list(zip(mine, theirs, strict=True))
    else:
        pairs = [(mine[0], other) for other in [*mine[1:], *theirs]]
    for a, b in () if "teacher_item" in spec.inputs else pairs:
        if not a.layout.same_rows(b.layout):
            raise UserError(
                f"term {name!r}: the student's {_rows_of(a.layout)} and the teacher's {_rows_of(b.layout)} are not "
                "aligned: row i must mean the same in both, or the term's resample must say how they are brought there"
            )
    return mine, theirs


def teacher_signals(name: str, term: Term, spec: LossSpec, teacher: Signals | None) -> list[Signal]:
    """The teacher's signals of a term, as they are."""
    if teacher is None:
        raise UserError(f"term {name!r} compares with a teacher, and there is none")
    paths = term.signals("teacher")
    if silent := next((path for path in paths if path in OUTPUTS and path not in teacher), None):
        raise UserError(
            f"term {name!r} compares with the teacher's {silent}, and this teacher gives none, only its layers: name "
            "one of each, as in on: {student: blocks.1, teacher: encoder.layers.3}"
        )
    return named(teacher, paths, spec.many)


def _rows_of(layout: Layout) -> str:
    of_grid = f" of grid {' x '.join(map(str, layout.grid))}" if layout.grid and len(layout.grid) > 1 else ""
    return f"{len(layout)} {layout.kind} rows{of_grid}"


def named(signals: Signals, paths: Sequence[str], many: bool) -> list[Signal]:
    """The signals that names or globs mean; where the loss compares `many`, a glob's in their natural order."""
    found = []
    for path in paths:
        if path in signals:
            found.append(path)
            continue
        matches = sorted((name for name in signals if fnmatchcase(name, path)), key=_natural)
        if len(matches) > 1 and not many:
            raise UserError(
                f"{path!r} names {len(matches)} signals ({', '.join(matches[:4])}): one term compares one pair"
            )
        found += matches or [path]
    if len(found) > 1 and not many:
        raise UserError(f"{len(found)} signals ({', '.join(found[:4])}): this loss compares one pair a term")
    return [signals[name] for name in found]


def _natural(name: str) -> list[tuple[int, str]]:
    """Order in which layer 2 comes before layer 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


class Plain(NamedTuple):
    """What a term compares, of which row i of every signal is all that row i of its loss needs.

    Attributes:
        labels: none where the loss reads none.
        scores: whether the teacher's rows are class scores, of which some may be unknown.
        classes: whether labels number the student's columns.
    """

    student: str
    teacher: str | None
    labels: str | None
    scores: bool
    classes: bool

    @classmethod
    def of(cls, term: Term, spec: LossSpec) -> Plain | None:
        """None where the recipe asks for more: weights, confidence, regions, several signals."""
        if not spec.alone or term.weights is not None or term.min_confidence is not None:
            return None
        sides = [term.signals("student"), term.signals("teacher") if spec.needs_teacher else ()]
        if len(sides[0]) != 1 or len(sides[1]) > 1:
            return None
        labels = term.labels if "labels" in spec.inputs else None
        scores = compares_scores(term, spec)
        return cls(sides[0][0], next(iter(sides[1]), None), labels, scores, "logits" in spec.needs)


def as_they_are(plain: Plain, student: Signals, teacher: Signals | None) -> LossInputs | None:
    """What `collect` gives where all rows of all sides count, on one layout, and all classes are known: the usual case.

    None where that is not so, or not seen at a glance: `collect` then looks, and says what is wrong.
    """
    if plain.student not in student:
        return None
    rows, layout = student[plain.student]
    if not (layout.full and rows.shape[0]):
        return None
    given: LossInputs = {"student": full_precision(rows)}
    if plain.teacher is not None:
        if teacher is None or plain.teacher not in teacher:
            return None
        theirs, there = teacher[plain.teacher]
        if there is not layout or (plain.scores and not all_known(theirs)):
            return None
        given["teacher"] = full_precision(theirs.detach())
    if plain.labels is not None:
        if student.labelled is not None or plain.labels not in student:
            return None
        labels, there = student[plain.labels]
        if there is not layout or not all_classes(labels, rows.shape[-1] if plain.classes else None):
            return None
        given["labels"] = labels
    return given


def collect(
    name: str, term: Term, spec: LossSpec, student: Signals, teacher: Signals | None, progress: float, projected: bool,
    ways: Sequence[Way] = (),
) -> LossInputs:  # fmt: skip
    """All inputs that `spec` asks for, by name, in at least float32, the teacher's without gradient.

    Many rows of which some are not valid stay where they are if the loss may take them in chunks: `index` then names
    those that are. Not where the student's are `projected` first.
    """
    mine, theirs = compared(name, term, spec, student, teacher, ways)
    classes, known = mine[0].rows.shape[-1], what_both_know(name, term, spec, mine, theirs)
    mine, theirs = only_known(mine, known), only_known(theirs, known)
    if term.min_confidence is not None:
        theirs = [_confident(theirs[0], term.min_confidence)]
    if student.labelled is not None and reads_labels(term, spec):
        mine = [_only(signal, student.labelled[signal.layout.item]) for signal in mine]
    beside = _beside(name, term, spec, student, mine[0].layout)
    if term.weights is not None:
        beside["weights"] = _weights(name, term, spec, student, teacher, mine)
    if "labels" in beside:
        at = beside["labels"].layout
        others = [s.layout for s in (*mine[:1], *theirs[:1], *beside.values()) if s.layout.same_rows(at)]
        beside["labels"] = checked_labels(name, spec, beside["labels"], classes, known, _valid(others))
    by_row = {key: signal for key, signal in beside.items() if signal.layout.kind == mine[0].layout.kind}
    apart = "teacher_item" in spec.inputs
    masks = _masks(mine, [] if apart else theirs, list(by_row.values()))
    their_masks = _masks(theirs, [], []) if apart else masks
    rows, mask = mine[0].rows, masks[0]
    large = rows.numel() > blocks.BLOCK
    if mask is not None and large and spec.alone and not projected and len(by_row) == len(beside):
        in_place: LossInputs = {"student": rows, "index": mask.nonzero().squeeze(1)}
        if theirs:
            in_place["teacher"] = theirs[0].rows.detach()
        if "weights" in beside:
            in_place["weights"] = beside.pop("weights").rows[in_place["index"]]
        return in_place | {key: _numbered(signal.rows, known) for key, signal in beside.items()}
    layouts = [signal.layout for signal in mine]
    lists: dict[str, list[Any]] = {
        "student": [full_precision(_chosen(s.rows, m)) for s, m in zip(mine, masks, strict=False)],
        "teacher": [full_precision(_chosen(s.rows.detach(), m)) for s, m in zip(theirs, their_masks, strict=False)],
        "item": [_chosen(layout.item, m) for layout, m in zip(layouts, masks, strict=False)],
    }
    if apart:
        lists["teacher_item"] = [_chosen(s.layout.item, m) for s, m in zip(theirs, their_masks, strict=True)]
    if {"grid", "cell"} & set(spec.inputs):
        lists["grid"] = [_grid(name, layout, spec) for layout in layouts]
        cells = [torch.arange(len(layout), device=layout.item.device) for layout in layouts]
        lists["cell"] = [_chosen(cell, m) for cell, m in zip(cells, masks, strict=False)]
    given: LossInputs = {key: values if spec.many else next(iter(values), None) for key, values in lists.items()}
    given |= {"items": layouts[0].items, "ids": student.ids, "progress": progress}
    if student.labelled is not None and reads_labels(term, spec):
        given["labelled"] = student.labelled
    for key, signal in beside.items():
        which = masks[0] if key in by_row else _valid([signal.layout])
        given[key] = _numbered(_chosen(signal.rows, which), known if key == "labels" else None)
        if key == "labels":
            given["label_item"] = _chosen(signal.layout.item, which)
    heads = {"head": ("teacher", teacher), "own_head": ("student", student)}
    given |= {key: head_of(name, term, *heads[key]) for key in heads if key in spec.inputs}
    if "ids" in spec.inputs and student.ids is None:
        raise UserError(f"term {name!r}: the loss {spec.name} needs the samples' ids, and the adapter gives none")
    return given


def _numbered(labels: Tensor, known: Tensor | None) -> Tensor:
    """Labels as numbers among the known classes."""
    return labels if known is None or labels.is_floating_point() else relabelled(labels, known)


def _beside(name: str, term: Term, spec: LossSpec, student: Signals, layout: Layout) -> dict[str, Signal]:
    """Labels and regions; those of the student's kind of row must stand beside its rows."""
    sources = {"labels": term.labels, "regions": term.regions}
    beside = {key: _asked(name, key, student, source) for key, source in sources.items() if key in spec.inputs}
    if "labels" in beside and student.labelled is not None:
        beside["labels"] = _only(beside["labels"], student.labelled[beside["labels"].layout.item])
    for key, signal in beside.items():
        if (signal.layout.kind == layout.kind or key == "regions") and not signal.layout.same_rows(layout):
            raise UserError(
                f"term {name!r}: {len(signal.layout)} {sources[key]} and the student's {len(layout)} "
                f"{layout.kind} rows are not aligned"
            )
    if "regions" in beside:  # what belongs to no region is no row of this term
        rows = beside["regions"].rows
        if rows.ndim != 1 or rows.is_floating_point():
            raise UserError(
                f"term {name!r}: regions {term.regions!r} of shape {tuple(rows.shape)} are no whole number a row: name "
                "the signal that numbers them in the term's regions"
            )
        beside["regions"] = _only(beside["regions"], rows >= 0)
    return beside


def _asked(name: str, key: str, signals: Signals, source: str) -> Signal:
    """A signal by the key of the term that names it."""
    if source not in signals:
        raise UserError(f"term {name!r}: {key}: there is no signal {source!r}{nearest(source, list(signals))}")
    return signals[source]


def reads_labels(term: Term, spec: LossSpec) -> bool:
    """Whether a term looks at labels, be it as regions."""
    return "labels" in spec.inputs or ("regions" in spec.inputs and term.regions == "labels")


def _only(signal: Signal, keep: Tensor) -> Signal:
    """`signal` of which the rows that ``keep`` ``(n,)`` leaves out are invalid."""
    rows, layout = signal
    return Signal(rows, Layout(layout.kind, layout.mask & keep, layout.item, layout.items, layout.grid))


def _weights(
    name: str, term: Term, spec: LossSpec, student: Signals, teacher: Signals | None, mine: list[Signal]
) -> Signal:
    """Weights ``(n,)`` of the student's rows; those of weight 0 are invalid."""
    assert term.weights is not None
    theirs = teacher if spec.needs_teacher and teacher is not None and term.weights in teacher else student
    rows, layout = _asked(name, "weights", theirs, term.weights)
    if rows.ndim != 1 or not all(layout.same_rows(signal.layout) for signal in mine):
        raise UserError(
            f"term {name!r}: weights {term.weights!r} of shape {tuple(rows.shape)} are not one for each of the "
            f"student's {len(mine[0].layout)} {mine[0].layout.kind} rows"
        )
    rows = rows.detach()
    wanted = layout.mask & mine[0].layout.mask
    if bool((wanted & ~((rows >= 0) & torch.isfinite(rows))).any()):
        raise UserError(f"term {name!r}: weights {term.weights!r} hold a number below 0, NaN or Inf in a valid row")
    return _only(Signal(rows, layout), rows > 0)


def _confident(signal: Signal, least: float) -> Signal:
    """`signal`, class scores, with only those rows valid whose most probable class has at least this probability."""
    size = max(1, blocks.BLOCK // max(signal.rows.shape[1], 1))
    chunks = (full_precision(chunk.detach()) for chunk in signal.rows.split(size))
    return _only(signal, torch.cat([x.amax(dim=1) - x.logsumexp(dim=1) for x in chunks]).exp() >= least)


def _masks(mine: list[Signal], theirs: list[Signal], by_row: list[Signal]) -> list[Tensor | None]:
    """Valid rows of each signal: of each pair, or of all where the numbers of signals differ."""
    always = [signal.layout for signal in by_row]
    if theirs and len(mine) != len(theirs):
        common = _valid([signal.layout for signal in [*mine, *theirs]] + always)
        return [common] * max(len(mine), len(theirs))
    others = theirs or mine
    beside = [[x for x in always if x.same_rows(a.layout)] for a in mine]  # of lists not all stand beside the labels
    return [_valid([a.layout, b.layout, *of]) for a, b, of in zip(mine, others, beside, strict=True)]


def _valid(layouts: Sequence[Layout]) -> Tensor | None:
    """Rows valid in every layout; None where all are known to be, for then nothing is copied."""
    masks = [layout.mask for layout in layouts if not layout.full]
    return reduce(torch.Tensor.logical_and, masks) if masks else None


def _chosen(rows: Tensor, valid: Tensor | None) -> Tensor:
    return rows if valid is None else rows[valid]


def _grid(name: str, layout: Layout, spec: LossSpec) -> tuple[int, ...] | None:
    if layout.grid:
        return layout.grid
    if not spec.ragged:
        raise UserError(f"term {name!r}: its loss works on maps, and the {layout.kind} rows form no grid")
    return None


# ---------------------------------------------------------------- over ranks


def gather(spec: LossSpec, given: LossInputs, ranks: Ranks) -> LossInputs:
    """The inputs of a loss over the whole batch from all ranks; items are numbered on from rank to rank."""
    if ranks.world == 1:
        return given
    wanted = {*spec.inputs, "student"}
    out = {**given}
    if wanted & {"item", "items", "ids"}:
        counts = ranks.gather_rows(torch.tensor([given["items"]], device=_first(given["student"]).device)).tolist()
        before = [0, *accumulate(counts)][ranks.rank]
        out["item"] = _each(given["item"], lambda item: item + before)
        out["items"] = sum(counts)
    for key in BY_ROW:
        if key in wanted:
            out[key] = _each(out[key], ranks.gather_rows)
    if "ids" in wanted:
        out["ids"] = ranks.gather_rows(given["ids"])
    return out


def _each(value: Any, change: Any) -> Any:
    return [change(x) for x in value] if isinstance(value, list) else change(value)


def _first(value: Tensor | list[Tensor]) -> Tensor:
    return value[0] if isinstance(value, list) else value


def rows_in(given: Mapping[str, Any]) -> int:
    return len(_first(given["student"]))
