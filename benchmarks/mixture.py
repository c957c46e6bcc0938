"""Every few-step method on a Gaussian mixture: how near its samples come to the truth in 1, 2 and 4 evaluations.

    python benchmarks/mixture.py

The teacher is exact, the student a network of 37,634 weights, and all methods start from the same one, which has
learnt what the teacher says. Distances are sliced Wasserstein over the sampling floor (1 is as good as the truth),
means over seeds with t-intervals. Writes ``benchmarks/results/mixture.json`` and prints a table. With ``--guided``
models know the mixture's two classes, the teacher is guided at scale 2, what it makes in 64 of Heun's steps is the
truth, and ``benchmarks/results/mixture_guided.json`` is written.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import process_time
from typing import Any

import torch
from cells import shown, t_interval

from xmodal_kd.modalities.diffusion.evaluate.bench import ARMS, GUIDED, SCALE, Bench
from xmodal_kd.modalities.diffusion.models.denoiser import Sampling
from xmodal_kd.modalities.diffusion.models.paths import Edm, Flow
from xmodal_kd.modalities.diffusion.models.process import Process

PROCESSES = {"vp": lambda: Process.cosine(1024), "edm": Edm, "flow": Flow}
BUDGETS = (1, 2, 4)


def cells(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for kind in args.processes:
        bench = Bench(process=PROCESSES[kind]())
        for steps in (*BUDGETS, 16, 64):
            distance = bench.distance(bench.teacher, Sampling("ddim", steps), draws=args.draws)
            yield {"process": kind, "method": "teacher", "seed": None, "nfe": steps, "distance": distance}
        for seed in args.seeds:
            bench.matched(seed)
            for name in (name for name in args.arms if name in ARMS):
                arm, begun = ARMS[name], process_time()
                with tempfile.TemporaryDirectory() as folder:
                    students = bench.distil(arm, Path(folder), seed)
                seconds = round(process_time() - begun, 1)
                for nfe in arm.budgets:
                    distance = bench.distance(students[nfe], draws=args.draws)
                    about = {"process": kind, "method": name, "seed": seed, "nfe": nfe, "distance": distance}
                    yield {**about, "steps": arm.steps, "params": arm.params, "lr": arm.lr, "cpu_seconds": seconds}


def guided(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for name, arm in GUIDED.items():
        if name not in args.arms:
            continue
        bench = Bench(conditional=True, guidance=SCALE, told=arm.told)
        if arm.told is None and name == next(iter(GUIDED)):
            for steps in BUDGETS:
                distance = bench.distance(bench.teacher, Sampling("ddim", steps), draws=args.draws)
                yield {"process": "vp", "method": "teacher", "seed": None, "nfe": steps, "distance": distance}
        for seed in args.seeds:
            begun = process_time()
            with tempfile.TemporaryDirectory() as folder:
                students = bench.distil(arm, Path(folder), seed)
            about = {"steps": arm.steps, "params": arm.params, "lr": arm.lr, "guidance": SCALE}
            seconds = round(process_time() - begun, 1)  # with the matching of the student
            for nfe in arm.budgets:
                distance = bench.distance(students[nfe], draws=args.draws)
                cell = {"process": "vp", "method": name, "seed": seed, "nfe": nfe, "distance": distance}
                yield {**cell, **about, "cpu_seconds": seconds}


def table(found: list[dict[str, Any]]) -> str:
    lines = ["| process | sampler | 1 | 2 | 4 |", "| --- | --- | --- | --- | --- |"]
    for kind, name in dict.fromkeys((cell["process"], cell["method"]) for cell in found):
        own = [cell for cell in found if (cell["process"], cell["method"]) == (kind, name)]
        told = [[cell["distance"] for cell in own if cell["nfe"] == nfe] for nfe in BUDGETS]
        row = [shown(t_interval(v), 2) if len(v) > 1 else f"{v[0]:.2f}" if v else "" for v in told]
        lines.append(f"| {kind} | {name} | {' | '.join(row)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", default=list(ARMS | GUIDED), choices=list(ARMS | GUIDED))
    parser.add_argument("--processes", nargs="+", default=list(PROCESSES), choices=list(PROCESSES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--draws", type=int, default=1)
    parser.add_argument("--guided", action="store_true")
    parser.add_argument("--results", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = args.results or Path(__file__).parent / "results" / (
        "mixture_guided.json" if args.guided else "mixture.json"
    )
    found = []
    for cell in guided(args) if args.guided else cells(args):
        found.append(cell)
        print(json.dumps(cell), flush=True)
    bench = Bench(conditional=True, guidance=SCALE) if args.guided else Bench()
    results.write_text(json.dumps({"floor": bench.floor, "cells": found}, indent=1) + "\n")
    print(table(found))


if __name__ == "__main__":
    main()
