"""A few steps of every training that the run would do: what they leave alone, what they reach, what they cost."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ..run.roles import make_method, models_of
from ..runtime.device import peak_memory
from .subject import Finding, Subject, changes
from .trial import STEPS, Seen, Trial, brief

#: Roles that are the student again.
AGAIN = ("control", "self_training")
#: Of the memory that there is.
TIGHT = 0.9


@dataclass(frozen=True)
class Rehearsed:
    """Stages of a role's training, the steps of each in the run, and what was seen of a few of them."""

    role: str
    steps: list[int]
    seen: list[Seen]

    @property
    def seconds(self) -> float:
        """Of the whole training, by the median step of each stage."""
        return sum(steps * seen.step_seconds for steps, seen in zip(self.steps, self.seen, strict=True))


def training(subject: Subject) -> Iterator[Finding]:
    """Frozen roles, modes, optimizers, gradients, memory and time, from the engine itself."""
    if subject.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(subject.device)
    done = []
    stand = dict(subject.roles)
    for role_plan in subject.role_plans:
        if role_plan.path is not None:
            continue
        role, train = role_plan.role, role_plan.steps
        models = models_of(subject.adapter, subject.loaded, role_plan, subject.streams, stand)
        models = {name: model.to(subject.device) for name, model in models.items()}
        method = make_method(subject.loaded, subject.adapter, role_plan, subject.streams)
        models |= {name: copy.deepcopy(models[name]) for name in role_plan.teachers if changes(method, name)}
        stand[role] = copy.deepcopy(models[role])
        with subject.trial(brief(method), models, train, train.precision) as trial:
            trial.fit()
            done.append(Rehearsed(role, [stage.steps for stage in method.stages()], trial.seen))
            idle = _idle(trial)
        subject.put_back()
        if role not in AGAIN:
            yield from _sound(role, trial, idle)
    yield _memory(subject)
    yield _time(done)


def _idle(trial: Trial) -> tuple[str, ...]:
    """Prefixes of the parameters of terms whose weight is 0."""
    objective = trial.method.modules().get("objective")
    terms = getattr(objective, "terms", ())
    return tuple(f"objective.terms.{i}." for i, term in enumerate(terms) if term.term.weight == 0)


def _sound(role: str, trial: Trial, idle: tuple[str, ...]) -> Iterator[Finding]:
    """What the stages of a role's training did to parameters and roles."""
    if frozen := sorted({name for seen in trial.seen for name in seen.frozen}):
        faults = dict.fromkeys(fault for seen in trial.seen for fault in seen.faults)
        if faults:
            advice = "the adapter and the method must not train or touch a frozen role"
            yield Finding("frozen roles", "fail", "; ".join(faults), advice)
        else:
            yield Finding("frozen roles", "pass", f"{', '.join(frozen)}: identical to the bit after {STEPS} steps")
    if asleep := dict.fromkeys(name for seen in trial.seen for name in seen.asleep):
        advice = "dropout and BatchNorm are off while it learns: leave its mode alone in signals"
        yield Finding("modes", "fail", f"{', '.join(asleep)}: in eval mode after a training step", advice)
    yield from _owned(role, trial)
    yield from _reached(role, trial, idle)


def _owned(role: str, trial: Trial) -> Iterator[Finding]:
    """A role's parameters are in one optimizer of each stage that trains it, a module's in one of some stage."""
    wrong: dict[str, int] = {}
    most: dict[str, int] = {}
    for seen in trial.seen:
        for name, count in seen.trained.items():
            most[name] = max(most.get(name, 0), count)
            if count > 1 or (count == 0 and name.partition(".")[0] in seen.stage.trains):
                wrong.setdefault(name, count)
    wrong |= {name: 0 for name, count in most.items() if count == 0}
    if wrong:
        name, count = next(iter(wrong.items()))
        found = f"{len(wrong)} of {len(most)} parameters are not in 1 optimizer; the first, {name}, is in {count}"
        yield Finding("optimizers", "fail", found, "the method's begin must hand each parameter to one optimizer")
    else:
        yield Finding("optimizers", "pass", f"{role}: each of {len(most)} trainable parameters in one")


def _reached(role: str, trial: Trial, idle: tuple[str, ...]) -> Iterator[Finding]:
    """A role's parameters get a gradient in each stage that trains all of it, a module's in some stage."""
    ever = {name for seen in trial.seen for name in seen.reached}
    names = dict.fromkeys(name for seen in trial.seen for name in seen.trained if not name.startswith(idle))
    without = [
        name
        for name in names
        if name not in ever
        or any(
            name in seen.trained and name not in seen.reached
            for seen in trial.seen
            if name.partition(".")[0] in seen.stage.trains and not seen.stage.part
        )
    ]
    if without:
        found = f"{len(without)} of {len(names)} parameters get none, the first is {without[0]}"
        yield Finding("gradients", "fail", found, "is the layer used, and is a term connected to it?")
    else:
        yield Finding("gradients", "pass", f"{role}: reach all {len(names)} trainable parameters")


def _memory(subject: Subject) -> Finding:
    peak, there = peak_memory(subject.device), memory_of(subject.device)
    kind = "of tensors on the GPU" if subject.device.type == "cuda" else "of this process"
    text = f"{in_bytes(peak)} {kind} at the peak, {in_bytes(there)} there are"
    if there and peak > TIGHT * there:
        return Finding("memory", "warn", text, "raise train.accumulate or lower train.batch_size")
    return Finding("memory", "pass", text)


def memory_of(device: torch.device) -> int:
    """Bytes of the GPU, else of this machine."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    import os

    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def in_bytes(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def _time(done: list[Rehearsed]) -> Finding:
    """By a few steps, data and all; evaluation on dev, test and export are not in it."""
    parts = []
    for one in done:
        each = sum(one.steps)
        parts.append(f"{one.role} {each:,} steps of {1000 * one.seconds / max(each, 1):.1f} ms")
    total = _duration(sum(one.seconds for one in done))
    return Finding("time", "pass", f"about {total}: {', '.join(parts)}", "evaluation and export come on top")


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


__all__ = ["Rehearsed", "in_bytes", "memory_of", "training"]
