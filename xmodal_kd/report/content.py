"""What a finished run has to say, as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from ..adapter.adapter import ControlSpec, NoControl, NoiseControl, Score, UntrainedControl, is_teacher
from ..recipe.recipe import Loaded
from ..runtime.device import machine, peak_memory, versions
from .statistics import gap_closed, paired_interval, ratio

#: Of roles in tables; what a scheme trains on the way stands between the controls and the student.
ORDER = {"teacher": 0, "control": 2, "self_training": 3, "student": 5}
SHOWN = ("parameters", "flops_per_sample", "latency", "metrics", "dev_metrics", "examples")


def content(
    loaded: Loaded, state: Mapping[str, Any], spec: ControlSpec | UntrainedControl | NoControl,
    metric: tuple[str, bool], data: Mapping[str, Any], accelerator: Accelerator, out: Path,
    twin: ControlSpec | NoControl | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The content of ``report.json`` of the run in `out`."""
    roles = _ordered(state)
    scores = {name: [Score(**s) for s in entry["scores"]] for name, entry in roles.items()}
    if "teacher" not in roles:
        gap: tuple[float | None, str | None] = (None, "there is no teacher")
    elif isinstance(spec, NoControl):
        gap = (None, spec.reason)
    else:
        gap = gap_closed(scores["teacher"], scores["control"], scores["student"])
    overview = state["overview"]
    trained = {role: entry["training"] for role, entry in roles.items() if "training" in entry}
    return {
        "schema": 1,
        **begun(loaded, state, metric),
        "compressed": {role: entry["compressed"] for role, entry in roles.items() if "compressed" in entry},
        "taught": {role: entry["scheme"] for role, entry in roles.items() if "scheme" in entry},
        **machine(accelerator),
        "control": _control(spec),
        "self_training": None if twin is None else _control(twin),
        "labels": {role: entry["labels"] for role, entry in roles.items() if "labels" in entry},
        "objective": {role: one for role, entry in roles.items() if any((one := entry.get("objective", {})).values())},
        "curve": [*overview["curve"], *roles["student"].get("curve", [])],
        "facts": overview["facts"],
        "pictures": overview["pictures"],
        "gap_closed": gap[0],
        "reason": gap[1],
        "gain": _gain(scores, "control"),
        "gain_over_self_training": _gain(scores, "self_training"),
        "data": dict(data),
        "cost": {**trained, "peak_memory_bytes": peak_memory(accelerator.device)},
        "export": roles["student"].get("export", {}),
        "changes": [*state.get("changes", []), *(note for one in trained.values() for note in one.get("notes", []))],
        "artifacts": {role: str(out / role) for role in roles if (out / role).exists()},
    }


def begun(loaded: Loaded, state: Mapping[str, Any], metric: tuple[str, bool]) -> dict[str, Any]:
    """What is known of a run before it is finished: what it is, and the roles that were measured so far."""
    recipe, (name, lower), roles = loaded.recipe, metric, _ordered(state)
    return {
        "recipe": str(loaded.source),
        "overrides": {key: value for key, value in loaded.overrides.items() if key.partition(".")[0] != "on"},
        "modality": recipe.modality,
        "method": recipe.method.name,
        "scheme": None if recipe.scheme is None else recipe.scheme.model_dump(mode="json"),
        "compress": [spec.model_dump(mode="json") for spec in recipe.compress],
        "seed": recipe.seed,
        "versions": versions(),
        "metric": {"name": name, "lower_is_better": lower},
        "roles": {role: {key: entry[key] for key in SHOWN if key in entry} for role, entry in roles.items()},
    }


def _ordered(state: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of each role, the teachers first."""
    places = {role: ORDER.get(role, 1 if is_teacher(role) else 4) for role in state["roles"]}
    return {role: state["roles"][role] for role in sorted(places, key=lambda role: places[role])}


def _control(spec: ControlSpec | UntrainedControl | NoControl) -> dict[str, Any]:
    if isinstance(spec, ControlSpec):
        return {"terms": list(spec.terms)} | ({"inputs": "noise"} if isinstance(spec, NoiseControl) else {})
    return {"teacher": "within the student's budget"} if isinstance(spec, UntrainedControl) else {"reason": spec.reason}


def _gain(scores: Mapping[str, Sequence[Score]], reference: str) -> dict[str, Any] | None:
    """What the student has over another role on the same test items; None where there is no such role."""
    if not scores.get(reference) or not scores.get("student"):
        return None
    difference = ratio(scores[reference]) - ratio(scores["student"])
    if len(scores["student"]) < 2:  # of a single item, as one draw of samples is, the interval would be a point
        return {"difference": difference, "interval": None}
    return {"difference": difference, "interval": list(paired_interval(scores[reference], scores["student"]))}
