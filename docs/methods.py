"""Writes docs/methods.md: every method of both surveys, where it lives, where it ran and what was measured.

    python docs/methods.py            write it
    python docs/methods.py --check    exit with 1 where it is stale

It is made of ``docs/methods.yaml`` (what exists in the world), the registries (what exists here), the shipped recipes
(where it ran) and ``benchmarks/results`` (what was measured): among these any ``compare.json``, whose arms are named
after losses or methods.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))  # this checkout, whatever is installed

from xmodal_kd.cli.catalogue import adapters, first_line, scheme_needs, serves
from xmodal_kd.compress.known import COMPRESSIONS
from xmodal_kd.losses import LOSSES
from xmodal_kd.report.statistics import Interval, t_interval
from xmodal_kd.runtime.discovery import modality_names, shipped
from xmodal_kd.schemes import SCHEMES
from xmodal_kd.training.method import METHODS

ROOT = Path(__file__).parents[1]
PAGE, TABLE, RESULTS = ROOT / "docs/methods.md", ROOT / "docs/methods.yaml", ROOT / "benchmarks/results"
Row = Mapping[str, Any]

HEAD = """# Methods

Every method of the two surveys that this project follows, and the baselines that they compare with. Made by
`python docs/methods.py`; a test fails where it is stale, so edit `docs/methods.yaml` or what it is made of.

The first part is for choosing: what is registered, by what it needs. The second is the map: every method of the
surveys, and where it is. `xmodal-kd list losses --needs features --without labels --for speech` filters the first.

- **needs**: what a term of it must be given, beside the teacher. **serves**: modalities whose signals have that. **ran
  in**: modalities of shipped recipes, and of comparisons, that use it; every loss runs in the tests on random rows
  besides.
- **measured**: against the same student without the teacher, or as it says; brackets are 95 % intervals over seeds.
  `recipes/RESULTS.md` has the whole and what speaks against it. Empty: not measured here.
- **here**: registered losses, methods, schemes and ways of compression (`xmodal-kd list losses`, and so on), or how an
  arrangement does it. *Partly*: what is missing is said. *Experimental*: after the paper's idea, which it does not give
  in full. *Not built*: there is nothing, or only what is near. *Another world*: nor will there be, for it takes data or
models that no modality here has; which, is said."""


def registered() -> dict[str, Any]:
    """What is registered, by name, that of modalities too: losses, methods, ``scheme:<name>``, ``compress:<name>``."""
    for name in modality_names():
        for part in ("losses", "adapter"):
            module = f"xmodal_kd.modalities.{name}.{part}"
            if find_spec(module) is not None:
                importlib.import_module(module)
    things: dict[str, Any] = {name: METHODS[name] for name in METHODS} | {name: LOSSES[name].fn for name in LOSSES}
    things |= {f"scheme:{name}": SCHEMES[name] for name in SCHEMES}
    things |= {f"compress:{name}": COMPRESSIONS[name] for name in COMPRESSIONS}
    return {name: thing for name, thing in things.items() if thing.__module__.startswith("xmodal_kd.")}


def lives(thing: Any) -> str:
    """The file of a registered thing, seen from docs."""
    file = Path(inspect.getfile(inspect.unwrap(thing))).resolve()
    return f"../{file.relative_to(ROOT.resolve()).as_posix()}"


# ---------------------------------------------------------------- where it ran, and what was measured


def ran() -> dict[str, set[str]]:
    """Modalities whose shipped recipes name a loss or a method, and those of comparisons."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in shipped().values():
        recipe = yaml.safe_load(path.read_text())
        method = recipe.get("method", "distil")
        names = [method if isinstance(method, str) else method["name"]]
        names += [f"{key}:{name}" for key in ("scheme", "compress") for name in _named(recipe.get(key))]
        names += [term["loss"] for part in (recipe, recipe.get("teacher", {})) for term in part.get("objective", [])]
        for name in names:
            found[name].add(recipe["modality"])
    for _, result in compared():
        for arm in result["arms"]:
            found[_loss_of(arm["name"])].add(result["modality"])
    return found


def _loss_of(arm: str) -> str:
    """``at`` of ``at@stages.1=1000``, ``ntce`` of ``ntce=8``."""
    return re.split("[@= ]", arm, maxsplit=1)[0]


def _named(specs: Any) -> list[str]:
    """Names in a recipe's section of a scheme or of ways of compression."""
    several = specs if isinstance(specs, list) else [specs] if specs else []
    return [spec if isinstance(spec, str) else spec["name"] for spec in several]


def compared() -> Iterator[tuple[Path, Row]]:
    """Results of `compare` that are committed."""
    for path in sorted(RESULTS.glob("*.json")):
        result = json.loads(path.read_text())
        if isinstance(result, dict) and {"arms", "against_control", "modality"} <= result.keys():
            yield path, result


def measured() -> dict[str, list[str]]:
    """What was measured of each loss or method."""
    found: dict[str, list[str]] = defaultdict(list)
    found["kd"].append(_digits_spoken(json.loads((RESULTS / "fsdd.json").read_text())["cells"]))
    for name, text in _samplers(json.loads((RESULTS / "samplers.json").read_text())["cells"]):
        found[name].append(text)
    for _, result in compared():
        metric = result["metric"]["name"]
        changed = result.get("overrides", {})
        recipe = Path(result["recipe"]).stem + (f", labels {changed['labels'] or 'all'}" if "labels" in changed else "")
        recipe += f", {changed['train.steps']} steps" if "train.steps" in changed else ""
        for entry in result["against_control"]:
            if entry["difference"]:
                change = bracketed(Interval(**entry["difference"]), 4, sign="+")
                verdict = entry["verdict"] or "no verdict"
                name = _loss_of(entry["arm"])
                found[name].append(f"{recipe}: {metric} {change}, {verdict}")
    return found


def _digits_spoken(cells: list[Row]) -> str:
    """By seed the mean over the test speakers of the control's errors less the student's, in points."""
    texts = []
    for budget in ("short", "long"):
        mine = [cell for cell in cells if cell["budget"] == budget]
        by_seed = defaultdict(list)
        for cell in mine:
            by_seed[cell["seed"]].append(100 * (cell["wer"]["control"] - cell["wer"]["student"]))
        gains = t_interval([sum(values) / len(values) for values in by_seed.values()])
        texts.append(f"{bracketed(gains, 1)} points of WER less after {mine[0]['steps']} steps")
    return f"speech/fsdd: {', '.join(texts)}"


def _samplers(cells: list[Row]) -> Iterator[tuple[str, str]]:
    """By method the distance (fd_clf) over that of the seed's teacher at 64 evaluations."""
    by_method = defaultdict(list)
    for cell in cells:
        by_method[cell["method"]].append(cell)
    for name, mine in by_method.items():
        texts = []
        for evaluations in (4, 2, 1):
            ratios = [_fd(cell, "student", evaluations) / _fd(cell, "teacher", 64) for cell in mine]
            texts.append(f"{bracketed(t_interval(ratios), 2)} at {evaluations}")
        yield name, f"diffusion/digits: distance over the teacher's at 64 evaluations: {', '.join(texts)}"


def _fd(cell: Row, role: str, evaluations: int) -> float:
    points = [p for p in cell["points"] if p["role"] == role and p["nfe"] == evaluations and p["solver"] != "dpmpp_2m"]
    return float(points[0]["fd_clf"])


def bracketed(interval: Interval, digits: int, sign: str = "") -> str:
    ends = [interval.low, interval.high]
    shown = ", ".join(f"{end:{sign}.{digits}f}" for end in ends if end is not None)
    return f"{interval.mean:{sign}.{digits}f}" + (f" [{shown}]" if shown else "")


# ---------------------------------------------------------------- the page


def families() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load(TABLE.read_text())
    return found


def homes(table: list[dict[str, Any]]) -> dict[str, str]:
    """The first method that names a registered thing: there its facts stand."""
    found: dict[str, str] = {}
    for family in table:
        for row in family["methods"]:
            for name in row.get("here", "").split():
                found.setdefault(name, row["name"])
    return found


STATES = ("built", "partly", "experimental", "not built", "another world")


def state(row: Row) -> str:
    """One of `STATES`."""
    if not (row.get("here") or row.get("how")):
        return "another world" if row.get("world") else "not built"
    if row.get("experimental") or any(_experimental(name) for name in row.get("here", "").split()):
        return "experimental"
    return "partly" if row.get("part") else "built"


def _experimental(name: str) -> bool:
    kind, _, short = name.rpartition(":")
    table: Any = {"": LOSSES, "scheme": SCHEMES, "compress": COMPRESSIONS}[kind]
    return short in table and table[short].experimental


def page() -> str:
    table, things, where, effects = families(), registered(), ran(), measured()
    home = homes(table)
    if unknown := sorted(home.keys() - things.keys()):
        raise SystemExit(f"{TABLE.name} names what is not registered: {', '.join(unknown)}")
    if homeless := sorted(things.keys() - home.keys() - {"distil"}):
        raise SystemExit(f"{TABLE.name} has no method for what is registered: {', '.join(homeless)}")
    rows = [row for family in table for row in family["methods"]]
    states = [state(row) for row in rows]
    counts = ", ".join(f"{states.count(word)} {word}" for word in STATES)
    losses = sum(name in LOSSES for name in things)
    others = f"{len(SCHEMES)} schemes and {len(COMPRESSIONS)} ways of compression"
    lines = [HEAD, f"{len(rows)} entries: {counts}; {losses} losses, {others} are registered.", ""]
    lines += ["# To choose from", "", *choice(things, where, effects), "# The map", ""]
    for family in table:
        lines += [f"## {family['family']}", "", "| method | paper | state | here |", "|---|---|---|---|"]
        for row in family["methods"]:
            lines.append(f"| {row['name']} | {row['paper']} | {state(row)} | {_here(row, things)} |")
        lines.append("")
    return "\n".join(lines)


# ---------------------------------------------------------------- to choose from

#: Tables of the first part, in order, and which registered things they hold: a thing is in the first that takes it.
GROUPS: list[tuple[str, Callable[[str, frozenset[str]], bool]]] = [
    ("Several teachers, one student", lambda name, needs: "several_teachers" in needs),
    ("Schemes with one teacher", lambda name, needs: name.startswith("scheme:") and "teacher" in needs),
    ("Schemes without a teacher", lambda name, needs: name.startswith("scheme:")),
    ("Compression", lambda name, needs: name.startswith("compress:")),
    ("Methods of few sampling steps", lambda name, needs: name in METHODS),
    ("Losses without a teacher", lambda name, needs: "teacher" not in needs),
    ("Losses on class scores", lambda name, needs: needs == {"logits", "teacher"}),
    ("Losses on class scores and labels", lambda name, needs: needs == {"logits", "labels", "teacher"}),
    ("Losses on features", lambda name, needs: needs == {"features", "teacher"}),
    ("Losses on features of a special kind, or on several things", lambda name, needs: True),
]


def choice(things: Mapping[str, Any], where: Mapping[str, set[str]], effects: Mapping[str, list[str]]) -> Iterator[str]:
    """Tables of what is registered, by what it needs; what was measured comes first in each."""
    modalities = dict(adapters())
    left = {name: needs_of(name) for name in things if name != "distil"}
    for title, takes in GROUPS:
        mine = [name for name, needs in left.items() if takes(name, needs)]
        losses = any(name in LOSSES for name in mine)
        columns = ["name", "what", *(["needs", "serves"] if losses else []), "ran in", "measured"]
        yield from (f"## {title}", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|")
        for name in sorted(mine, key=lambda name: (name not in effects, name)):
            serving = [m for m, kind in modalities.items() if losses and serves(LOSSES[name], m, kind)]
            needs = ", ".join(sorted(left.pop(name) - {"teacher"}))
            cells = [
                f"[`{name}`]({lives(things[name])})", first_line(things[name]).replace("|", "\\|"),
                *([needs, ", ".join(serving)] if losses else []),
                ", ".join(sorted(where.get(name, ()))), "; ".join(effects.get(name, ())),
            ]  # fmt: skip
            yield f"| {' | '.join(cells)} |"
        yield ""


def needs_of(name: str) -> frozenset[str]:
    """Of a loss what it says, of a scheme its teachers; of others nothing is said."""
    if name in LOSSES:
        return LOSSES[name].needs
    kind, _, short = name.rpartition(":")
    return frozenset(scheme_needs(SCHEMES[short])) if kind == "scheme" else frozenset({"teacher"})


def _here(row: Row, things: Mapping[str, Any]) -> str:
    links = ", ".join(f"[`{name}`]({lives(things[name])})" for name in row.get("here", "").split())
    return "; ".join(text for text in (links, row.get("how"), row.get("note"), row.get("world")) if text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where the page is stale")
    check = parser.parse_args().check
    text = page()
    stale = not PAGE.is_file() or PAGE.read_text() != text
    if check:
        return int(stale)
    PAGE.write_text(text)
    print(f"{PAGE.name}: {'written' if stale else 'as it was'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
