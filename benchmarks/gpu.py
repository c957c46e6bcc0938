"""What only a GPU can tell, in eight minutes: whether all works on one, how exact it is, what it holds and costs.

    sh benchmarks/gpu.sh                            on one H100 or H200
    sh benchmarks/gpu.sh --cpu                      the same in small, to see that it runs (83 s of a core)
    sh benchmarks/gpu.sh --cifar DIR                CIFAR-10 as recipes/diffusion/cifar10.yaml names it; else digits

Each part is a process with a time limit of its own; one that fails is told by its last line, and the others go on. All
is written to one JSON after every part, ``benchmarks/results/gpu.json`` (``gpu_cpu.json`` by the CPU). Status 1: a part
failed, or one of its checks did.

* ``precision``: a conformer by CTC and distillation in fp32, bf16, fp16 (whose scaler is watched): losses and seconds.
* ``attention``: the kernels for ragged rows, forward and backward, against a padded batch and against float64.
* ``losses``: memory of each loss of rows, forward and backward, by that of its input.
* ``compile``: ``train.compile``: the same losses, and seconds of a step.
* ``resume``: stopped and gone on with, the same weights to the bit; beside it, whether the same run twice has them.
* ``memory``: ``train.recompute`` and ``train.frozen: cpu``: the same losses, peak memory.
* ``diffusion``: the first minutes of ``diffusion/cifar10``: loss and images a second.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, perf_counter
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent
#: Seconds that a part may take, on a GPU and by the CPU.
LIMITS = {
    "precision": (90, 60), "attention": (60, 40), "losses": (60, 40), "compile": (90, 60), "resume": (60, 50),
    "memory": (60, 50), "diffusion": (120, 60),
}  # fmt: skip


class Setting:
    """Where a part runs, and how large."""

    def __init__(self, cpu: bool, cifar: Path | None) -> None:
        import torch

        self.cpu, self.cifar = cpu, cifar
        self.device = torch.device("cpu" if cpu else "cuda")
        torch.set_num_threads(1 if cpu else min(8, os.cpu_count() or 1))

    def trained(
        self, steps: int, *, model: str = "conformer", terms: tuple[str, ...] = ("ctc", "kd"), stop: int | None = None,
        folder: Path | None = None, resume: bool = False, **keys: Any,
    ) -> dict[str, Any]:  # fmt: skip
        """Losses of each step, seconds of a step, peak memory and the digest of the weights of a small training."""
        import torch

        from xmodal_kd.modalities.speech.adapter import SpeechAdapter
        from xmodal_kd.modalities.speech.data.corpora import SpeechData
        from xmodal_kd.objective.objective import Objective
        from xmodal_kd.recipe.recipe import Optimizer, Term, Train
        from xmodal_kd.runtime.checkpoint import digest
        from xmodal_kd.runtime.device import make_accelerator
        from xmodal_kd.runtime.interrupt import Interrupted
        from xmodal_kd.runtime.random_streams import Streams
        from xmodal_kd.training import engine as engines
        from xmodal_kd.training.method import Distil

        engines.LOG_EVERY = 1
        train = Train(
            steps=steps, batch_size=8 if self.cpu else 64, eval_every=10**6, checkpoint_every=3,
            optimizer=Optimizer(lr=1e-3), **keys,
        )  # fmt: skip
        data = SpeechData(
            sources=("fsdd",), path=ROOT / "assets/digits", train_speakers=("anna", "brian", "carla"),
            dev_speakers=("duncan",), test_speakers=("edith",), features={"sample_rate": 8000},
        )  # fmt: skip
        streams = Streams(1)
        adapter = SpeechAdapter(data, streams, train.batch_size)
        size = {"width": 32, "layers": 2, "heads": 2, "feed_forward": 64}
        size = size if self.cpu else {"width": 256, "layers": 8, "heads": 4, "feed_forward": 1024}
        roles = {}
        for role in ("student", "teacher"):
            with streams.forked("init", role):
                roles[role] = adapter.build(role, model, size if model == "conformer" else {"width": size["width"]})
        method = Distil(adapter, Objective(tuple(Term(loss=name) for name in terms), steps=steps), train, streams)
        with tempfile.TemporaryDirectory() as place:
            built = engines.Engine(
                method, adapter.data("train"), roles, train, streams=streams,
                accelerator=make_accelerator("cpu" if self.cpu else "cuda", train.precision),
                folder=folder or Path(place), quiet=True,
            )  # fmt: skip
            if stop is not None:
                milestones = built._milestones
                built._milestones = lambda *a: (_stop(built, stop), milestones(*a))[1]  # type: ignore[method-assign]
            times, held = [], built._step

            def step(*given: Any) -> None:
                start = perf_counter()
                held(*given)
                if not self.cpu:
                    torch.cuda.synchronize()
                times.append(perf_counter() - start)

            built._step = step  # type: ignore[method-assign]
            if not self.cpu:
                torch.cuda.reset_peak_memory_stats()
            try:
                built.fit(resume=resume)
            except Interrupted:
                return {}
            lines = [json.loads(line) for line in built.log.path.read_text().splitlines()]
        losses = [sum(line[name] for name in terms) for line in lines]
        return {
            "losses": losses, "finite": all(map(math.isfinite, losses)),
            "ms_a_step": 1e3 * sorted(times)[len(times) // 2],
            "peak_mib": None if self.cpu else torch.cuda.max_memory_allocated() / 2**20,
            "scale": None if built.accelerator.scaler is None else built.accelerator.scaler.get_scale(),
            "digest": digest(roles["student"].state_dict().items()),
        }  # fmt: skip


def _stop(built: Any, step: int) -> None:
    if built.at.total == step:
        os.kill(os.getpid(), signal.SIGINT)


def precision(here: Setting) -> dict[str, Any]:
    steps = 6 if here.cpu else 40
    found: dict[str, Any] = {}
    for name in ("fp32", "bf16", "fp16"):
        if name == "fp16" and here.cpu:
            found[name] = {"skipped": "fp16 needs a GPU"}
            continue
        found[name] = one = here.trained(steps, precision=name)
        one["off"] = max(abs(a - b) / abs(b) for a, b in zip(one["losses"], found["fp32"]["losses"], strict=True))
    checks = {f"{name} is finite": one["finite"] for name, one in found.items() if "skipped" not in one}
    checks |= {
        f"{name} learns": min(one["losses"][-2:]) < one["losses"][0] for name, one in found.items() if "losses" in one
    }
    return {"found": found, "checks": checks}


def attention(here: Setting) -> dict[str, Any]:
    import torch

    sys.path.insert(0, str(HERE))
    import attention as benchmark

    from xmodal_kd.models.attention import kernels

    dtypes = (torch.float32,) if here.cpu else (torch.float32, torch.float16, torch.bfloat16)
    shape = benchmark.shapes(here.cpu)["utterances"]
    found, checks = {}, {}
    for dtype in dtypes:
        name = str(dtype).removeprefix("torch.")
        found[name] = one = benchmark.measure(shape, here.device, dtype, 0.2)
        limit = {"float32": 1e-2, "float16": 2e-2, "bfloat16": 6e-2}[name]  # of TF32 at worst
        for way, told in one["ways"].items():
            checks[f"{way} in {name}"] = max(told["error"].values()) < limit
    return {"found": found, "kernels": [str(status) for status in kernels(here.device)], "checks": checks}


def losses(here: Setting) -> dict[str, Any]:
    import torch

    from xmodal_kd.losses import LOSSES
    from xmodal_kd.runtime.peak_memory import peak_bytes

    n, c = (128, 50) if here.cpu else (2048, 4096)
    random = torch.Generator().manual_seed(0)
    rows, theirs = (torch.randn(n, c, generator=random).to(here.device) for _ in range(2))
    labels = torch.randint(c, (n,), generator=random).to(here.device)
    given = {"student": rows, "teacher": theirs, "labels": labels}
    found: dict[str, Any] = {}
    for name in sorted(LOSSES):
        spec = LOSSES[name]
        if spec.is_module or spec.many or not set(given).issuperset(spec.inputs):
            continue
        student = rows.clone().requires_grad_()

        def both(spec: Any = spec, student: Any = student) -> None:
            out = spec.fn(*({**given, "student": student}[key] for key in spec.inputs))
            (out[0] if isinstance(out, tuple) else out).sum().backward()

        try:
            found[name] = {"bytes_by_input": peak_bytes(both, here.device) / (rows.nbytes)}
            found[name]["finite"] = bool(student.grad is not None and student.grad.isfinite().all())
        except Exception as error:  # of a loss that wants other rows or parameters than these
            found[name] = {"skipped": f"{type(error).__name__}: {' '.join(str(error).split())[:80]}"}
    checks = {name: one["finite"] for name, one in found.items() if "finite" in one}
    return {"rows": n, "classes": c, "found": found, "checks": checks | {"some were measured": len(checks) > 20}}


def compiled(here: Setting) -> dict[str, Any]:
    from xmodal_kd.training import compiled as training

    steps, model = (3, "conv") if here.cpu else (40, "conformer")
    if here.cpu:  # its own code a CPU compiles for minutes: here graphs alone
        training.DEFAULT = {"backend": "aot_eager"}
    found = {how: here.trained(steps, model=model, compile=how) for how in ("none", "default")}
    pairs = zip(found["default"]["losses"], found["none"]["losses"], strict=True)
    off = max(abs(a - b) / abs(b) for a, b in pairs)
    return {"found": found, "off": off, "checks": {"the same losses": off < 1e-3}}


def resumed(here: Setting) -> dict[str, Any]:
    import torch

    torch.use_deterministic_algorithms(True, warn_only=True)
    whole, twice = (here.trained(8, terms=("kd",)) for _ in range(2))
    with tempfile.TemporaryDirectory() as folder:
        here.trained(8, terms=("kd",), stop=3, folder=Path(folder))
        again = here.trained(8, terms=("kd",), folder=Path(folder), resume=True)
    checks = {"twice is the same": whole["digest"] == twice["digest"], "resumed is": whole["digest"] == again["digest"]}
    return {"found": {"whole": whole, "resumed": again}, "checks": checks}


def memory(here: Setting) -> dict[str, Any]:
    steps = 4 if here.cpu else 20
    ways: dict[str, dict[str, Any]] = {"plain": {}, "recompute": {"recompute": True}, "frozen cpu": {"frozen": "cpu"}}
    found = {name: here.trained(steps, **keys) for name, keys in ways.items()}
    off = {
        name: max(abs(a - b) / abs(b) for a, b in zip(one["losses"], found["plain"]["losses"], strict=True))
        for name, one in found.items()
    }
    return {
        "found": found,
        "off": off,
        "checks": {f"{name} has the same losses": one < 1e-3 for name, one in off.items()},
    }


def diffusion(here: Setting) -> dict[str, Any]:
    recipe, sets = "smoke/diffusion", ["teacher.train.steps=10", "train.steps=4", "method.params.end=4"]
    if not here.cpu:
        recipe, sets = "diffusion/digits", ["teacher.train.steps=500", "train.steps=100"]
    if here.cifar is not None:
        zips = {"path": "cifar10-32x32-train.zip", "test_path": "cifar10-32x32-test.zip"}
        sets = [f"data.{key}={here.cifar / name}" for key, name in zips.items()]
        recipe, sets = "diffusion/cifar10", [*sets, "teacher.train.steps=300", "train.steps=20", "data.samples=1000"]
    with tempfile.TemporaryDirectory() as place:
        out, start = Path(place) / "run", perf_counter()
        words = ["run", recipe, "--out", str(out), "--device", here.device.type, "--quiet"]
        words += [word for one in (*sets, "trackers=[]") for word in ("--set", one)]
        done = subprocess.run(
            [sys.executable, "-m", "xmodal_kd", *words], capture_output=True, text=True, check=False, cwd=ROOT
        )
        seconds = perf_counter() - start
        if done.returncode or not (out / "report.json").is_file():
            raise RuntimeError((done.stderr.strip().splitlines() or ["nothing was printed"])[-1])
        report = json.loads((out / "report.json").read_text())
    cost = {role: one for role, one in report["cost"].items() if isinstance(one, dict) and one.get("seconds")}
    rates = {role: one["samples"] / one["seconds"] for role, one in cost.items() if one.get("samples")}
    metrics = {role: one["metrics"] for role, one in report["roles"].items()}
    return {
        "recipe": recipe, "sets": sets, "seconds": seconds, "images_a_second": rates, "metrics": metrics,
        "checks": {"a student was scored": "student" in metrics},
    }  # fmt: skip


PARTS: dict[str, Callable[[Setting], dict[str, Any]]] = {
    "precision": precision, "attention": attention, "losses": losses, "compile": compiled, "resume": resumed,
    "memory": memory, "diffusion": diffusion,
}  # fmt: skip


@contextmanager
def _quietly() -> Iterator[None]:
    """What libraries print goes to stderr: the last line of stdout is the result."""
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def run_part(name: str, cpu: bool, cifar: Path | None, limit: float) -> dict[str, Any]:
    words = [sys.executable, __file__, "--part", name, *(["--cpu"] if cpu else [])]
    words += ["--cifar", str(cifar)] if cifar is not None else []
    env = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "OMP_NUM_THREADS": "1", **os.environ}
    start, before = monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=limit, check=False, env=env)
    except subprocess.TimeoutExpired:
        return {"failed": f"it took longer than {limit:.0f} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        last = (done.stderr.strip().splitlines() or ["nothing was printed"])[-1]
        return {"failed": last[:300], "wall_seconds": monotonic() - start}
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {**json.loads(lines[-1]), "wall_seconds": monotonic() - start, "cpu_seconds": cpu}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--cifar", type=Path)
    parser.add_argument("--only", nargs="*", choices=PARTS)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--patience", type=float, default=1.0, help="times the limit of a part: for a busy machine")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part is not None:
        with _quietly():
            found = PARTS[args.part](Setting(args.cpu, args.cifar))
        print(json.dumps(found))
        return 0
    import torch

    if not args.cpu and not torch.cuda.is_available():
        print("no CUDA device: --cpu runs the same in small", file=sys.stderr)
        return 2
    out = args.out or HERE / "results" / ("gpu_cpu.json" if args.cpu else "gpu.json")
    start = monotonic()
    result: dict[str, Any] = {
        "device": platform.machine() if args.cpu else torch.cuda.get_device_name(), "torch": torch.__version__,
        "cuda": torch.version.cuda, "parts": {},
    }  # fmt: skip
    bad = 0
    for name in args.only or PARTS:
        left = 60 * args.minutes - (monotonic() - start)
        limit = min(args.patience * LIMITS[name][args.cpu], left)
        one = {"failed": "no time was left"} if limit < 5 else run_part(name, args.cpu, args.cifar, limit)
        wrong = [check for check, good in one.get("checks", {}).items() if not good]
        bad += bool(wrong or "failed" in one)
        result["parts"][name] = one
        result["seconds"] = monotonic() - start
        out.write_text(json.dumps(result, indent=1) + "\n")
        told = one.get("failed") or (f"wrong: {', '.join(wrong)}" if wrong else "good")
        print(
            f"{name:10} {one.get('wall_seconds', limit):5.0f} s, {one.get('cpu_seconds', 0):5.1f} of a core  {told}",
            flush=True,
        )
    print(f"written to {out}, after {result['seconds']:.0f} s")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
