"""The report as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from .received import relative

COST = "role, steps, samples, seconds, GFLOPs a step, ms a step (teacher / student / loss / rest), waited for data"


def markdown(content: Mapping[str, Any]) -> str:
    """One page: the result beside its control, what it cost, what was left out, where it stands."""
    name, roles = content["metric"]["name"], content["roles"]
    parts = [
        f"# {content['modality']}: {content['recipe']}",
        f"Seed {content['seed']}, {content['device']} ({content['device_name']}), "
        f"{counted(content['threads'], 'thread')}, {counted(content['processes'], 'process', 'processes')}.",
        _overrides(content["overrides"]),
        "## Result",
        table(
            ["role", "parameters", f"{name} (test)", "95 % interval", f"{name} (dev)", "GFLOPs a sample"],
            [result_row(role, entry, name) for role, entry in roles.items()],
        ),
        gap(content),
        _labels(content.get("labels", {})),
        _details(roles, name),
        _by_group(roles, name),
        "## Cost",
        table(
            COST.split(", "),
            [_cost_row(role, cost) for role, cost in content["cost"].items() if isinstance(cost, dict)],
        ),
        _latency(roles),
        _cache(content["cost"].get("student", {}).get("cache")),
        f"Peak memory {content['cost']['peak_memory_bytes'] / 2**20:.0f} MiB. {_references(content)}",
        _objective(content.get("objective", {})),
        _compressed(content.get("compressed", {}), name),
        _taught(content.get("taught", {})),
        _curve(content["curve"], name),
        _facts(content["facts"]),
        _pictures(content["pictures"]),
        _export(content["export"], name),
        left_out(content["data"]),
        _changes(content.get("changes", [])),
        _examples(roles),
        "## Versions",
        ", ".join(f"{package} {number}" for package, number in content["versions"].items()),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def counted(count: int, one: str, many: str = "") -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"


def number(value: Any) -> str:
    if isinstance(value, float) and 0 < abs(value) < 5e-5:
        return f"{value:.1e}"
    return f"{value:.4f}" if isinstance(value, float) else "–" if value is None else str(value)


def result_row(role: str, entry: Mapping[str, Any], name: str) -> list[str]:
    metrics = entry["metrics"]
    interval = metrics.get(f"{name}_interval")
    shown = f"{interval[0]:.4f} – {interval[1]:.4f} (over {metrics[f'{name}_interval_over']})" if interval else "–"
    return [
        role,
        f"{entry['parameters']:,}",
        number(metrics[name]),
        shown,
        number(entry["dev_metrics"][name]),
        f"{entry['flops_per_sample'] / 1e9:.4f}",
    ]


def _cost_row(role: str, cost: Mapping[str, Any]) -> list[str]:
    split = cost["milliseconds"]
    rest = split.get("step", 0.0) - sum(split.get(part, 0.0) for part in ("teacher", "student", "loss"))
    shown = " / ".join(f"{value:.1f}" for value in (*(split.get(p, 0.0) for p in ("teacher", "student", "loss")), rest))
    seconds, flops = f"{cost['seconds']:.0f}", f"{cost['flops_per_step'] / 1e9:.2f}"
    waited = cost.get("waited_for_data")  # an older version did not measure it
    share = "–" if waited is None else f"{100 * waited:.1f} %"
    return [role, str(cost["steps"]), str(cost["samples"]), seconds, flops, shown if split else "–", share]


def _latency(roles: Mapping[str, Any]) -> str:
    """Of one sample; a role that an older version measured has none."""
    found = {role: entry["latency"] for role, entry in roles.items() if "latency" in entry}
    if not found:
        return ""
    shown = ", ".join(f"{role} {one['median_ms']:.3g} ({one['p95_ms']:.3g})" for role, one in found.items())
    threads = next(iter(found.values()))["threads"]
    return (
        f"Latency of the first test sample alone, {counted(threads, 'thread')}, median ms (95th percentile): {shown}."
    )


def _cache(cache: Mapping[str, Any] | None) -> str:
    """What the teacher on disk was worth to the student's training."""
    if cache is None:
        return ""
    paid = cache["paid_after_epochs"]
    kept = ", ".join(f"{name} {signal['bytes_per_row']} bytes a {signal['kind']}"
                     for name, signal in cache["signals"].items())  # fmt: skip
    errors = ", ".join(f"{name} {'–' if e is None else f'{100 * e:.2g} %'}" for name, e in cache["loss_error"].items())
    return (
        f"Teacher cache ({cache['view']}): {cache['bytes'] / 2**20:.1f} MiB on disk ({kept}); "
        f"{100 * cache['hit_rate']:.1f} % of what training asked of the teacher was read, "
        f"{cache['computed']} samples were computed in {cache['fill_seconds']:.1f} s. A batch took the teacher "
        f"{cache['live_ms']:.2f} ms, the cache {cache['cached_ms']:.2f} ms: "
        + ("it never pays. " if paid is None else f"paid after {paid:.1f} of {cache['epochs']:.1f} epochs. ")
        + f"Error of the loss of one batch: {errors}."
    )


def _references(content: Mapping[str, Any]) -> str:
    """What the student is compared with."""
    return _control(content["control"], content.get("labels", {})) + _twin(content.get("self_training"))


def _control(control: Mapping[str, Any], labels: Mapping[str, Any]) -> str:
    if "reason" in control:
        return f"There is no control: {control['reason']}."
    if "teacher" in control:
        return "The control is the teacher itself within the student's budget, without any training."
    if control.get("inputs") == "noise":
        return (
            f"The control learned from {', '.join(control['terms'])} on plain noise, from the same teacher: the "
            "student's initial weights, same number of steps and inputs. Neither saw a training sample."
        )
    data = "labelled samples alone" if "control" in labels else "same data"
    return (
        f"The control learned from {', '.join(control['terms'])} alone: the student's initial weights, {data}, "
        "same number of steps and samples."
    )


def _twin(spec: Mapping[str, Any] | None) -> str:
    if spec is None:
        return ""
    if "reason" in spec:
        return f" There is no self-training: {spec['reason']}."
    return (
        f" Self-training learned from {', '.join(spec['terms'])} with the control as its teacher: the student's "
        "initial weights, same batches."
    )


def _lead(gain: Mapping[str, Any] | None, reference: str, lower: bool) -> str:
    """What the student gains, as a difference that is above 0 where it is better, whether `lower` is better or not."""
    if not gain:
        return ""
    sides = (reference, "student") if lower else ("student", reference)
    said = f"{sides[0].capitalize()} less {sides[1]}: {gain['difference']:+.4f}"
    if not gain["interval"]:
        return f"{said} (one test item: no interval). "
    low, high = gain["interval"]
    return f"{said} (95 % interval over the test items {low:+.4f} to {high:+.4f}). "


def of_items(content: Mapping[str, Any]) -> str:
    """A sentence where the gain, of test items one by one, is not the difference of the table; else nothing.

    The mAP of all frames, as an example, is not the mean of each frame's own.
    """
    gain = content.get("gain")
    if gain is None:
        return ""
    name, roles = content["metric"]["name"], content["roles"]
    values = [roles[role]["metrics"].get(name) for role in ("control", "student") if role in roles]
    if len(values) < 2 or None in values:
        return ""
    shown = (values[0] - values[1]) * (1 if content["metric"]["lower_is_better"] else -1)
    if abs(shown - gain["difference"]) <= 1e-4 + 0.02 * abs(shown):
        return ""
    return (
        f"The difference and the gap are of means of each test item's own {name}, by which they have intervals: "
        f"of all items at once, as in the table, the student is {abs(shown):.4f} "
        f"{'better' if shown > 0 else 'worse'} than its control. "
    )


def gap(content: Mapping[str, Any]) -> str:
    lower = content["metric"]["lower_is_better"]
    lead = _lead(content["gain"], "control", lower)
    lead += _lead(content.get("gain_over_self_training"), "self-training", lower) + of_items(content)
    if content["gap_closed"] is None:
        return f"{lead}Gap closed: not stated, because {content['reason']}."
    return (
        f"{lead}Gap closed: **{100 * content['gap_closed']:.0f} %** of the distance from control to teacher. One seed: "
        "whether it is more than chance needs several."
    )


def _labels(labels: Mapping[str, Any]) -> str:
    """Whose labels were scarce, and who saw samples without labels."""
    if not labels:
        return ""
    counts = [f"{role} {one['labelled']:,} of {one['samples']:,} samples" for role, one in labels.items()]
    more = [role for role, one in labels.items() if one["unlabelled"]]
    others = f"; {' and '.join(more)} also saw all samples without their labels, half of each batch" if more else ""
    return f"Labels seen in training: {', '.join(counts)}{others}. Roles not named here saw all labels."


def _objective(objective: Mapping[str, Any]) -> str:
    """What stood between teacher and student, and what weights were learned."""
    lines = []
    for role, one in objective.items():
        for term in one["terms"]:
            made = [f"channels {term['projector'][0]} to {term['projector'][1]}"] if "projector" in term else []
            if "classes" in term:
                made.append(f"on the {term['classes']['known']} of {term['classes']['of']} classes that both know")
            for r in term.get("resample", []):
                rows = f"{r['teacher']:,} {r['kind']} rows of a batch on the student's {r['student']:,}"
                made.append(f"the teacher's {rows} ({r['way']})")
            lines.append(f"- {role}, {term['term']}: {'; '.join(made)}")
        if "balance" in one:
            balance = one["balance"]
            weights = ", ".join(f"{term} {number(weight)}" for term, weight in balance["weights"].items())
            at = f", gradients of `{balance['layer']}`" if "layer" in balance else ""
            lines.append(f"- {role}: weights by {balance['name']}{at}, at the last step: {weights}")
    return "## What the objective built\n\n" + "\n".join(lines) if lines else ""


def _details(roles: Mapping[str, Any], name: str) -> str:
    """The other plain metrics: what kinds of errors there are."""
    metrics = {role: entry["metrics"] for role, entry in roles.items()}
    shown = [
        key
        for key, value in metrics["student"].items()
        if isinstance(value, int | float | str) and key not in (name, f"{name}_interval_over")
    ]
    rows = [[role, *(number(found.get(key)) for key in shown)] for role, found in metrics.items()]
    return table(["role", *shown], rows) if shown else ""


def _overrides(overrides: Mapping[str, Any]) -> str:
    return "With " + ", ".join(f"`{key}={value}`" for key, value in overrides.items()) + "." if overrides else ""


def _by_group(roles: Mapping[str, Any], name: str) -> str:
    key = f"{name}_by_speaker"
    groups = sorted({group for entry in roles.values() for group in entry["metrics"].get(key, {})})
    if len(groups) < 2:
        return ""
    rows = [[role, *(number(entry["metrics"].get(key, {}).get(g)) for g in groups)] for role, entry in roles.items()]
    return table(["role", *groups], rows)


def _compressed(compressed: Mapping[str, Any], name: str) -> str:
    """What the students were before they were trained, as pruned and as repaired, what was taken out of them
    and what of them has low rank."""
    repaired = [_repaired(role, facts["fskd"], name) for role, facts in compressed.items() if "fskd" in facts]
    pruned = [_pruned(role, facts["l0_prune"]) for role, facts in compressed.items() if "l0_prune" in facts]
    factored = [_factored(role, facts["pc_lora"]) for role, facts in compressed.items() if "pc_lora" in facts]
    sections = (("Before the training", repaired), ("What was taken out", pruned), ("Layers of low rank", factored))
    return "\n\n".join(f"## {head}\n\n" + "\n".join(lines) for head, lines in sections if lines)


def _repaired(role: str, told: Mapping[str, Any], name: str) -> str:
    before, after = (fmean(layer[key] for layer in told["layers"]) for key in ("before", "after"))
    line = f"- {role}: error of its {len(told['layers'])} layers {number(before)}, repaired {number(after)}"
    if "pruned" in told:
        line += f"; {name} (test) {number(told['pruned'][name])}, repaired {number(told['repaired'][name])}"
    return f"{line}; {told['samples']} samples"


def _pruned(role: str, told: Mapping[str, Any]) -> str:
    left = ", ".join(f"{name} {count} of {whole}" for name, (count, whole) in told["left"].items())
    return (
        f"- {role}: {told['parameters']:,} of {told['parameters_before']:,} parameters are left, a sparsity of "
        f"{told['sparsity']:.3f} (expected by its gates {told['expected_sparsity']:.3f}): {left}"
    )


def _factored(role: str, told: Mapping[str, Any]) -> str:
    return (
        f"- {role}: {told['layers']} layers are two factors each: {told['parameters']:,} of "
        f"{told['parameters_before']:,} parameters"
    )


def _taught(taught: Mapping[str, Any]) -> str:
    """What a scheme found out about its trainings: how far peers disagree, which exits are closed."""
    lines = [f"- {role}, {key}: {_said(value)}" for role, facts in taught.items() for key, value in facts.items()]
    return "## What the scheme says\n\n" + "\n".join(lines) if lines else ""


def _said(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_said(one)}" for key, one in value.items())
    return ", ".join(map(_said, value)) if isinstance(value, list | tuple) else number(value)


def _curve(curve: Sequence[Mapping[str, Any]], name: str) -> str:
    """Every role at every budget it was measured at."""
    if not curve:
        return ""
    budgets = [key for key in dict.fromkeys(key for point in curve for key in point) if key != "metrics"]
    numbers = {k for point in curve for k, value in point["metrics"].items() if isinstance(value, int | float)}
    metrics = sorted(numbers - set(budgets))
    head = [*budgets, *sorted(metrics, key=lambda key: key != name)]
    rows = [
        [number(point.get(k)) if k in budgets else number(point["metrics"].get(k)) for k in head] for point in curve
    ]
    return "## At every budget\n\n" + table(head, rows)


def _facts(facts: Mapping[str, Any]) -> str:
    lines = [f"- {key}: {', '.join(f'{k} {number(v)}' for k, v in value.items())}" if isinstance(value, dict)
             else f"- {key}: {number(value)}" for key, value in facts.items()]  # fmt: skip
    return "## What measured it\n\n" + "\n".join(lines) if lines else ""


def _pictures(pictures: Mapping[str, str]) -> str:
    """Of the run's folder: what leaves it is left out."""
    return "\n\n".join(f"![{caption}]({path})" for caption, path in pictures.items() if relative(path))


def _export(export: Mapping[str, Any], name: str) -> str:
    said = exported(export, name)
    return f"## Export\n\n{said}" if said else ""


def exported(export: Mapping[str, Any], name: str) -> str:
    """The files of an exported model: size, what was measured of each, and what must be known of it."""
    if not export:
        return ""
    files = {key: {**e, **e.get("metrics", {})} for key, e in export.items() if "bytes" in e}
    keys = (name, "steps", "reload_difference", "milliseconds")
    measured = [key for key in keys if any(key in e for e in files.values())]
    rows = [[key, f"{e['bytes'] / 1024:.1f} KiB", *(number(e.get(k)) for k in measured)] for key, e in files.items()]
    sizes = table(["file", "size", *(f"{k} (test)" if k == name else k for k in measured)], rows)
    return "\n\n".join([sizes, *(f"{key}: {e['note']}" for key, e in files.items() if "note" in e)])


def _changes(changes: Sequence[str]) -> str:
    """What was not what it had been when the run went on."""
    lines = [f"- {change}" for change in changes]
    return "## Changed on the way\n\n" + "\n".join(lines) if lines else ""


def left_out(data: Mapping[str, Any]) -> str:
    lines = [
        f"- {split}: {entry['left_out']} left out, for example {e['key']} ({e['reason']})"
        for split, entry in data.items()
        if isinstance(entry, dict) and entry.get("left_out")
        for e in entry["left_out_examples"][:3]
    ]
    lines += [
        f"- {split}: {entry['skipped']:,} left out by data.skip"
        for split, entry in data.items()
        if isinstance(entry, dict) and entry.get("skipped")
    ]
    return "## Left out\n\n" + "\n".join(lines) if lines else ""


def _examples(roles: Mapping[str, Any]) -> str:
    examples = roles["student"]["examples"][:8]
    if not examples or "hypothesis" not in examples[0]:
        return ""
    rows = [[e["key"], e["reference"], e["hypothesis"] or "(nothing)"] for e in examples]
    return "## Where the student errs most\n\n" + table(["item", "reference", "student"], rows)
