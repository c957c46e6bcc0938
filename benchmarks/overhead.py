"""What the engine costs a step beside a hand-written loop of the same arithmetic.

    python benchmarks/overhead.py [--rounds 90]

Arms: by hand, by hand again (A/A), engine. Equal initial weights and batch; equal losses are asserted before timing.
The arms take turns, one thread, step only. A claim smaller than the A/A gap is no claim.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xmodal_kd.engine import Engine
from xmodal_kd.method import Distil
from xmodal_kd.objective import Objective
from xmodal_kd.progress import bar
from xmodal_kd.recipe import Optimizer, Term, Train
from xmodal_kd.setup import make_accelerator, versions
from xmodal_kd.signals import Layout, Signals
from xmodal_kd.streams import Streams

TEMPERATURE = 4.0
SIZES = {"mlp 64, batch 8": (64, 2, 8), "mlp 1024, batch 256": (1024, 4, 256)}


class Rows:
    """An adapter of rows and nothing else."""

    def signals(self, role: str, model: nn.Module, batch: Mapping[str, Tensor], features: Any = ()) -> Signals:
        return Signals(batch["ids"]).add("logits", model(batch["x"]), Layout.samples(len(batch["x"])))


def network(width: int, depth: int) -> nn.Module:
    layers = [layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def arms(width: int, depth: int, size: int, folder: Path) -> dict[str, Callable[[], float]]:
    torch.manual_seed(0)
    teacher, student = network(width, depth).eval().requires_grad_(False), network(width, depth)
    batch = {"x": torch.randn(size, width), "ids": torch.arange(size)}

    def hand() -> Callable[[], float]:
        model = copy.deepcopy(student)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)

        def step() -> float:
            with torch.no_grad():
                target = teacher(batch["x"])
            log_p, log_q = (F.log_softmax(z / TEMPERATURE, dim=-1) for z in (target, model(batch["x"])))
            loss = TEMPERATURE**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            return float(loss)

        return step

    def ours() -> Callable[[], float]:
        train = Train(steps=10**9, optimizer=Optimizer(lr=1e-3), schedule={"kind": "constant"})  # type: ignore[arg-type]
        objective = Objective([Term(loss="kd", params={"temperature": TEMPERATURE})])
        method = Distil(Rows(), objective, train, Streams(0))  # type: ignore[arg-type]
        engine = Engine(
            method, None, {"student": copy.deepcopy(student), "teacher": teacher}, train, streams=Streams(0),  # type: ignore[arg-type]
            accelerator=make_accelerator("cpu", "fp32"), folder=folder, quiet=True,
        )  # fmt: skip
        stages = method.stages()
        engine.log.rewind(0)
        engine._begin(stages, 0, batch)
        with bar("", 1, quiet=True) as shown:
            silent = shown

        def step() -> float:
            engine._step(stages[0], [batch], silent)
            return 0.0

        return step

    return {"by hand": hand(), "by hand again": hand(), "engine": ours()}


def measure(size: tuple[int, int, int], rounds: int, steps: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        running = arms(*size, Path(folder))
        for step in running.values():
            for _ in range(20):
                step()
        seconds: dict[str, list[float]] = {name: [] for name in running}
        names = list(running)
        for i in range(rounds):
            for name in names[i % len(names) :] + names[: i % len(names)]:
                start = perf_counter()
                for _ in range(steps):
                    running[name]()
                seconds[name].append((perf_counter() - start) / steps)
    found: dict[str, Any] = {
        name: {"p10_us": 1e6 * float(np.percentile(s, 10)), "median_us": 1e6 * float(np.median(s))}
        for name, s in seconds.items()
    }
    base = np.array(seconds["by hand"])
    for name in names[1:]:
        found[name]["difference_us"] = 1e6 * float(np.median(np.array(seconds[name]) - base))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=90)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "overhead.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = {name: measure(size, args.rounds, 20 if size[0] < 512 else 4) for name, size in SIZES.items()}
    args.results.parent.mkdir(parents=True, exist_ok=True)
    args.results.write_text(
        json.dumps({"rounds": args.rounds, "versions": versions(), "cells": found}, indent=1) + "\n"
    )
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
