"""The recipes of the points room over several seeds: teacher, control, self-training and student, on unseen worlds.

    python benchmarks/points.py --out runs/points

The teacher of an experiment is trained once and shared by its seeds; of real labels every seed has its own. Every cell
is a run through the command line, so a stopped benchmark goes on where it was. Writes one JSON with an entry a cell and
prints the tables of ``recipes/RESULTS.md``: mIoU in percent, and the differences with t-intervals paired by seed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cells import run, shown, t_interval

#: Experiments: a recipe, what is set in it, and whose teacher it has.
EXPERIMENTS: Mapping[str, tuple[str, tuple[str, ...], str]] = {
    "scarce": ("points/scarce", (), "scarce"),
    "scarce, teacher of 12": (
        "points/scarce",
        ("teacher.labels=12", "control=false", "self_training=false"),
        "scarce, teacher of 12",
    ),
    "beams": ("points/beams", (), "scarce"),
    "kitti": ("points/kitti", (), "scarce"),
    "camera": ("points/camera", (), "scarce"),
    "lidar from image": ("points/lidar_from_image", (), "lidar from image"),
    "real labels": ("points/real_labels", (), ""),
    "real labels, nuScenes": ("points/real_labels_nuscenes", (), ""),
}
#: Folders of recordings below ``--data``, by the key of the recipe that names them.
RECORDINGS: Mapping[str, Mapping[str, str]] = {
    "kitti": {"real.0": "kitti_raw", "real.1": "kitti", "real.2": "nuscenes_frame", "unlabelled": "kitti_raw"},
    "real labels": {"": "lidar_labelled/range_images/semantic_kitti"},
    "real labels, nuScenes": {"": "lidar_labelled/range_images/nuscenes"},
}
#: Whose controls an experiment shares: students without its teacher on the same data are the same runs.
CONTROLS = {"scarce, teacher of 12": "scarce"}
ROLES = ("teacher", "control", "self_training", "student")


def folder(args: argparse.Namespace, name: str) -> Path:
    return Path(args.out / name.replace(", ", "-").replace(" ", "-"))


def teacher(args: argparse.Namespace, name: str) -> None:
    recipe, sets, _ = EXPERIMENTS[name]
    out = folder(args, name) / "teacher"
    if not (out / "teacher" / "card.json").exists():
        run(recipe, [*sets, *args.set], out, "--only", "teacher")


def cell(args: argparse.Namespace, name: str, seed: int) -> dict[str, Any]:
    recipe, sets, taught_by = EXPERIMENTS[name]
    found = RECORDINGS.get(name, {})
    sets += tuple(f"data.{key}.path".replace("..", ".") + f"={args.data / value}" for key, value in found.items())
    out = folder(args, name) / f"seed-{seed}"
    if not (out / "report.json").exists():
        taught = [f"teacher.path={folder(args, taught_by) / 'teacher' / 'teacher'}"] if taught_by else []
        run(recipe, [*sets, f"seed={seed}", *taught, *args.set], out)
    report = json.loads((out / "report.json").read_text())
    roles = {role: entry for role, entry in report["roles"].items() if role in ROLES}
    return {
        "experiment": name, "seed": seed, "gap_closed": report["gap_closed"], "reason": report["reason"],
        "metrics": {role: entry["metrics"] for role, entry in roles.items()},
        "dev": {role: entry["dev_metrics"]["miou"] for role, entry in roles.items()},
        "parameters": {role: entry["parameters"] for role, entry in roles.items()},
        "flops_per_sample": {role: entry["flops_per_sample"] for role, entry in roles.items()},
        "curve": report["curve"], "facts": report["facts"], "cost": report["cost"], "export": report["export"],
        "versions": report["versions"], "threads": report["threads"],
    }  # fmt: skip


def share_controls(cells: list[dict[str, Any]]) -> None:
    """Put the controls that an experiment shares with another beside its students."""
    by_key = {(c["experiment"], c["seed"]): c for c in cells}
    for name, other in CONTROLS.items():
        for (experiment, seed), found in by_key.items():
            if experiment == name and (other, seed) in by_key:
                for role in ("control", "self_training"):
                    found["metrics"].setdefault(role, by_key[other, seed]["metrics"][role])


def gain(cells: list[dict[str, Any]], role: str) -> str:
    """Of the student over a role that the same cells have, in points of mIoU."""
    both = [c["metrics"] for c in cells if role in c["metrics"]]
    return shown(t_interval([100 * (m["student"]["miou"] - m[role]["miou"]) for m in both])) if both else "–"


def table(cells: list[dict[str, Any]]) -> str:
    """mIoU in percent by experiment, and how far the student is above either control."""
    lines = [
        "| experiment | teacher | control | self-training | student | student - control | student - self-training |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in EXPERIMENTS:
        mine = [c for c in cells if c["experiment"] == name]
        if not mine:
            continue
        found = {role: [100 * c["metrics"][role]["miou"] for c in mine if role in c["metrics"]] for role in ROLES}
        shares = [shown(t_interval(found[role])) if len(found[role]) > 1 else "–" for role in ROLES[1:]]
        gains = [gain(mine, role) for role in ("control", "self_training")]
        taught = shown(t_interval(found["teacher"])) if not EXPERIMENTS[name][2] else f"{found['teacher'][0]:.1f}"
        lines.append(f"| {name} | {taught} | {' | '.join([*shares, *gains])} |")
    return "\n".join(lines)


def recorded(cells: list[dict[str, Any]]) -> str:
    """Agreement with the teacher and points in boxes of cars, in percent, by data set and role."""
    mine = [c["facts"]["recorded"] for c in cells if c["experiment"] == "kitti"]
    lines = ["| data | role | agreement | car recall | car precision |", "| --- | --- | --- | --- | --- |"]
    for parts in zip(*mine, strict=True):
        for role in parts[0]["roles"]:
            found = [part["roles"][role] for part in parts]
            values = [
                shown(t_interval([100 * one[key] for one in found])) if key in found[0] else "–"
                for key in ("agreement", "car_recall", "car_precision")
            ]
            lines.append(f"| {parts[0]['sources']} | {role} | {' | '.join(values)} |")
        majority = 100 * parts[0]["majority_agreement"]
        lines.append(f"| {parts[0]['sources']} | always the commonest class | {majority:.1f} | – | – |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"), help="holds kitti, kitti_raw and nuscenes_frame")
    parser.add_argument("--out", type=Path, default=Path("runs/points"))
    parser.add_argument("--only", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "points.json")
    args = parser.parse_args()
    args.out, args.data = args.out.resolve(), args.data.resolve()
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(lambda name: teacher(args, name), sorted({EXPERIMENTS[name][2] for name in args.only} - {""})))
        keys = [(name, seed) for name in args.only for seed in args.seeds]
        cells = list(pool.map(lambda key: cell(args, *key), keys))
    share_controls(cells)
    args.results.parent.mkdir(parents=True, exist_ok=True)
    args.results.write_text(json.dumps({"overrides": args.set, "cells": cells}, indent=1) + "\n")
    print(table(cells))
    if any(c["experiment"] == "kitti" for c in cells):
        print("\n" + recorded(cells))


if __name__ == "__main__":
    main()
