"""Few-step students against their teacher over the whole curve of function evaluations, several methods and seeds.

    python benchmarks/samplers.py --out runs/samplers

The recipes have the same teacher: a seed's is trained once, by the first of them, and shared. Every cell is a run
through the command line, so a stopped benchmark goes on where it was. Writes one JSON with every point of every curve
and prints the tables of ``recipes/RESULTS.md``: FD by evaluations with t-intervals over seeds, and its ratio to the
teacher's own, paired by seed.
"""

from __future__ import annotations

import argparse
import json
import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter
from typing import Any

from cells import run, shown, t_interval

METRIC = "fd_clf"
RECIPES = ["diffusion/digits", "diffusion/digits_consistency", "diffusion/digits_ect"]
KEPT = ("fd_clf", "kid_clf", "precision", "recall", "density", "coverage", "sliced_wasserstein", "nearest_train",
        "paired_error", "label_agreement", "seconds_per_image")  # fmt: skip


def teacher(args: argparse.Namespace, seed: int) -> Path:
    out = args.out / f"teacher-{seed}"
    if not (out / "teacher" / "model_index.json").exists():
        run(args.recipes[0], [f"seed={seed}", *args.set], out, "--only", "teacher")
    return Path(out / "teacher")


def cell(args: argparse.Namespace, seed: int, recipe: str) -> dict[str, Any]:
    out = args.out / f"{Path(recipe).stem}-{seed}"
    if not (out / "report.json").exists():
        path = args.out / f"teacher-{seed}" / "teacher"
        run(recipe, [f"seed={seed}", f"teacher={{path: {path}}}", *args.set], out)
    report = json.loads((out / "report.json").read_text())
    points = [
        {key: point[key] for key in ("role", "solver", "nfe")} | {k: point["metrics"].get(k) for k in KEPT}
        for point in report["curve"]
    ]
    return {
        "seed": seed, "method": report["method"], "recipe": recipe, "points": points, "facts": report["facts"],
        "dev": {role: entry["dev_metrics"][METRIC] for role, entry in report["roles"].items()},
        "cost": report["cost"].get("student"), "parameters": report["roles"]["student"]["parameters"],
        "reload": report["export"], "versions": report["versions"], "threads": report["threads"],
    }  # fmt: skip


def speed(args: argparse.Namespace, repeats: int = 7, samples: int = 200) -> dict[str, Any]:
    """Seconds of `samples` samples by the teacher and by every stage's student, in turn, medians over `repeats`."""
    import torch

    from xmodal_kd.modalities.diffusion.export.pipeline import load_denoiser

    torch.set_num_threads(1)
    stages = sorted((args.out / f"{Path(args.recipes[0]).stem}-{args.seeds[0]}" / "student").glob("steps-*"))
    folders = [args.out / f"teacher-{args.seeds[0]}" / "teacher", *stages]
    models = {path.name: load_denoiser(path, quiet=True) for path in folders}
    took: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(repeats):
        for name, model in models.items():
            noise = torch.randn(samples, *model.shape)
            start = perf_counter()
            model.sample(noise)
            took[name].append(perf_counter() - start)
    medians = {name: statistics.median(seconds) for name, seconds in took.items()}
    faster = {name: medians["teacher"] / value for name, value in medians.items()}
    return {"samples": samples, "repeats": repeats, "seconds": took, "times_faster": faster}


def table(cells: list[dict[str, Any]], steps: int) -> str:
    """A row for each sampler: FD, its ratio to the teacher's at `steps` evaluations, KID and recall."""
    rows: dict[tuple[str, str, int], list[tuple[float, ...]]] = {}
    for one in cells:
        full = next(p for p in one["points"] if p["role"] == "teacher" and (p["solver"], p["nfe"]) == ("ddim", steps))
        for point in one["points"]:
            role = "teacher" if point["role"] == "teacher" else one["method"]
            if role == "teacher" and one["method"] != cells[0]["method"]:
                continue  # the same teacher again
            measured = point[METRIC], point[METRIC] / full[METRIC], point["kid_clf"], point["recall"]
            rows.setdefault((role, point["solver"], point["nfe"]), []).append(measured)
    lines = [
        f"| sampler | solver | evaluations | {METRIC} | ratio to teacher@{steps} | kid_clf | recall |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (role, solver, nfe), values in rows.items():
        fd, ratio, kid, recall = (t_interval(column) for column in zip(*values, strict=True))
        measured_ = f"{shown(fd, 2)} | {shown(ratio, 2)} | {kid[0]:.4f} | {recall[0]:.2f}"
        lines.append(f"| {role} | {solver} | {nfe} | {measured_} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=RECIPES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=64, help="of the teacher")
    parser.add_argument("--out", type=Path, default=Path("runs/samplers"))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "samplers.json")
    args = parser.parse_args()
    args.out = args.out.resolve()
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(lambda seed: teacher(args, seed), args.seeds))
        keys = [(seed, recipe) for recipe in args.recipes for seed in args.seeds]
        cells = list(pool.map(lambda key: cell(args, *key), keys))
    args.results.parent.mkdir(parents=True, exist_ok=True)
    speeds = speed(args)
    args.results.write_text(json.dumps({"overrides": args.set, "speed": speeds, "cells": cells}, indent=1) + "\n")
    print(table(cells, args.steps))
    print("\ntimes faster than the teacher, in turn:", {k: round(v, 1) for k, v in speeds["times_faster"].items()})


if __name__ == "__main__":
    main()
