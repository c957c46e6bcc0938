"""Attention over ragged rows against a padded batch with a mask: forward and backward, correctness and time.

    python benchmarks/attention.py                 small shapes on the CPU, full ones where there is a GPU
    python benchmarks/attention.py --only windows

Three kinds of items: the windows of a point transformer (all of 64 but each scan's last), whole scans of very different
sizes, utterances of one to twelve seconds. For each and each precision, the ways there are:

* ``ragged``: what `attention` does with lengths, and by which operator;
* ``ragged by xformers``, ``ragged by varlen``: each kernel that works here, for `xmodal_kd.attention.ORDER`;
* ``grouped``, ``padding``: torch's own over items of equal length, and over items padded on the way;
* ``padded``: a batch that was padded before, with a mask: what a model that keeps its rows padded pays.

Errors are the largest difference of the result and of each gradient from the formula in float64, item by item, over the
largest value. Seconds are of the fastest of some repetitions, forward and backward; on a CPU the process's own time, so
that others on the machine count less. Written to ``benchmarks/results/attention.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, NamedTuple

import torch
from torch import Tensor

from xmodal_kd import attention as ours
from xmodal_kd.peak import peak_bytes

HERE = Path(__file__).parent
Rows = tuple[Tensor, Tensor, Tensor]


class Shape(NamedTuple):
    """Rows of each item, heads, width of a head."""

    lengths: list[int]
    heads: int
    width: int


def between(items: int, low: int, high: int) -> list[int]:
    """Lengths spread evenly on a logarithmic scale, the same at every run."""
    steps = torch.linspace(0, 1, items).tolist()
    return [round(low * (high / low) ** step) for step in steps]


def shapes(small: bool) -> dict[str, Shape]:
    scale = 1 if small else 8
    last = [17, 40, 3, 61]
    windows = [size for left in last * (1 if small else 2) for size in [*[64] * (16 * scale), left]]
    return {
        "windows": Shape(windows, 4, 16),
        "scans": Shape(between(4 * scale, 50, 500 * scale), 4, 16),
        "utterances": Shape(between(24 if small else 64, 25, 300), 4, 24),
    }


def by_formula(q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
    parts = zip(q.split(lengths), k.split(lengths), v.split(lengths), strict=True)
    return torch.cat([_item(*part) for part in parts])


def _item(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = (torch.einsum("nhd,mhd->hnm", q, k) * q.shape[-1] ** -0.5).softmax(-1)
    return torch.einsum("hnm,mhd->nhd", weights, v)


def by_kernels(shape: Shape, device: torch.device, dtype: torch.dtype) -> dict[str, Callable[..., Tensor]]:
    """Each kernel that works here, without dropout."""
    if device.type not in ours.KERNEL_DEVICES:
        return {}
    found = [ours._tried(name, device, dtype, shape.width, shape.width) for name in ours.ORDER]
    lengths = shape.lengths

    def way(kernel: ours.Kernel) -> Callable[..., Tensor]:
        return lambda q, k, v: kernel.run(q, k, v, lengths, lengths, None, 0.0)

    return {f"ragged by {kernel.name}": way(kernel) for kernel in found if isinstance(kernel, ours.Kernel)}


def ways(lengths: list[int]) -> dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]]:
    kinds = sorted({(n, n) for n in lengths})
    return {
        "ragged": lambda q, k, v: ours.attention(q, k, v, lengths=lengths),
        "grouped": lambda q, k, v: ours._grouped(q, k, v, lengths, lengths, kinds, None, 0.0),
        "padding": lambda q, k, v: ours._padded(q, k, v, lengths, lengths, None, 0.0),
    }


def gradients(run: Callable[[Tensor, Tensor, Tensor], Tensor], rows: Rows, weight: Tensor) -> list[Tensor]:
    """The result and the gradients of q, k and v."""
    leaves = [x.detach().requires_grad_() for x in rows]
    out = run(leaves[0], leaves[1], leaves[2])
    return [out.detach(), *torch.autograd.grad(out, leaves, weight)]


def seconds(step: Callable[[], Any], device: torch.device, least: float) -> float:
    """Of the fastest call, after one to warm up, over at least three calls and `least` seconds."""

    clock = perf_counter if device.type == "cuda" else process_time

    def once() -> float:
        start = clock()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return clock() - start

    once()
    times = [once() for _ in range(3)]
    while sum(times) < least:
        times.append(once())
    return min(times)


def padded(rows: Rows, weight: Tensor, valid: Tensor) -> tuple[Rows, Tensor, Callable[..., Tensor]]:
    """The same rows as a batch with zeros behind each item's end, and attention with a mask over it."""

    def pad(x: Tensor) -> Tensor:
        out = x.new_zeros(*valid.shape, *x.shape[1:])
        out[valid] = x
        return out

    q, k, v = map(pad, rows)
    return (q, k, v), pad(weight), lambda q, k, v: ours.attention(q, k, v, mask=valid[:, None, None])


def measure(shape: Shape, device: torch.device, dtype: torch.dtype, least: float) -> dict[str, Any]:
    random, lengths = torch.Generator().manual_seed(0), shape.lengths
    size = (sum(lengths), shape.heads, shape.width)
    q, k, v, weight = (torch.randn(size, generator=random).to(device, dtype) for _ in range(4))
    rows = (q, k, v)
    valid = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).to(device)
    exact = gradients(lambda *x: by_formula(*x, lengths), (q.double(), k.double(), v.double()), weight.double())

    def result(run: Callable[..., Tensor], rows: Rows, weight: Tensor, pick: Callable[[Tensor], Tensor]) -> Any:
        found = [pick(x).double() for x in gradients(run, rows, weight)]
        errors = [float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, exact, strict=True)]
        step = lambda: gradients(run, rows, weight)  # noqa: E731
        return {
            "error": dict(zip(("result", "q", "k", "v"), errors, strict=True)),
            "seconds": seconds(step, device, least),
            "peak_bytes": peak_bytes(step, device),
        }

    every = ways(lengths) | by_kernels(shape, device, dtype)
    out = {name: result(run, rows, weight, lambda x: x) for name, run in every.items()}
    batch, heavy, run = padded(rows, weight, valid)
    out["padded"] = result(run, batch, heavy, lambda x: x[valid])
    # the ragged call above has asked for it, where this device has one at all
    known = device.type in ours.KERNEL_DEVICES and ours.kernel_for(q.device, dtype, shape.width, shape.width)
    return {
        "operator": known.name if known else "torch", "rows": sum(lengths), "padded_rows": valid.numel(),
        "padded_over_ragged": out["padded"]["seconds"] / out["ragged"]["seconds"], "ways": out,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="kinds of items; all otherwise")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--least", type=float, default=0.5, help="seconds to measure each for")
    parser.add_argument("--shared", action="store_true", help="say that others used the machine meanwhile")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "attention.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device, busy = torch.device(args.device), os.getloadavg()[0] > 1.5
    dtypes = [torch.float32, torch.float16, torch.bfloat16] if device.type == "cuda" else [torch.float32]
    found: dict[str, dict[str, Any]] = {}
    chosen = {name: shape for name, shape in shapes(device.type == "cpu").items() if name in (args.only or [name])}
    for name, shape in chosen.items():
        for dtype in dtypes:
            precision = str(dtype).removeprefix("torch.")
            found.setdefault(name, {})[precision] = one = measure(shape, device, dtype, args.least)
            times = ", ".join(f"{way} {1e3 * x['seconds']:.1f} ms" for way, x in one["ways"].items())
            print(f"{name} {precision} by {one['operator']}: {times}")
    result = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU",
        "threads": args.threads, "torch": torch.__version__, "shared": args.shared or busy,
        "shapes": {
            name: {"items": len(s.lengths), "shortest": min(s.lengths), "longest": max(s.lengths),
                   "heads": s.heads, "width": s.width} for name, s in chosen.items()
        },
        "attention": found,
    }  # fmt: skip
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
