"""What a recipe costs on this machine: parameters counted, a few real steps of every training measured."""

from __future__ import annotations

from ..check.rehearsal import training
from ..check.subject import prepare
from ..check.trial import STEPS
from ..recipe.recipe import Loaded
from ..runtime.errors import UserError


def measured(loaded: Loaded, device: str) -> list[str]:
    """Lines on parameters, time and memory.

    Raises:
        UserError: the roles cannot be built, or a step of a training fails; it says why.
    """
    subject = prepare(loaded, device)
    sizes = ", ".join(f"{role} {sum(p.numel() for p in m.parameters()):,}" for role, m in subject.roles.items())
    found = {}
    with subject.streams.forked("draft"):
        for finding in training(subject):
            if finding.status == "fail":
                raise UserError(f"{finding.check}: {finding.found}: {finding.advice}")
            found[finding.check] = finding
    time, memory = found["time"], found["memory"]
    where = f"{subject.device.type}, {loaded.recipe.threads} thread(s)"
    return [
        f"parameters: {sizes}",
        f"time, by {STEPS} steps of each training on this machine ({where}), their samples read for the first time: "
        f"{time.found}; where samples stay in memory later passes are faster; {time.advice}",
        f"memory, in the same steps: {memory.found}",
    ]


__all__ = ["measured"]
