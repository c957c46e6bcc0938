"""Schemes and compression on connected digits of an unheard speaker: who teaches whom, how small a student may be.

    python benchmarks/schemes.py --data FOLDER --teacher RUN/teacher --out runs/schemes [--arms "direct;dml"]

Each arm is a recipe with settings, by seeds, all with one teacher; students without it share one control a seed, found
in the arm "direct". Every cell is a run through the command line: a stopped benchmark goes on where it was. Writes one
JSON with an entry a cell and prints the table of ``recipes/RESULTS.md``: WER in percent, and differences with
t-intervals paired by seed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cells import run, shown, t_interval

#: The test speaker of the first rotation: the teacher must not have heard it.
SPLIT = ("data.train_speakers=[lucas, nicolas, yweweler]", "data.dev_speakers=[jackson]", "data.test_speakers=[george]")
KD = "{loss: kd, weight: 0.3, params: {temperature: 1.0}}"
ALONE = ("control=false",)
#: Of a student that is its own or its peers' teacher.
UNTAUGHT = ("teacher=null", f"objective=[{{loss: ctc}}, {KD}]")
ASSISTANT = "{model: conv, params: {width: 64, lookahead: 4}}"
FSDD = "speech/fsdd"
#: Recipes without a teacher.
OWN = ("speech/okddip", "speech/exits")
#: Arm: a recipe, what is set in it, and in whose cells its control is.
ARMS: Mapping[str, tuple[str, tuple[str, ...], str]] = {
    "direct": (FSDD, (), "direct"),
    "assistant of 80 k": (
        FSDD, (*ALONE, f"scheme={{name: assistants, params: {{assistants: [{ASSISTANT}]}}}}"), "direct",
    ),
    "labels 10 %": (FSDD, ("labels=10%",), "labels 10 %"),
    "okddip, leader": ("speech/okddip", ALONE, "direct"),
    "dml": (FSDD, (*UNTAUGHT, *ALONE, "scheme=dml"), "direct"),
    "tfkd_self": (FSDD, (*UNTAUGHT, "scheme=tfkd_self"), "direct"),
    "born_again": (FSDD, (*UNTAUGHT, "scheme={name: born_again, params: {generations: 1}}"), "direct"),
    "ema_teacher": (FSDD, (*UNTAUGHT, *ALONE, "scheme=ema_teacher"), "direct"),
    "exits": ("speech/exits", ALONE, "direct"),
    "8 bits": ("speech/quantised", (*ALONE, "compress.params.bits=8"), "direct"),
    "4 bits": ("speech/quantised", (), "4 bits"),
    "2 bits": ("speech/quantised", (*ALONE, "compress.params.bits=2"), "direct"),
    "half teacher": ("speech/repaired", ("train.steps=200", "compress=width_prune"), "half teacher"),
    "half teacher, repaired": ("speech/repaired", ("train.steps=200", *ALONE), "half teacher"),
}  # fmt: skip


def cell(args: argparse.Namespace, name: str, seed: int) -> dict[str, Any]:
    recipe, sets, _ = ARMS[name]
    out = args.out / name.replace(", ", "-").replace(" ", "-").replace("%", "percent") / f"seed-{seed}"
    if not (out / "report.json").exists():
        taught = () if "teacher=null" in sets or recipe in OWN else (f"teacher={{path: {args.teacher}}}",)
        budget = (f"data.path={args.data}", f"train.steps={args.steps}", f"seed={seed}")
        run(recipe, [*SPLIT, *budget, *taught, *sets, *args.set], out)
    report = json.loads((out / "report.json").read_text())
    roles = report["roles"]
    return {
        "arm": name, "seed": seed, "metrics": {role: entry["metrics"] for role, entry in roles.items()},
        "dev": {role: entry["dev_metrics"]["wer"] for role, entry in roles.items()},
        "parameters": {role: entry["parameters"] for role, entry in roles.items()},
        "latency": {role: entry["latency"] for role, entry in roles.items()}, "curve": report["curve"],
        "taught": report["taught"], "compressed": report["compressed"], "export": report["export"],
        "cost": report["cost"], "versions": report["versions"], "threads": report["threads"],
    }  # fmt: skip


def table(cells: list[dict[str, Any]]) -> str:
    """WER of every role of an arm, and what the student has over its control."""
    by_key = {(found["arm"], found["seed"]): found for found in cells}
    lines = ["| arm | role | WER | control - student |", "| --- | --- | --- | --- |"]
    for arm in dict.fromkeys(found["arm"] for found in cells):
        mine = [found for found in cells if found["arm"] == arm]
        for role in mine[0]["metrics"]:
            wer = t_interval([100 * found["metrics"][role]["wer"] for found in mine])
            gain = "–"
            if role not in ("teacher", "control"):
                controls = [by_key.get((ARMS[arm][2], found["seed"])) for found in mine]
                pairs = [
                    100 * (other["metrics"]["control"]["wer"] - found["metrics"][role]["wer"])
                    for found, other in zip(mine, controls, strict=True)
                    if other is not None and "control" in other["metrics"]
                ]
                gain = shown(t_interval(pairs)) if pairs else "–"
            lines.append(f"| {arm} | {role} | {shown(wer)} | {gain} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the Free Spoken Digit Dataset")
    parser.add_argument("--teacher", type=Path, required=True, help="a saved teacher that has not heard george")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--arms", help="some of them, separated by semicolons; all without it")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--set", action="append", default=[], help="further settings of every run")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/schemes.json"))
    args = parser.parse_args()
    wanted = args.arms.split(";") if args.arms else list(ARMS)
    cells = [cell(args, name, seed) for seed in range(1, args.seeds + 1) for name in wanted]
    args.results.parent.mkdir(parents=True, exist_ok=True)
    args.results.write_text(json.dumps({"steps": args.steps, "cells": cells}, indent=1) + "\n")
    print(table(sorted(cells, key=lambda found: list(ARMS).index(found["arm"]))))


if __name__ == "__main__":
    main()
