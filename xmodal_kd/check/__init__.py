"""Pre-flight: what is wrong with a recipe, found on real batches before money is spent.

Each check is a generator of findings about a `Subject`; `FIRST` and `THEN` list them in the order of the table. May
import ``run`` and what it may. Public is the output of ``xmodal-kd check --json``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from ..recipe.recipe import Loaded
from ..runtime.errors import RunError, UserError
from . import cached, data, rehearsal, saved, terms
from .subject import Finding, Status, Subject, prepare

Check = Callable[[Subject], Iterator[Finding]]
#: Where one of these fails, all that follow would fail for the same reason.
FIRST: tuple[Check, ...] = (
    data.modules, data.splits, data.signals, data.classes, data.labels, terms.counts,
)  # fmt: skip
THEN: tuple[Check, ...] = (
    data.class_order, data.blank, data.padding, data.left_out, data.traps, saved.teacher_folder, cached.cache,
    terms.masked_rows, terms.overfit, terms.balance, rehearsal.training,
)  # fmt: skip


def check(loaded: Loaded, device: str = "auto", gate: bool = False) -> list[Finding]:
    """All checks in order, up to the first of `FIRST` that fails.

    Args:
        gate: also measure the saved teacher against the metric that it declares.
    """
    try:
        subject = prepare(loaded, device)
    except UserError as error:
        return [Finding("build", "fail", str(error), "nothing else was tried")]
    sizes = ", ".join(f"{role} {sum(p.numel() for p in m.parameters()):,}" for role, m in subject.roles.items())
    findings = [Finding("build", "pass", f"parameters: {sizes}")]
    for one in (*FIRST, *THEN, *([saved.gate] if gate else [])):
        found = _tried(one, subject)
        findings += found
        if one in FIRST and found and found[-1].status == "fail":
            advice = "; ".join(filter(None, (found[-1].advice, "nothing else was tried")))
            return [*findings[:-1], replace(found[-1], advice=advice)]
    return findings


def _tried(one: Check, subject: Subject) -> list[Finding]:
    """Findings of a check; one that cannot be carried out has failed."""
    name, found = one.__name__.replace("_", " "), []
    try:
        with subject.streams.forked("check", name):
            for finding in one(subject):
                found.append(finding)
    except (UserError, RunError) as error:
        found.append(Finding(name, "fail", str(error)))
    except torch.OutOfMemoryError:
        advice = "raise train.accumulate or lower train.batch_size"
        found.append(Finding("memory", "fail", f"{name}: out of memory on {subject.device}", advice))
    except Exception as error:  # of a model, a loss or an adapter of the user's own
        text = " ".join(f"{type(error).__name__}: {error}".split())
        found.append(Finding(name, "fail", text, "xmodal-kd --debug run shows where"))
    return found


__all__ = ["FIRST", "THEN", "Finding", "Status", "check"]
