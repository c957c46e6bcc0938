"""What the engine costs a step beside a hand-written loop of the same arithmetic, and what torchdistill does.

    python benchmarks/step_overhead.py [--rounds 90] [--torchdistill td/bin/python]

Arms: by hand; by hand again (A/A); by hand with a fused optimizer, which the engine has on a CPU; the engine with its
live teacher; the engine with the teacher's logits from a cache (dense fp16, read before); the student alone, by hand,
beside which the cached step stands. SGD with Nesterov momentum,
one thread, 0.1 CE + 0.9 t^2 KL: what torchdistill's KDLoss computes. Losses are equal in the first five steps, of the
cached arm within fp16; that is asserted before any timing. Then the arms take turns in a drawn order. Time is the
processor's, of the one thread that does all, which others on the machine disturb less than the clock's.
Differences are paired by round: median and its 95 % bootstrap interval. A claim smaller than the A/A gap is no claim.

torchdistill 1.1.5 wants another torch and lives in an environment of its own, named by its python: there the same hand
loop, its twin and torchdistill take turns with each other, and each round with the ones here. Its differences are from
the hand loop of its own environment. Without the option it is left out.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from time import thread_time
from typing import Any

import numpy as np
import torch
from rounds import interval
from torch import nn
from torch.nn import functional as F

TEMPERATURE, ALPHA, RATE, MOMENTUM, CLASSES = 4.0, 0.1, 0.01, 0.9, 10
#: Width, layers, batch, and steps of a turn.
SIZES = {"micro: mlp 64, batch 8": (64, 2, 8, 20), "about 10 ms: mlp 512, batch 64": (512, 6, 64, 2)}
CHECKED = 5
#: Where torchdistill finds what a model answers.
OUTPUT = {"path": ".", "io": "output"}
Step = Callable[[], float]


def network(width: int, depth: int) -> nn.Sequential:
    layers = [layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(width, CLASSES))


class Case:
    """Equal weights and one batch for every arm, in whatever environment."""

    def __init__(self, width: int, depth: int, size: int) -> None:
        torch.manual_seed(0)
        self.teacher = network(width, depth).eval().requires_grad_(False)
        self.student = network(width, depth)
        self.x, self.y = torch.randn(size, width), torch.randint(CLASSES, (size,))

    def hand(self, taught: bool = True, fused: bool = False) -> Step:
        model = copy.deepcopy(self.student)
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM, nesterov=True, fused=fused)

        def step() -> float:
            logits = model(self.x)
            loss = F.cross_entropy(logits, self.y)
            if taught:
                with torch.no_grad():
                    target = self.teacher(self.x)
                log_p, log_q = F.log_softmax(target / TEMPERATURE, dim=1), F.log_softmax(logits / TEMPERATURE, dim=1)
                kl = F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
                loss = ALPHA * loss + (1 - ALPHA) * TEMPERATURE**2 * kl
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            return loss.item()

        return step

    def torchdistill(self) -> Step:
        from torch.utils.data import RandomSampler, TensorDataset
        from torchdistill.core.distillation import get_distillation_box

        side = {"forward_proc": "forward_batch_only", "forward_hook": {"input": [], "output": []}}
        places = {f"{role}_module_{key}": at for role in ("student", "teacher") for key, at in OUTPUT.items()}
        kd = {**places, "temperature": TEMPERATURE, "alpha": ALPHA, "reduction": "batchmean"}
        sampler = {"class_or_func": RandomSampler, "kwargs": None}
        config = {
            "num_epochs": 1, "val_data_loader": {}, "scheduler": None,
            "train_data_loader": {"dataset_id": "d", "sampler": sampler, "kwargs": {"batch_size": len(self.x)}},
            "teacher": {**side, "requires_grad": False}, "student": side,
            "optimizer": {"key": "SGD", "kwargs": {"lr": RATE, "momentum": MOMENTUM, "nesterov": True}},
            "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {
                "kd": {"criterion": {"key": "KDLoss", "kwargs": kd}, "weight": 1.0}}}},
        }  # fmt: skip
        teacher, student = copy.deepcopy(self.teacher), copy.deepcopy(self.student)
        data = {"d": TensorDataset(self.x, self.y)}
        box = get_distillation_box(teacher, student, data, config, torch.device("cpu"), None, False, 1)
        teacher.eval()
        box.pre_epoch_process(epoch=0)

        def step() -> float:
            loss = box.forward_process(self.x, self.y, None)
            box.post_forward_process(loss=loss)
            return loss.item()

        return step

    def engine(self, folder: Path, *, cached: bool = False) -> Step:
        from xmodal_kd.adapter.adapter import Batch
        from xmodal_kd.objective.objective import Objective
        from xmodal_kd.recipe.recipe import Optimizer, Term, Train
        from xmodal_kd.runtime.device import make_accelerator
        from xmodal_kd.runtime.progress import bar
        from xmodal_kd.runtime.random_streams import Streams
        from xmodal_kd.signals.signals import Layout, Signals
        from xmodal_kd.training.engine import Engine
        from xmodal_kd.training.method import Distil

        class Rows:
            """An adapter of rows and nothing else."""

            def signals(self, role: str, model: nn.Module, batch: Batch, features: Any = ()) -> Signals:
                layout = Layout.samples(len(batch["x"]))
                return Signals(batch["ids"]).add("logits", model(batch["x"]), layout).add("labels", batch["y"], layout)

        batch: dict[str, Any] = {"x": self.x, "y": self.y, "ids": torch.arange(len(self.x))}
        optimizer = Optimizer(name="sgd", lr=RATE, betas=(MOMENTUM, 0.999))
        train = Train(steps=10**9, optimizer=optimizer, schedule={"kind": "constant"}, clip=None)  # type: ignore[arg-type]
        kd = Term(loss="kd", weight=1 - ALPHA, params={"temperature": TEMPERATURE})
        objective = Objective([Term(loss="ce", weight=ALPHA), kd])
        method = Distil(Rows(), objective, train, Streams(0))  # type: ignore[arg-type]
        roles = {"student": copy.deepcopy(self.student), "teacher": copy.deepcopy(self.teacher)}
        if cached:
            method.restore, batch = self._cached(batch, Rows().signals("teacher", roles["teacher"], batch)["logits"])
        engine = Engine(
            method, None, roles, train, streams=Streams(0), accelerator=make_accelerator("cpu", "fp32"),  # type: ignore[arg-type]
            folder=folder, quiet=True,
        )  # fmt: skip
        stages, seen = method.stages(), list[float]()
        engine.log.rewind(0)
        engine._begin(stages, 0, batch)
        with bar("", 1, quiet=True) as shown:
            silent = shown
        log = engine._log

        def told(values: Any, *rest: Any) -> None:
            seen.append(ALPHA * float(values["ce"]) + (1 - ALPHA) * float(values["kd"]))
            log(values, *rest)

        engine._log = told  # type: ignore[method-assign]

        def step() -> float:
            engine._step(stages[0], [batch], silent)
            return seen.pop()

        return step

    def _cached(self, batch: Mapping[str, Any], said: Any) -> tuple[Any, dict[str, Any]]:
        from xmodal_kd.adapter.adapter import CACHED
        from xmodal_kd.teacher_cache.codecs import Half
        from xmodal_kd.teacher_cache.entries import StoredSignal, packed, restored, written

        kept = {"logits": StoredSignal("logits", 0, "sample", False, Half(CLASSES))}
        entries = written(kept["logits"], said, [""] * len(self.x))
        return partial(restored, kept), {**batch, CACHED: {"logits": packed(kept["logits"], list(entries))}}


# ---------------------------------------------------------------- arms of another environment


def serve() -> None:
    """The worker: a line ``case arm steps`` comes in, ``[seconds, last loss]`` goes out."""
    torch.set_num_threads(1)
    arms: dict[tuple[str, str], Step] = {}
    for name, (*shape, _) in SIZES.items():
        case = Case(*shape)
        arms |= {(name, "by hand"): case.hand(), (name, "by hand again"): case.hand()}
        arms[name, "torchdistill"] = case.torchdistill()
    import torchdistill

    print(json.dumps({"torch": torch.__version__, "torchdistill": torchdistill.__version__}), flush=True)
    for line in sys.stdin:
        name, arm, steps = json.loads(line)
        print(json.dumps(timed(arms[name, arm], steps)), flush=True)


class Elsewhere:
    """The worker's arms, as if they were here."""

    ARMS = ("by hand", "by hand again", "torchdistill")

    def __init__(self, python: str) -> None:
        self.process = subprocess.Popen(
            [python, __file__, "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        )  # fmt: skip
        self.versions = self._read()

    def _read(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("the environment of torchdistill does not run: see above, or leave --torchdistill out")
        return json.loads(line)

    def ask(self, case: str, arm: str, steps: int) -> tuple[float, float]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([case, arm, steps]) + "\n")
        self.process.stdin.flush()
        seconds, loss = self._read()
        return seconds, loss


def timed(step: Step, steps: int) -> tuple[float, float]:
    """Seconds of the processor a step, and the last loss."""
    loss, start = 0.0, thread_time()
    for _ in range(steps):
        loss = step()
    return (thread_time() - start) / steps, loss


# ---------------------------------------------------------------- measure


def measure(name: str, rounds: int, elsewhere: Elsewhere | None, folder: Path) -> dict[str, Any]:
    *shape, steps = SIZES[name]
    case = Case(*shape)
    here: dict[str, Step] = {
        "by hand": case.hand(), "by hand again": case.hand(), "by hand, fused": case.hand(fused=True),
        "engine, live": case.engine(folder / "live"),
        "engine, cached": case.engine(folder / "cached", cached=True), "student alone": case.hand(taught=False),
    }  # fmt: skip
    arms: dict[str, Callable[[int], tuple[float, float]]] = {
        arm: lambda n, step=step: timed(step, n) for arm, step in here.items()
    }  # type: ignore[misc]
    if elsewhere is not None:
        away = elsewhere
        arms |= {f"{arm} (its environment)": lambda n, arm=arm: away.ask(name, arm, n) for arm in Elsewhere.ARMS}  # type: ignore[misc]
    equal = equal_losses(arms)
    for arm in arms.values():
        arm(20)
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    order = list(arms)
    for i in range(rounds):
        for arm in np.random.default_rng(i).permutation(order):  # who comes after whom is no constant either
            seconds[arm].append(arms[arm](steps)[0])
    return {"losses": equal, **told(seconds)}


def equal_losses(arms: Mapping[str, Callable[[int], tuple[float, float]]]) -> dict[str, float]:
    """The largest relative difference of each arm's first losses from the hand loop's; asserted."""
    losses = {arm: [step(1)[1] for _ in range(CHECKED)] for arm, step in arms.items()}
    base = np.array(losses["by hand"])
    found = {}
    for arm, values in losses.items():
        if arm in ("by hand", "student alone"):
            continue
        found[arm] = float(np.abs(np.array(values) / base - 1).max())
        assert found[arm] < (1e-3 if "cached" in arm else 1e-5), f"{arm}: {values} for {losses['by hand']}"
    return found


def told(seconds: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Of each arm p10 and median, and its paired difference from the loop that it stands beside."""
    found: dict[str, Any] = {}
    for arm, values in seconds.items():
        mine = 1e6 * np.array(values)
        found[arm] = {"p10_us": float(np.percentile(mine, 10)), "median_us": float(np.median(mine))}
        away = arm.endswith("(its environment)")
        base = "student alone" if "cached" in arm else "by hand (its environment)" if away else "by hand"
        if arm in (base, "student alone"):
            continue
        theirs = 1e6 * np.array(seconds[base])
        found[arm] |= {"from": base, "difference_us": interval(mine - theirs),
                       "difference_percent": [100 * v / float(np.median(theirs)) for v in interval(mine - theirs)],
                       "p10_ratio": float(np.percentile(mine, 10) / np.percentile(theirs, 10))}  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=90)
    parser.add_argument("--torchdistill", metavar="PYTHON", help="python of an environment with torchdistill 1.1.5")
    parser.add_argument("--shared", action="store_true", help="say in the results that others used the machine")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "step_overhead.json")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve()
        return
    from xmodal_kd.runtime.device import versions

    torch.set_num_threads(1)
    elsewhere = Elsewhere(args.torchdistill) if args.torchdistill else None
    found: dict[str, Any] = {
        "rounds": args.rounds, "machine_shared": args.shared, "load": os.getloadavg()[0], "versions": versions(),
        "torchdistill": elsewhere.versions if elsewhere else "left out",
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        found["cells"] = {
            name: measure(name, args.rounds, elsewhere, Path(folder) / str(i)) for i, name in enumerate(SIZES)
        }
    if elsewhere is not None:
        elsewhere.process.terminate()
    args.results.parent.mkdir(parents=True, exist_ok=True)
    args.results.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
