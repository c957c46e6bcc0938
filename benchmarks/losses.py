"""Time and peak memory of every loss, forward and backward, against plain KL on the same logits and the bytes to move.

    python benchmarks/losses.py                     small shapes on the CPU, full ones where there is a GPU
    python benchmarks/losses.py --only kd dkd --shapes speech --scale 1

Three shapes, of which a loss sees the logits or the features, per what it needs: speech (utterances x frames, a grid of
one axis), points (clouds of half to all of the points each, without a grid), image (images x pixels, a grid of two).
Losses that need maps refuse points. Losses that compare samples see one row an item, those over regions 64 an item.
``--scale`` divides the number of items. Written to ``benchmarks/results/losses.json``: for each loss and shape the
seconds of the fastest of some repetitions, the ratio to plain KL, the peak bytes beside the inputs, both over the bytes
of reading both sides and writing the student's gradient once.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable
from functools import cache
from math import prod
from pathlib import Path
from tempfile import mkdtemp
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from xmodal_kd.losses import LOSSES, LossSpec
from xmodal_kd.losses.subclasses import save_statistics, subclass_statistics
from xmodal_kd.runtime.peak_memory import peak_bytes
from xmodal_kd.runtime.progress import bar

HERE = Path(__file__).parent


class Shape(NamedTuple):
    """Items, the grid of an item's rows (ragged: the most of them), classes, channels of student and teacher."""

    items: int
    grid: tuple[int, ...]
    classes: int
    channels: tuple[int, int]
    ragged: bool = False


FULL = {
    "speech": Shape(64, (1000,), 5000, (256, 512)),
    "points": Shape(8, (32768,), 20, (64, 256), ragged=True),
    "image": Shape(16, (128, 128), 19, (64, 256)),
}
#: What the CPU measures by default: the same kinds, small enough for all losses in a few minutes.
SMALL = {
    "speech": Shape(8, (100,), 1000, (64, 96)),
    "points": Shape(4, (512,), 20, (32, 64), ragged=True),
    "image": Shape(8, (16, 16), 19, (32, 64)),
}
#: Hyper-parameters that fit the shapes (heads divide channels; layers as many as are given).
PARAMS: dict[str, dict[str, Any]] = {
    "minilm": {"heads": 4},
    "minilmv2": {"heads": 8},
    "tinybert": {"heads": 4},
    "rkd": {"angle": 0.0},
}
#: Subclasses a class and segments a row in the wide students of `lelp` and `norm`; `lelp` is for heads of few classes.
SUBCLASSES, SEGMENTS, FEW = 5, 8, 8
#: Losses that compare one row an item.
BY_SAMPLE = {"crd", "crd_exact", "irg", "jacobian"}
#: Losses over pairs of rows see at most so many: regions or samples, not frames.
PAIRS = 1024


def widths_of(spec: LossSpec, shape: Shape) -> tuple[list[int], list[int]]:
    """Widths of the student's and of the teacher's signals."""
    if spec.name == "lelp":
        return [FEW * SUBCLASSES], [FEW, shape.channels[1]]
    if spec.name == "dskd":
        return [shape.classes, shape.channels[0]], [shape.classes, shape.channels[1]]
    if spec.name == "norm":
        return [SEGMENTS * shape.channels[1]], [shape.channels[1]]
    logits = bool({"logits", "regression"} & spec.needs) and "features" not in spec.needs
    wide_s, wide_t = (shape.classes, shape.classes) if logits else shape.channels
    if not logits and "widths_differ" not in spec.properties:
        wide_s = wide_t
    number = {"minilm": 3, "minilmv2": 3, "irg": 3, "mobilebert": 6, "tinybert": 7, "skd_adv": 1}.get(spec.name, 2)
    number = number if spec.many else 1
    return [wide_s] * number, [wide_t] * number


def lengths_of(spec: LossSpec, shape: Shape) -> list[int]:
    """Rows of each item."""
    paired = spec.reduction == "batch" and spec.family in ("relations", "contrastive") and not spec.many
    if spec.name in BY_SAMPLE:
        return [1] * shape.items
    most = prod(shape.grid)
    if paired and spec.name not in {"cka", "rcka", "dist"}:
        return [min(shape.items * most, PAIRS)]
    return [most - (i % 4) * most // 8 if shape.ragged else most for i in range(shape.items)]


def inputs_of(spec: LossSpec, shape: Shape, device: torch.device) -> dict[str, Any]:
    """Random rows in the form that the loss takes; raises what it raises where it does not serve the shape."""
    random = torch.Generator(device).manual_seed(0)
    lengths = lengths_of(spec, shape)
    whole = all(length == prod(shape.grid) for length in lengths)
    grid = None if shape.ragged else shape.grid if whole else (lengths[0],)
    if grid is None and not spec.ragged:
        raise ValueError("works on maps, and points form no grid")
    n, items = sum(lengths), len(lengths)
    item = torch.arange(items, device=device).repeat_interleave(torch.tensor(lengths, device=device))
    widths = widths_of(spec, shape)
    sides = [[torch.randn(n, width, device=device, generator=random) for width in side] for side in widths]
    lists: dict[str, list[Any]] = {
        "student": sides[0],
        "teacher": sides[1],
        "item": [item] * len(sides[0]),
        "cell": [torch.arange(n, device=device)] * len(sides[0]),
        "grid": [grid] * len(sides[0]),
    }
    given = lists if spec.many else {key: value[0] for key, value in lists.items()}
    labels = torch.randint(min(widths[0][0], shape.classes), (n,), device=device, generator=random)
    return given | {
        "items": items,
        "labels": torch.randn(n, widths[0][0], device=device, generator=random) if regresses(spec) else labels,
        "label_item": item,
        "regions": torch.randint(64, (n,), device=device, generator=random),
        "ids": torch.arange(items, device=device),
        "head": nn.Linear(widths[1][-1], shape.classes, device=device).requires_grad_(False),
        "own_head": nn.Linear(widths[0][-1], shape.classes, device=device).requires_grad_(False),
        "progress": 0.5,
    }


def regresses(spec: LossSpec) -> bool:
    """Its labels are one number an output."""
    return "regression" in spec.needs


@cache
def lelp_statistics(width: int) -> Path:
    """What `lelp` knows of 40 embeddings a class."""
    random = torch.Generator().manual_seed(0)
    embeddings, classifier = (torch.randn(n, width, generator=random) for n in (40 * FEW, FEW))
    path = Path(mkdtemp()) / "lelp.safetensors"
    save_statistics(subclass_statistics(embeddings, torch.arange(40 * FEW) % FEW, classifier, SUBCLASSES), path)
    return path


def step_of(spec: LossSpec, given: dict[str, Any], device: torch.device) -> Callable[[], None]:
    """One forward and backward pass of the loss."""
    params = PARAMS.get(spec.name, {})
    if spec.name == "lelp":
        params = {"statistics": lelp_statistics(given["teacher"][1].shape[1])}
    students = given["student"] if isinstance(given["student"], list) else [given["student"]]
    for rows in students:
        rows.requires_grad_()
    fn: Callable[..., Any] = spec.fn
    if spec.is_module:
        torch.manual_seed(0)
        widths = [
            [x.shape[1] for x in side] if isinstance(side, list) else side.shape[1]
            for side in (given["student"], given["teacher"])
        ]
        axes = [len(g or ()) for g in given["grid"]] if spec.many else len(given["grid"] or ())
        fn = spec.make(*widths, axes, **params).to(device)
        params = {}
    arguments = [given[name] for name in spec.inputs]

    def step() -> None:
        for rows in students:
            rows.grad = None
        out = fn(*arguments, **params)
        (out[0] if isinstance(out, tuple) else out).sum().backward()

    return step


def plain_kl(shape: Shape, given: dict[str, Any], device: torch.device) -> Callable[[], None]:
    """The plainest distillation of the same tensors: what anybody would write."""
    student = (given["student"][0] if isinstance(given["student"], list) else given["student"]).detach()
    teacher = (given["teacher"][0] if isinstance(given["teacher"], list) else given["teacher"]).detach()
    student = student.clone().requires_grad_()
    if teacher.shape != student.shape:
        teacher = torch.randn(student.shape, device=device)

    def step() -> None:
        student.grad = None
        F.kl_div(F.log_softmax(student, -1), F.log_softmax(teacher, -1), log_target=True, reduction="sum").backward()

    return step


def seconds(step: Callable[[], None], device: torch.device, least: float) -> float:
    """Of the fastest call, after one to warm up, over at least three calls and `least` seconds."""

    def once() -> float:
        start = perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return perf_counter() - start

    once()
    times = [once() for _ in range(3)]
    while sum(times) < least:
        times.append(once())
    return min(times)


def measure(name: str, shape: Shape, device: torch.device, least: float) -> dict[str, Any]:
    spec = LOSSES[name]
    try:
        given = inputs_of(spec, shape, device)
        step = step_of(spec, given, device)
        step()
    except (ValueError, TypeError, RuntimeError) as refused:
        return {"refused": str(refused).partition("\n")[0][:200]}
    students = given["student"] if isinstance(given["student"], list) else [given["student"]]
    teachers = given["teacher"] if isinstance(given["teacher"], list) else [given["teacher"]]
    sides = [2 * x.nbytes for x in students] + ([x.nbytes for x in teachers] if spec.needs_teacher else [])
    moved = sum(sides)  # student in, its gradient out, teacher in
    took, plain = seconds(step, device, least), seconds(plain_kl(shape, given, device), device, least)
    for rows in students:
        rows.grad = None
    peak = peak_bytes(step, device)
    return {
        "rows": len(students[0]), "widths": [students[0].shape[1], teachers[0].shape[1]],
        "seconds": took, "over_kl": took / plain, "peak_bytes": peak, "bytes_to_move": moved,
        "peak_over_inputs": peak / moved, "bytes_a_second": moved / took,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="losses by name; all of the core otherwise")
    parser.add_argument("--shapes", nargs="*", choices=list(FULL), default=list(FULL))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--scale", type=int, help="full shapes with their items divided by this; CPU: small shapes")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--least", type=float, default=0.1, help="seconds to measure each for")
    parser.add_argument("--shared", action="store_true", help="say that others used the machine meanwhile")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "losses.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    small = args.scale is None and device.type == "cpu"
    shapes = SMALL if small else FULL
    names = args.only or [n for n in LOSSES if LOSSES[n].fn.__module__.startswith("xmodal_kd.losses.")]
    found: dict[str, dict[str, Any]] = {}
    with bar("losses", len(names) * len(args.shapes)) as shown:
        done = 0
        for kind in args.shapes:
            shape = shapes[kind]._replace(items=max(2, shapes[kind].items // (args.scale or 1)))
            for name in names:
                found.setdefault(name, {})[kind] = measure(name, shape, device, args.least)
                done += 1
                shown.update(done, {})
    result = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU",
        "threads": args.threads, "torch": torch.__version__, "shared": args.shared or os.getloadavg()[0] > 1.5,
        "shapes": {kind: shapes[kind]._asdict() for kind in args.shapes}, "losses": found,
    }  # fmt: skip
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{len(found)} losses, written to {args.out}")


if __name__ == "__main__":
    main()
