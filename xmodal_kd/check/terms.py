"""Checks of the losses on one real batch: what they count, what they ignore, that they fall, how they pull."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from ..adapter.adapter import Adapter, Batch
from ..objective.loss_inputs import reads_labels
from ..objective.parts import Part, safe
from ..signals.signals import Signals
from ..training.optim import named_parameters
from .subject import Entered, Finding, Subject

#: Steps on one repeated batch within which every term should fall.
REPEATS = 30
#: Gradients this many times apart are orders of magnitude apart.
FAR = 100.0


def counts(subject: Subject) -> Iterator[Finding]:
    """Every term counts something on a real batch, and those of items (CTC) leave out none."""
    labelled = subject.batch.get("labelled")
    all_of = len(subject.batch["ids"])
    by_items = {
        term.name: all_of if labelled is None or not reads_labels(term.term, term.spec) else int(labelled.sum())
        for term in subject.objective
        if term.spec.reduction == "items"
    }
    found, seen = [], set[str]()
    with subject.stages() as stages:
        for entered in stages:
            for name, part in entered.parts("counts").items():
                if name in seen:
                    continue
                seen.add(name)
                count = float(part.count)
                if count == 0:
                    yield Finding("counts", "warn", f"{name} counted nothing on this batch", "is its mask empty?")
                elif name in by_items and count < (items := by_items[name]):
                    share = 100 * (1 - count / items)
                    text = f"{name}: {items - count:.0f} of {items} items ({share:.0f} %) cannot be scored"
                    yield Finding(
                        "counts", "warn", text, "too short for their labels: a finer output grid, or less data"
                    )
                else:
                    found.append(f"{name} {count:,.0f}")
    if found:
        yield Finding("counts", "pass", ", ".join(found))


# ---------------------------------------------------------------- masked rows


class _Poisoned:
    """An adapter whose masked rows hold NaN."""

    def __init__(self, adapter: Adapter) -> None:
        self._adapter, self.rows = adapter, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._adapter, name)

    def signals(self, role: str, model: nn.Module, batch: Batch, features: Sequence[str] = ()) -> Signals:
        said = self._adapter.signals(role, model, batch, features)
        for name in list(said):
            rows, layout = said[name]
            mask = layout.mask.reshape(-1, *[1] * (rows.ndim - 1))
            self.rows += int((~mask).sum())
            if rows.is_floating_point():  # a label that is no class would end a CUDA process
                said.add(name, torch.where(mask, rows, torch.nan), layout)
        return said


class _Outcome(NamedTuple):
    values: dict[str, float]
    gradients: list[Tensor]


def masked_rows(subject: Subject) -> Iterator[Finding]:
    """Values and gradients stay as they are when masked rows hold NaN."""
    poisoned = _Poisoned(subject.adapter)
    clean = _outcomes(subject, subject.adapter)
    for before, after in zip(clean, _outcomes(subject, cast(Adapter, poisoned)), strict=True):
        for name, value in before.values.items():
            if not math.isclose(value, after.values[name], rel_tol=1e-3, abs_tol=1e-6):
                found = f"{name}: {value:.4g} becomes {after.values[name]:.4g} with NaN in masked rows"
                yield Finding(
                    "masked rows", "fail", found, "a term reads padding: does its layout say which rows are valid?"
                )
                return
        if not all(_same(a, b) for a, b in zip(before.gradients, after.gradients, strict=True)):
            found = "the gradient changes with NaN in masked rows"
            yield Finding("masked rows", "fail", found, "padding gets a gradient: where, not a product with the mask")
            return
    text = "without effect on values and gradients" if poisoned.rows else "there are none in this batch"
    yield Finding("masked rows", "pass", text)


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-2, atol=1e-3 * float(a.abs().max()) + 1e-9)


def _outcomes(subject: Subject, adapter: Adapter) -> list[_Outcome]:
    """Values and the gradient of their sum, of each stage."""
    found = []
    with subject.stages(adapter) as stages:
        for entered in stages:
            parts = entered.parts("masked rows")
            values = {name: part.total / safe(part.count) for name, part in parts.items()}
            learn = [p for _, p in named_parameters(entered.learning())]
            gradients = torch.autograd.grad(torch.stack([*values.values()]).sum(), learn, allow_unused=True)
            found.append(
                _Outcome({k: float(v.detach()) for k, v in values.items()}, [g for g in gradients if g is not None])
            )
    return found


# ---------------------------------------------------------------- one repeated batch


def overfit(subject: Subject) -> Iterator[Finding]:
    """Trained alone on one repeated batch, every term falls; a term of several stages is tried in its first."""
    tried: set[str] = set()
    with subject.stages() as stages:
        for entered in stages:
            start = {name: copy.deepcopy(module.state_dict()) for name, module in entered.learning().items()}
            for term in [name for name in entered.parts("overfit") if name not in tried]:
                tried.add(term)
                first, last = _repeat(entered, term, subject.recipe.train.optimizer.lr)
                for name, module in entered.learning().items():
                    module.load_state_dict(start[name])
                text = f"{term}: {first:.4g} to {last:.4g} in {REPEATS} steps"
                if last < first or abs(last) < 1e-6:
                    yield Finding("overfit", "pass", text)
                elif getattr(entered.trial.method, "moving", False):
                    yield Finding("overfit", "warn", text, "what teaches, or the text it is on, follows the student")
                elif _a_copy(entered):
                    yield Finding("overfit", "warn", text, "the student starts as its teacher: there is little to fall")
                elif abs(first) < 1e-6:
                    yield Finding("overfit", "warn", text, "it is 0 where the student starts: there is nothing to fall")
                else:
                    advice = "is its gradient right, and the learning rate not far too high?"
                    yield Finding("overfit", "fail", text, advice)
            objective: Any = entered.trial.method.modules().get("objective")
            mine = [term.name for term in objective] if getattr(objective, "built", False) else []
    tried |= {part.partition("/")[0] for part in tried}  # a part for each of several teachers
    for silent in (name for name in mine if name not in tried):
        yield Finding("overfit", "warn", f"{silent}: it has no part in the first step, so it was not tried")


def _a_copy(entered: Entered) -> bool:
    """Whether the student has its teacher's weights."""
    teacher, student = (entered.trial.roles.get(role) for role in ("teacher", "student"))
    if teacher is None or student is None:
        return False
    theirs, mine = teacher.state_dict(), student.state_dict()
    return theirs.keys() == mine.keys() and all(torch.equal(theirs[name], value) for name, value in mine.items())


def _repeat(entered: Entered, term: str, lr: float) -> tuple[float, float]:
    """A term's value at the first and after the last step, dropout held still."""
    optimizer = torch.optim.Adam([p for _, p in named_parameters(entered.learning())], lr=lr)
    values = []
    for _ in range(REPEATS + 1):
        optimizer.zero_grad(set_to_none=True)
        part = entered.parts("overfit")[term]
        value = part.total / safe(part.count)
        values.append(float(value.detach()))
        if value.requires_grad:
            value.backward()
            optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return values[0], values[-1]


# ---------------------------------------------------------------- how hard each term pulls


def balance(subject: Subject) -> Iterator[Finding]:
    """Norm of each term's gradient where the student starts, beside that of the terms that need no teacher."""
    tried: set[str] = set()
    with subject.stages() as stages:
        for entered in stages:
            parts = {name: part for name, part in entered.parts("balance").items() if name not in tried}
            tried |= parts.keys()
            yield from _balance(subject, _pulls(subject, entered, parts))


class _Pull(NamedTuple):
    weight: float
    gradient: Tensor
    """Of the weighted term in the trained roles' parameters, flat."""
    task: bool
    """Whether it needs no teacher."""


def _pulls(subject: Subject, entered: Entered, parts: Mapping[str, Part]) -> dict[str, _Pull]:
    terms = {term.name: term for term in subject.objective}
    roles = {role: entered.trial.roles[role] for role in sorted(entered.stage.trains)}
    learn, found = [p for _, p in named_parameters(roles)], {}
    for name, part in parts.items():
        weight = terms[name].term.weight if name in terms else part.weight  # what a warm-up leads to
        value = weight * part.total / safe(part.count)
        gradients: Sequence[Tensor | None] = [None] * len(learn)
        if value.requires_grad:
            gradients = torch.autograd.grad(value, learn, retain_graph=True, allow_unused=True)
        whole = [torch.zeros_like(p) if g is None else g for p, g in zip(learn, gradients, strict=True)]
        flat = torch.cat([g.detach().flatten().float() for g in whole])
        found[name] = _Pull(weight, flat, name in terms and not terms[name].spec.needs_teacher)
    return found


def _balance(subject: Subject, pulls: Mapping[str, _Pull]) -> Iterator[Finding]:
    if not pulls:
        return
    task = [pull.gradient for pull in pulls.values() if pull.task]
    aim = torch.stack(task).sum(dim=0) if task else max((p.gradient for p in pulls.values()), key=_norm)
    what = "the task's" if task else "the strongest term's"
    for name, pull in pulls.items():
        norm, against = _norm(pull.gradient), _norm(aim)
        text = f"{name}: weighted gradient {norm:.3g}"
        if len(pulls) == 1 or norm == 0 or against == 0:
            yield Finding("balance", "pass", text)
            continue
        ratio, cosine = norm / against, float(pull.gradient @ aim) / (norm * against)
        text = f"{text}, {ratio:.2g} times {what}, cosine {cosine:.2f}"
        if not 1 / FAR <= ratio <= FAR:
            advice = f"a weight of {pull.weight / ratio:.2g} would balance it where the student starts"
            yield Finding("balance", "warn", text, advice)
        else:
            yield Finding("balance", "pass", text)


def _norm(gradient: Tensor) -> float:
    return float(gradient.norm())
