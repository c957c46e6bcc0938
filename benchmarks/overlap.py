"""What it is worth that gradients travel while the backward pass goes on: two processes on this machine, by gloo.

    python benchmarks/overlap.py [--rounds 30] [--shared]

A network of equal linear layers takes steps of a forward pass, a backward pass and the sum over both processes, without
an optimizer. Arms take turns, step by step, in one order on both: "behind" sends all buckets after the backward pass,
"behind again" is the same (A/A), "during" as `xmodal_kd.runtime.gradient_sum` does. Sums of all arms are asserted to be
equal to the bit. Told are the median and the tenth percentile of a step, and the ratio to "behind" by round with
its 95 % bootstrap interval. Over loopback both the backward pass and the sum take the processor: on machines where a
network card moves the bytes there is more to gain.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from contextlib import nullcontext
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from rounds import interval
from torch import Tensor, nn

from xmodal_kd.runtime.device import versions
from xmodal_kd.runtime.gradient_sum import GradientSum

#: Width, layers, rows of a process.
SIZES = {"2 M parameters, 256 rows": (512, 8, 256), "8 M parameters, 32 rows": (1024, 8, 32)}
ARMS = ("behind", "behind again", "during")


def step(model: nn.Module, x: Tensor, arm: str) -> list[Tensor]:
    for parameter in model.parameters():
        parameter.grad = None
    summing = GradientSum(list(model.parameters()))
    loss = model(x).square().mean()
    with summing.during() if arm == "during" else nullcontext():
        loss.backward()
    summing.finish()
    return [p.grad for p in model.parameters() if p.grad is not None]


def rank(number: int, rounds: int, meeting: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=number, world_size=2)
    found: dict[str, Any] = {}
    for name, (width, depth, rows) in SIZES.items():
        torch.manual_seed(0)
        model = nn.Sequential(*(layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.ReLU())))
        torch.manual_seed(1 + number)
        x = torch.randn(rows, width)
        first = step(model, x, "behind")
        assert all(torch.equal(a, b) for a, b in zip(first, step(model, x, "during"), strict=True))
        seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
        for i in range(rounds):
            for arm in np.random.default_rng(i).permutation(ARMS):
                dist.barrier()
                start = perf_counter()
                step(model, x, str(arm))
                seconds[arm].append(perf_counter() - start)
        base = np.array(seconds["behind"])
        found[name] = {
            arm: {
                "median_ms": 1e3 * float(np.median(values)), "p10_ms": 1e3 * float(np.percentile(values, 10)),
                **({} if arm == "behind" else {"of_behind": interval(np.array(values) / base)}),
            }
            for arm, values in seconds.items()
        }  # fmt: skip
    if number == 0:
        Path(out).write_text(json.dumps(found))
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--shared", action="store_true", help="say in the results that others used the machine")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "overlap.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        mp.spawn(rank, (args.rounds, str(Path(folder) / "meeting"), str(out)), nprocs=2)  # type: ignore[no-untyped-call]
        cells = json.loads(out.read_text())
    found = {
        "rounds": args.rounds, "machine_shared": args.shared, "load": os.getloadavg()[0], "versions": versions(),
        "cells": cells,
    }  # fmt: skip
    args.results.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found["cells"], indent=1))


if __name__ == "__main__":
    main()
