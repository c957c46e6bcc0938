"""Pre-flight: what is wrong with a recipe, found on real batches before money is spent.

Each check is a generator of findings about a `Subject`; `FIRST`, `CHAIN`, `ALWAYS` and `THEN` list them in order. May
import ``run`` and what it may. Public is the output of ``xmodal-kd check --json``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from ..adapter.listed import named
from ..recipe.recipe import Loaded
from ..runtime.errors import RunError, UserError
from . import ahead, cached, data, rehearsal, saved, terms
from .memory_plan import weights
from .subject import Finding, Status, Subject, prepare, told

PAGE = "README.md#a-recipe-of-your-own"

Check = Callable[[Subject], Iterator[Finding]]
#: Each hangs on nothing but the models.
FIRST: tuple[Check, ...] = (data.modules, data.splits)
#: Each hangs on those before it: where one fails, those behind it would fail for the same reason.
CHAIN: tuple[Check, ...] = (data.signals, data.classes, data.labels, terms.counts)
#: These go on whatever failed.
ALWAYS: tuple[Check, ...] = (data.class_order, data.left_out, saved.teacher_folder, cached.cache)
#: These hang on all of `FIRST` and `CHAIN`.
THEN: tuple[Check, ...] = (
    data.blank, data.padding, data.traps, terms.masked_rows, terms.overfit, terms.balance, rehearsal.training,
    ahead.dress_rehearsal,
)  # fmt: skip


def check(loaded: Loaded, device: str = "auto", gate: bool = False, bad: Path | None = None) -> list[Finding]:
    """All checks in order; one that fails keeps only those back that hang on what it looks at.

    Args:
        gate: also measure the saved teacher against the metric that it declares.
        bad: a file for the names of samples whose files will not do.
    """
    first = [*ahead.ahead(loaded, bad), *weights(loaded, device)]
    try:
        subject = prepare(loaded, device)
    except UserError as error:
        return merged([*first, Finding("build", "fail", str(error), "what hangs on the models was not tried")])
    sizes = ", ".join(f"{role} {sum(p.numel() for p in m.parameters()):,}" for role, m in subject.roles.items())
    findings = [*first, Finding("build", "pass", f"parameters: {sizes}")]
    for one in FIRST:
        findings += _tried(one, subject)
    sound = not _failed(findings[len(first) :])
    for one in CHAIN:
        if sound:
            findings += _tried(one, subject)
            sound = not _failed(findings[len(first) :])
    if not sound:
        at = max(i for i, finding in enumerate(findings) if finding.status == "fail")
        advice = "; ".join(filter(None, (findings[at].advice, "what hangs on it was not tried")))
        findings[at] = replace(findings[at], advice=advice)
    for one in (*ALWAYS, *(THEN if sound else ()), *([saved.gate] if gate else [])):
        findings += _tried(one, subject)
    return merged(findings)


def _failed(findings: list[Finding]) -> bool:
    return any(finding.status == "fail" for finding in findings)


def merged(findings: list[Finding]) -> list[Finding]:
    """Findings of which those that say the same stand once, at the place of the first, with the others' checks."""
    kept: dict[tuple[str, str], Finding] = {}
    checks: dict[tuple[str, str], list[str]] = {}
    for number, finding in enumerate(findings):
        key = (finding.status, finding.found) if finding.status == "fail" else ("", str(number))
        kept.setdefault(key, finding)
        checks.setdefault(key, []).append(finding.check)
        if finding.advice and not kept[key].advice:
            kept[key] = replace(kept[key], advice=finding.advice)
    return [
        replace(finding, found=finding.found + _beside(checks[key])) if len(checks[key]) > 1 else finding
        for key, finding in kept.items()
    ]


def _beside(checks: list[str]) -> str:
    others = list(dict.fromkeys(checks[1:]))
    return f" ({len(checks)} times: also {named(others)})"


def _tried(one: Check, subject: Subject) -> list[Finding]:
    """Findings of a check; one that cannot be carried out has failed."""
    name, found = one.__name__.replace("_", " "), []
    try:
        with subject.streams.forked("check", name):
            for finding in one(subject):
                found.append(finding)
    except (UserError, RunError) as error:
        found.append(Finding(name, "fail", str(error), told(error)))
    except torch.OutOfMemoryError:
        advice = "raise train.accumulate or lower train.batch_size"
        found.append(Finding("memory", "fail", f"{name}: out of memory on {subject.device}", advice))
    except Exception as error:  # of a model, a loss or an adapter of the user's own
        text = " ".join(f"{type(error).__name__}: {error}".split())
        found.append(Finding(name, "fail", text, "xmodal-kd --debug run shows where"))
    return found


__all__ = ["ALWAYS", "CHAIN", "FIRST", "THEN", "Finding", "Status", "check"]
