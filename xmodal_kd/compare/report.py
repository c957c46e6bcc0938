"""What a comparison says: ``compare.json`` for programs, ``compare.md`` and ``compare.png`` for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from ..runtime.checkpoint import disk_errors, write_bytes, write_json
from ..runtime.progress import console

Content = Mapping[str, Any]


def write(folder: Path, found: Content) -> None:
    """All three into `folder`."""
    picture = plot(folder / "compare.png", found)
    write_json(folder / "compare.json", found)
    write_bytes(folder / "compare.md", markdown(found, picture).encode())


def markdown(found: Content, picture: bool = False) -> str:
    """One page: the table, what it rests on, every seed, what failed."""
    name = found["metric"]["name"]
    less = "less is better" if found["metric"]["lower_is_better"] else "more is better"
    parts = [
        f"# Comparison: {found['recipe']}",
        f"{found['modality']}, seeds {', '.join(map(str, found['seeds']))}; {name} on test, {less}. "
        f"{'; '.join(found['machines'])}.",
        ("With " + ", ".join(f"`{k}={v}`" for k, v in found["overrides"].items()) + ".") if found["overrides"] else "",
        _failed(found),
        "## Result",
        _rows(_head(found), _result(found)),
        _budget(found),
        _legend(found),
        "![Metric of every arm](compare.png)" if picture else "",
        _intervals("## Differences from the reference", found["against_reference"]),
        _intervals("## Differences from the control", found["against_control"]),
        "## Every seed",
        _rows(["arm", *(f"seed {s}" for s in found["seeds"]), "dev (mean)"], _every_seed(found)),
        "## Cost",
        _rows(
            ["arm", "seconds of training", "GFLOPs a step", "GFLOPs a sample, in use", "parameters"],
            [[e["name"], *_cost(e["cost"])] for e in _entries(found)],
        ),
        _search(found["search"]),
        "## Versions",
        "\n\n".join(", ".join(f"{k} {v}" for k, v in one.items()) for one in found["versions"]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def table(found: Content) -> Table:
    """The result for a terminal."""
    out = Table(*_head(found))
    for row in _result(found):
        out.add_row(*row)
    return out


def plot(path: Path, found: Content) -> bool:
    """The metric by arm with its interval and every seed; whether matplotlib is there to draw it."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        console.print("compare.png is left out: it needs matplotlib", highlight=False)
        return False
    entries = [entry for entry in reversed(_entries(found)) if entry["test"] is not None]
    figure = Figure(figsize=(7, 1.2 + 0.4 * len(entries)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for y, entry in enumerate(entries):
        mean, low, high = (entry["test"][key] for key in ("mean", "low", "high"))
        colour = "C0" if any(entry is arm for arm in found["arms"]) else "0.5"
        axes.plot(list(entry["by_seed"].values()), [y] * len(entry["by_seed"]), ".", color=colour, alpha=0.4)
        bar = [[mean - low], [high - mean]] if low is not None else None
        axes.errorbar(mean, y, xerr=bar, fmt="o", color=colour, capsize=3)
    axes.set_yticks(range(len(entries)), [entry["name"] for entry in entries])
    axes.set_xlabel(f"{found['metric']['name']} on test: mean, 95 % t-interval over seeds, every seed")
    axes.grid(axis="x", alpha=0.3)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    return True


def _entries(found: Content) -> list[Mapping[str, Any]]:
    return [*found["teachers"], *found["controls"], *found["arms"]]


def _head(found: Content) -> list[str]:
    head = ["arm", f"{found['metric']['name']} (95 %)"]
    return head + [f"against {word}" for word, family in _families(found) if family] + ["seconds", "GFLOPs a step"]


def _families(found: Content) -> list[tuple[str, Mapping[str, Any]]]:
    """Comparisons by arm, with what the arm is compared to; the reference's own name where it is one for all."""
    against = {c["arm"]: c for c in found["against_reference"]}
    names = {c["against"] for c in against.values()}
    reference = names.pop() if len(names) == 1 else "its reference"
    return [(reference, against), ("control", {c["arm"]: c for c in found["against_control"]})]


def _result(found: Content) -> list[list[str]]:
    rows = []
    for entry in _entries(found):
        cells = [_judged(family.get(entry["name"])) for _, family in _families(found) if family]
        seconds, flops, *_ = _cost(entry["cost"])
        rows.append([entry["name"], _half(entry["test"]), *cells, seconds, flops])
    return rows


def _judged(c: Mapping[str, Any] | None) -> str:
    if c is None:
        return "–"
    shown = f"{c['difference']['mean']:+.4f}, " if c["difference"] else ""
    return shown + (c["verdict"] or "no verdict")


def _legend(found: Content) -> str:
    """What the numbers mean, and what they do not."""
    few = len(found["seeds"]) < found["fewest_seeds"]
    shared = "each seed has a teacher of its own" if found["teacher_per_seed"] else (
        "all seeds share one teacher, so that its luck is in every arm and in no interval"
    )  # fmt: skip
    lines = [
        "A difference is the arm less what it is measured against. Intervals are Student's over seeds. A verdict is a "
        "paired t-test over seeds at "
        f"{100 * found['alpha']:.0f} %, family-wise over all arms with the same kind of reference (Holm); "
        '"not distinguishable" means that these seeds cannot tell, not that the arms are equal.',
        f"Arms and controls see the same batches for the same number of steps; {shared}.",
    ]
    if few:
        lines.append(f"No verdicts: {len(found['seeds'])} seed(s), and a verdict needs {found['fewest_seeds']}.")
    lines += [f"{arm['name']} has no control: {arm['no_control']}." for arm in found["arms"] if arm["no_control"]]
    if len(found["machines"]) > 1 or len(found["versions"]) > 1:
        lines.append("The cells were run on several machines or versions: their seconds do not compare.")
    return "\n".join(f"- {line}" for line in lines)


def _intervals(title: str, family: Sequence[Mapping[str, Any]]) -> str:
    if not family:
        return ""
    rows = []
    for c in family:
        verdict = c["verdict"] or "no verdict"
        rows.append([
            c["arm"], c["against"], _interval(c["difference"], sign=True), _p(c["p"]), _p(c["p_holm"]),
            _drawn(c["over_items"]), _drawn(c["over_groups"]),
            f"**{verdict}**" + (f": {c['reason']}" if c["reason"] else ""),
        ])  # fmt: skip
    head = ["arm", "against", "difference over seeds [95 %]", "p", "p (Holm)", "over items [95 %]",
            "over groups [95 %]", "verdict"]  # fmt: skip
    note = (
        "The intervals over items and groups (speakers) hold the trained models fixed and draw other test data; "
        "the one over seeds holds the test data fixed. Only the latter decides the verdict."
    )
    return f"{title}\n\n{_rows(head, rows)}\n\n{note}"


def _every_seed(found: Content) -> list[list[str]]:
    return [
        [e["name"], *(_number(e["by_seed"].get(str(s))) for s in found["seeds"]),
         _number(e["dev"]["mean"] if e["dev"] else None)]
        for e in _entries(found)
    ]  # fmt: skip


def _budget(found: Content) -> str:
    """What was equal, where that was not the steps."""
    if found["equal"] == "steps":
        return ""
    arms = [f"{a['name']} {a['steps']:,} ({a['pace_ms'][0] / a['pace_ms'][1]:.2f} times the control's step)"
            for a in found["arms"]]  # fmt: skip
    return (
        f"Equal time: every arm made as many steps as fit into its control's: {', '.join(arms)}. Steps were timed in "
        "turns before the training, data and all; evaluations are not in it. The arms saw as many fewer samples."
    )


def _cost(cost: Mapping[str, Any]) -> list[str]:
    def giga(key: str) -> str:
        return "–" if cost.get(key) is None else f"{cost[key] / 1e9:.4g}"

    seconds, parameters = cost.get("seconds"), cost.get("parameters")
    return [
        "–" if seconds is None else f"{seconds:.1f}",
        giga("flops_per_step"),
        giga("flops_per_sample"),
        "–" if parameters is None else f"{parameters:,.0f}",
    ]


def _search(search: Mapping[str, Any] | None) -> str:
    if search is None:
        return ""
    weights = [str(weight) for weight in search["weights"]]
    rows = [
        [name, *(_number(one["dev"].get(w)) for w in weights), "–" if one["chosen"] is None else str(one["chosen"])]
        for name, one in search["arms"].items()
    ]
    return (
        f"## Weight search\n\n{search['metric']} on dev after {search['steps']} steps of seed {search['seed']}, which "
        f"is not among the measured ones.\n\n{_rows(['arm', *weights, 'chosen'], rows)}"
    )


def _failed(found: Content) -> str:
    lines = [f"- {c['name']}: {c['reason']} (`{c['folder']}.log`)" for c in found["cells"] if c["status"] != "done"]
    if not lines:
        return ""
    return "**Not all cells finished; differences are over the seeds that did on both sides.**\n\n" + "\n".join(lines)


def _rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _interval(one: Mapping[str, Any] | None, *, sign: bool = False) -> str:
    if one is None:
        return "–"
    mean, low, high = (None if one[k] is None else format(one[k], "+.4f" if sign else ".4f")
                       for k in ("mean", "low", "high"))  # fmt: skip
    return str(mean) if low is None or low == high else f"{mean} [{low}, {high}]"


def _half(one: Mapping[str, Any] | None) -> str:
    """A mean with half the width of its interval."""
    if one is None or one["low"] is None or one["low"] == one["high"]:
        return _number(None if one is None else one["mean"])
    return f"{one['mean']:.4f} ± {one['high'] - one['mean']:.4f}"


def _drawn(one: Mapping[str, Any] | None) -> str:
    return "–" if one is None else f"[{one['low']:+.4f}, {one['high']:+.4f}] of {one['units']}"


def _p(value: float | None) -> str:
    return "–" if value is None else "< 0.0001" if value < 1e-4 else f"{value:.4f}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
