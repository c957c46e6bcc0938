"""What differs between two finished runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .. import report as reports
from ..adapter.adapter import Score
from ..recipe.yaml_reader import flat, read_yaml
from ..report.statistics import drawn_together, ratio
from ..run.run_folder import RECIPE, STATE, read_state
from ..runtime.bounded_files import read_text
from ..runtime.checkpoint import damaged
from ..runtime.errors import UserError

Pair = dict[str, Any]
"""``{"a": value, "b": value}``; a side that has no such value is not there."""
#: Of a report, where the run took place.
MACHINE = ("device", "device_name", "threads", "processes")
#: Of a role: what its training took, and what using it takes.
TRAINING, USE = ("steps", "samples", "seconds", "flops_per_step"), ("parameters", "flops_per_sample")


@dataclass(frozen=True)
class _Finished:
    recipe: Mapping[str, Any]
    report: Mapping[str, Any]
    scores: Mapping[str, Sequence[Score]]

    @classmethod
    def read(cls, folder: Path) -> _Finished:
        report = reports.load(folder)
        if missing := next((name for name in (RECIPE, STATE) if not (folder / name).is_file()), None):
            raise UserError(f"{folder} is not a run: it has no {missing}")
        roles = read_state(folder)["roles"]
        try:
            recipe, _ = read_yaml(read_text(folder / RECIPE))
            scores = {role: [Score(**s) for s in entry["scores"]] for role, entry in roles.items()}
            if not isinstance(recipe, Mapping):
                raise TypeError(f"a mapping is expected, not {type(recipe).__name__}")
        except yaml.YAMLError as error:
            raise damaged(folder / RECIPE, error) from None
        except (KeyError, TypeError, ValueError) as error:
            raise damaged(folder, error) from None
        return cls(recipe, report, scores)


def difference(a: Path, b: Path) -> dict[str, Any]:
    """What ``diff --json`` prints of the runs in `a` and `b`; all differences are b - a.

    Terms of the objective are compared by name. A role's ``interval`` is the 95 % bootstrap interval of the difference
    of the main metric over the test items that both runs have (``items`` of them), or there is a ``reason`` why none.

    Raises:
        UserError: a folder that holds no finished run.
    """
    one, other = _Finished.read(a), _Finished.read(b)
    with reports.shown(a), reports.shown(b):
        return _difference(a, b, one, other)


def _difference(a: Path, b: Path, one: _Finished, other: _Finished) -> dict[str, Any]:
    recipe = _differing(flat(_by_name(one.recipe)), flat(_by_name(other.recipe)))
    return {
        "runs": {"a": str(a), "b": str(b)},
        "recipe": recipe,
        "versions": _differing(one.report["versions"], other.report["versions"]),
        "machine": _differing(*({key: run.report.get(key) for key in MACHINE} for run in (one, other))),
        "metric": _differing(*(run.report["metric"] for run in (one, other))) or one.report["metric"],
        "same_data": not any(key.startswith("data.") for key in recipe),
        "roles": {
            role: _role(role, one, other) for role in dict.fromkeys([*one.report["roles"], *other.report["roles"]])
        },
        "cost": _costs(one.report, other.report),
    }


def _by_name(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A term that is put in front of the others must not make them all differ."""
    terms = {term.get("name") or term["loss"]: term for term in recipe.get("objective", ())}
    return {**recipe, "objective": terms}


def _pair(key: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> Pair:
    return {side: values[key] for side, values in (("a", a), ("b", b)) if key in values}


def _differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Pair]:
    pairs = {key: _pair(key, a, b) for key in dict.fromkeys([*a, *b])}
    return {key: pair for key, pair in pairs.items() if len(pair) < 2 or pair["a"] != pair["b"]}


def _role(role: str, one: _Finished, other: _Finished) -> dict[str, Any]:
    a, b = (run.report["roles"].get(role, {}).get("metrics", {}) for run in (one, other))
    numbers = [{k: v for k, v in m.items() if isinstance(v, int | float)} for m in (a, b)]
    metrics = {key: _pair(key, *numbers) for key in dict.fromkeys([*numbers[0], *numbers[1]])}
    for pair in metrics.values():
        if len(pair) == 2:
            pair["difference"] = pair["b"] - pair["a"]
    return {"metrics": metrics, **_paired(role, one, other)}


def _paired(role: str, one: _Finished, other: _Finished) -> dict[str, Any]:
    """The main metric over the items that both runs scored."""
    if one.report["metric"] != other.report["metric"] or one.report["modality"] != other.report["modality"]:
        return {"interval": None, "reason": "the runs are measured by different metrics"}
    if not (role in one.scores and role in other.scores):
        return {"interval": None, "reason": "only one of the runs has this role"}
    a, b = ({score.item: score for score in run.scores[role]} for run in (one, other))
    shared = [item for item in a if item in b]
    if any(a[item].units != b[item].units for item in shared):
        return {"interval": None, "reason": "test items of the same name differ in size: the data are not the same"}
    sides = [b[i] for i in shared], [a[i] for i in shared]
    if not one.report["metric"]["lower_is_better"]:
        sides = sides[1], sides[0]  # items are scored by errors, which are what is left of one
    drawn = drawn_together([sides])
    if drawn is None:
        return {"interval": None, "reason": "fewer than two test items in common"}
    low, high, items = drawn
    shift = ratio(sides[0]) - ratio(sides[1])
    return {"difference": shift, "interval": [low, high], "items": items, "of": {"a": len(a), "b": len(b)}}


def _costs(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, dict[str, Pair]]:
    """By role, what there is on both sides or one; ``run`` is the peak memory of the whole."""
    found: dict[str, dict[str, Pair]] = {}
    for role in dict.fromkeys([*a["roles"], *b["roles"]]):
        sides = [_cost_of(report, role) for report in (a, b)]
        found[role] = {key: _pair(key, *sides) for key in dict.fromkeys([*sides[0], *sides[1]])}
    memory = [{"peak_memory_bytes": report["cost"]["peak_memory_bytes"]} for report in (a, b)]
    return found | {"run": {"peak_memory_bytes": _pair("peak_memory_bytes", *memory)}}


def _cost_of(report: Mapping[str, Any], role: str) -> dict[str, float]:
    entry, training = report["roles"].get(role, {}), report["cost"].get(role, {})
    found = {key: entry[key] for key in USE if key in entry} | {
        key: training[key] for key in TRAINING if key in training
    }
    latency = entry.get("latency", {}).get("median_ms")
    return found | ({"latency_ms": latency} if latency is not None else {})


# ---------------------------------------------------------------- for people


def show(found: Mapping[str, Any]) -> None:
    """Tables on the terminal: only what differs, but for the metrics and the seconds."""
    out, sides = Console(), [escape(found["runs"][side]) for side in "ab"]
    for what in ("recipe", "versions", "machine"):
        if not found[what]:
            out.print(f"{what}: the same")
            continue
        table = Table(what, *sides)
        for key, pair in found[what].items():
            table.add_row(escape(key), *_cells(pair))
        out.print(table)
    table = Table("role", "metric (test)", *sides, "difference [95 % interval]")
    for role, entry in found["roles"].items():
        for name, pair in entry["metrics"].items():
            table.add_row(role, name, *_cells(pair), escape(_shift(name, pair, entry, found["metric"])))
    out.print(table)
    for line in _notes(found):
        out.print(line, markup=False, highlight=False, soft_wrap=True)
    table = Table("cost", "", *sides, "ratio")
    for role, key, pair in _spent(found["cost"]):
        factor = f"{pair['b'] / pair['a']:.2f}" if len(pair) == 2 and pair["a"] else "–"
        table.add_row(role, key, *_cells(pair), factor)
    if table.row_count:
        out.print(table)


def _spent(costs: Mapping[str, Mapping[str, Pair]]) -> Iterator[tuple[str, str, Pair]]:
    for role, entries in costs.items():
        yield from ((role, key, pair) for key, pair in entries.items() if len(pair) < 2 or pair["a"] != pair["b"])


def _shift(name: str, pair: Pair, entry: Mapping[str, Any], metric: Mapping[str, Any]) -> str:
    if "difference" not in pair:
        return "–"
    if name != metric.get("name") or not entry["interval"]:
        shift = pair["difference"]
        return f"{shift:+d}" if isinstance(shift, int) else f"{shift:+.4f}" if abs(shift) >= 1e-3 else f"{shift:+.2g}"
    low, high = entry["interval"]
    verdict = ", inside the noise" if low <= 0 <= high else ""
    return f"{entry['difference']:+.4f} [{low:+.4f}, {high:+.4f}]{verdict}"


def _notes(found: Mapping[str, Any]) -> Iterator[str]:
    for role, entry in found["roles"].items():
        if entry["interval"] is None:
            yield f"{role}: no interval: {entry['reason']}"
        elif set(entry["of"].values()) != {entry["items"]}:
            yield f"{role}: interval and difference over the {entry['items']} test items that both runs have"
    if any(entry["interval"] for entry in found["roles"].values()):
        yield "Intervals are over test items of these two runs; they say nothing of other seeds (xmodal-kd compare)."
        if not found["same_data"]:
            yield "The data sections differ: items of one name may not be the same samples."


def _cells(pair: Pair) -> list[str]:
    return [_text(pair[side]) if side in pair else "–" for side in ("a", "b")]


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else escape(str(value))
