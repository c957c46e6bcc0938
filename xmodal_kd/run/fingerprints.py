"""What decides each role of a run: by it a corrected recipe goes on with the roles that it did not change."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ..adapter.adapter import Adapter, is_teacher
from ..objective.loss_inputs import reads_labels
from ..objective.objective import spec_of
from ..recipe.recipe import Loaded
from ..runtime.errors import UserError
from ..training.role_plan import RolePlan
from .resolved_recipe import resolved
from .roles import COMPRESSED


def role_prints(loaded: Loaded, adapter: Adapter, role_plans: Sequence[RolePlan]) -> dict[str, str]:
    """A hash of all of the recipe that decides a role, what teaches it included. Roles teach those behind them."""
    content, recipe = resolved(loaded), loaded.recipe
    common = {key: content[key] for key in ("modality", "seed", "threads", "data", "balance", "scheme")} | {
        "batch": recipe.train.batch_size,  # in which every role is measured
        "labelled": any(reads_labels(term, spec_of(term)) for term in recipe.objective),
        "shared": adapter.shared(),
    }
    found: dict[str, str] = {}
    for plan in role_plans:
        teacher = recipe.taught_by().get(plan.role)
        mine: dict[str, Any] = {
            "plan": [
                plan.model, plan.params, plan.terms, plan.train, plan.path, plan.init, plan.method.__name__,
                plan.settings, plan.peers, plan.data,
            ],
            "labels": recipe.labels if teacher is None else teacher.labels,
            "teachers": [[role, found.get(role)] for role in plan.teachers],
            "compress": content["compress"] if plan.role in COMPRESSED else [],
            "cache": None if is_teacher(plan.role) else _without_path(content["cache"]),
        }  # fmt: skip
        text = json.dumps(_plain(common | mine), sort_keys=True)
        found[plan.role] = blake2b(text.encode(), digest_size=8).hexdigest()
    return found


def check_unchanged(out: Path, state: Mapping[str, Any], prints: Mapping[str, str], difference: str) -> None:
    """Raises `UserError` where another recipe began a role of the run in `out` than would make it now.

    Args:
        prints: of the recipe now, by role.
        difference: of the two recipes, in words.
    """
    before = state.get("prints", {})
    other = sorted(role for role in begun(out, state) if role not in prints or prints[role] != before.get(role))
    if other or not before:
        raise UserError(
            f"{out} was started with another recipe ({difference}), which decides {', '.join(other) or 'its roles'}: "
            "change it back, or choose another --out"
        )


def begun(out: Path, state: Mapping[str, Any]) -> set[str]:
    """Roles that a run folder holds anything of."""
    started = {path.parent.name for path in (out / "checkpoints").glob("*/step-*")}
    return started | set(state["roles"])


def _without_path(cache: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    return None if cache is None else {key: value for key, value in cache.items() if key != "path"}


def _plain(value: Any) -> Any:
    """As JSON has it."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return str(value.expanduser().absolute()) if isinstance(value, Path) else value


__all__ = ["begun", "check_unchanged", "role_prints"]
