"""AN4 to convergence: a teacher of one core and one hour, and what it is worth to a student of 100 kB.

    python benchmarks/an4.py --data FOLDER --out runs/an4

Trains the teacher (``speech/an4_teacher``), then control and student of each seed (``speech/an4``, as ``xmodal-kd
compare``); what is finished is not repeated, what was stopped goes on. Writes one JSON and prints the table of
``recipes/RESULTS.md``: WER in percent on the official test set, with t-intervals over seeds and percentile bootstraps
over its ten speakers.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cells import run, shown, t_interval

RESAMPLES = 10_000
#: CR-CTC in the place of a teacher: half the utterances a step, each in two views, so steps cost what the control's do.
CR_CTC = (
    "teacher=null", "scheme=ddgsd", "cache=null", "control=false", "train.batch_size=8", "objective.1.weight=1.6",
)  # fmt: skip
INT8 = "model.int8.onnx"


def report_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text())  # type: ignore[no-any-return]


def compare(args: argparse.Namespace, teacher: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """Reports of control and student by (arm, seed)."""
    out = args.out / "compare"
    command = [sys.executable, "-m", "xmodal_kd", "compare", args.recipe, "--methods", args.methods]
    command += ["--seeds", str(args.seeds), "--out", str(out), "--jobs", str(args.jobs), "--export", "--quiet"]
    for item in (f"data.path={args.data}", f"teacher={{path: {teacher}}}", *args.set):
        command += ["--set", item]
    subprocess.run(command, check=True)
    arms = json.loads((out / "compare.json").read_text())["arms"]
    cells = {(arm["name"], seed): sorted((out / "cells").glob(f"{arm['name']}-seed-{seed}-*/report.json"))
             for arm in ({"name": "control"}, *arms) for seed in range(1, args.seeds + 1)}  # fmt: skip
    return {key: json.loads(found[-1].read_text()) for key, found in cells.items() if found}


def entry(report: Mapping[str, Any], arm: str, seed: int) -> dict[str, Any]:
    """What is kept of one training of the student's network."""
    role = report["roles"]["student"]
    cost, int8 = report["cost"]["student"], report["export"][INT8]
    return {
        "arm": arm, "seed": seed, "parameters": role["parameters"], "flops_per_sample": role["flops_per_sample"],
        "metrics": role["metrics"], "dev": role["dev_metrics"]["wer"], "dev_curve": cost["dev"],
        "steps": cost["steps"], "seconds": cost["seconds"], "latency": role["latency"],
        "int8": {"bytes": int8["bytes"], "wer": int8["metrics"]["wer"]}, "versions": report["versions"],
    }  # fmt: skip


def by_speaker(entries: Sequence[Mapping[str, Any]], words: Mapping[str, int]) -> np.ndarray[Any, Any]:
    """``(speakers,)`` word errors of each test speaker, in the mean over seeds."""
    rates = [[found["metrics"]["wer_by_speaker"][name] for name in words] for found in entries]
    return np.mean(rates, axis=0) * np.array(list(words.values()))  # type: ignore[no-any-return]


def over_speakers(errors: np.ndarray[Any, Any], words: Mapping[str, int]) -> tuple[float, float, float]:
    """Errors a word in percent, and the middle 95 % of resampled speakers."""
    drawn = np.random.default_rng(0).integers(len(errors), size=(RESAMPLES, len(errors)))
    spoken = np.array(list(words.values()))
    low, high = np.percentile(100 * errors[drawn].sum(1) / spoken[drawn].sum(1), [2.5, 97.5])
    return 100 * float(errors.sum() / spoken.sum()), float(low), float(high)


def summary(entries: Sequence[Mapping[str, Any]], teacher: float, words: Mapping[str, int]) -> dict[str, Any]:
    """Of each arm: WER over seeds and over speakers, and against the control paired by either; the gap closed."""
    arms: dict[str, list[Mapping[str, Any]]] = {}
    for found in entries:
        arms.setdefault(found["arm"], []).append(found)
    told: dict[str, Any] = {}
    for name, mine in arms.items():
        control = {found["seed"]: found for found in arms.get("control", [])}
        wer = [100 * found["metrics"]["wer"] for found in mine]
        told[name] = {
            "over_seeds": t_interval(wer), "over_speakers": over_speakers(by_speaker(mine, words), words),
            "int8_over_seeds": t_interval([100 * found["int8"]["wer"] for found in mine]),
        }  # fmt: skip
        pairs = [(100 * control[f["seed"]]["metrics"]["wer"], w) for f, w in zip(mine, wer, strict=True)
                 if f["seed"] in control]  # fmt: skip
        if name == "control" or len(pairs) < len(mine):
            continue
        difference = by_speaker([control[found["seed"]] for found in mine], words) - by_speaker(mine, words)
        apart = [c - teacher for c, _ in pairs]
        told[name] |= {
            "control_less_it_over_seeds": t_interval([c - w for c, w in pairs]),
            "control_less_it_over_speakers": over_speakers(difference, words),
            "gap_closed": sum(c - w for c, w in pairs) / sum(apart) if sum(apart) > 0 else None,
        }
    return told


def table(told: Mapping[str, Any]) -> str:
    lines = [
        "| what | WER, over seeds | over speakers | int8 | control - it, over seeds | over speakers | gap closed |"
    ]
    lines.append("| --- " * 7 + "|")
    for name, found in told.items():
        less = [shown(found[key]) if key in found else "–" for key in
                ("control_less_it_over_seeds", "control_less_it_over_speakers")]  # fmt: skip
        gap = found.get("gap_closed")
        cells = [
            name,
            shown(found["over_seeds"]),
            shown(found["over_speakers"]),
            shown(found["int8_over_seeds"]),
            *less,
        ]
        lines.append(f"| {' | '.join([*cells, '–' if gap is None else f'{100 * gap:.0f} %'])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train.jsonl, dev.jsonl, test.jsonl")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, help="run folder of a teacher that is trained already")
    parser.add_argument("--teacher-recipe", default="speech/an4_teacher")
    parser.add_argument("--recipe", default="speech/an4")
    parser.add_argument("--methods", default="recipe", help="arms, as compare takes them")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cr-seeds", type=int, default=0, help="seeds of CR-CTC without a teacher")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], help="further settings of control and student")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/an4.json"))
    args = parser.parse_args()
    folder = args.teacher or args.out / "teacher"
    if not (folder / "report.json").exists():
        run(args.teacher_recipe, [f"data.path={args.data}"], folder)
    teacher = entry(report_of(folder), "teacher", 1)
    found = [entry(report, *key) for key, report in compare(args, folder / "student").items()]
    for seed in range(1, args.cr_seeds + 1):
        alone = args.out / "cr" / f"seed-{seed}"
        if not (alone / "report.json").exists():
            run(args.recipe, [f"data.path={args.data}", *CR_CTC, f"seed={seed}", *args.set], alone)
        found.append(entry(report_of(alone), "CR-CTC, no teacher", seed))
    texts = [json.loads(line) for line in (args.data / "test.jsonl").read_text().splitlines()]
    words: Counter[str] = Counter()
    for line in texts:
        words[line["speaker"]] += len(line["text"].split())
    told = summary(found, 100 * teacher["metrics"]["wer"], words)
    content = {"teacher": teacher, "cells": found, "words": words, "summary": told}
    args.results.write_text(json.dumps(content, indent=1) + "\n")
    wer, (low, high) = 100 * teacher["metrics"]["wer"], teacher["metrics"]["wer_interval"]
    print(f"teacher: {teacher['parameters']:,} parameters, {teacher['seconds'] / 60:.0f} minutes, WER {wer:.1f} "
          f"[{100 * low:.1f}, {100 * high:.1f}]\n{table(told)}")  # fmt: skip


if __name__ == "__main__":
    main()
