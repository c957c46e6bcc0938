"""What a cached teacher costs on the disk, how fast it is read, and what it does to the loss.

    python benchmarks/cache.py [--parts throughput]

Error against size: a teacher and a smaller student, trained on classes that come in families of ten (Gaussian clusters,
inputs of 64 numbers), say what they think of samples that neither has seen; the knowledge distillation loss and its
gradient from the cached teacher are held against those from the live one. The student is half trained: near its teacher
the loss is small, and the same error a larger share of it. Beside them random logits, the worst case: no class matters.
Throughput: entries of usual shapes written to a store and read in random order, from the page cache, one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xmodal_kd.objective.objective import Objective
from xmodal_kd.recipe.recipe import Term
from xmodal_kd.runtime.device import versions
from xmodal_kd.signals.signals import Layout, Signals
from xmodal_kd.teacher_cache.codecs import Basis, Codec, Half, Int8, TopK, row_bytes
from xmodal_kd.teacher_cache.entries import StoredSignal, packed, restored, written
from xmodal_kd.teacher_cache.fill import BASIS_ROWS, BASIS_ROWS_BY_CLASS
from xmodal_kd.teacher_cache.store import Store

WIDTH, TEMPERATURES, SAMPLES = 64, (1.0, 4.0), 2048
KS = (1, 2, 4, 8, 16, 32, 64, 128)
#: How many times smaller than fp16 a basis is to be.
SMALLER = (2, 4, 8, 16)
#: Name, items, rows an item, classes or channels, codec.
SHAPES = (
    ("speech: 2 s of frames, 512 tokens, top 16", 512, 50, 512, lambda: TopK(512, 16)),
    ("speech: 2 s of frames, 512 tokens, fp16", 512, 50, 512, lambda: Half(512)),
    ("images: one row, 1000 classes, top 16", 4096, 1, 1000, lambda: TopK(1000, 16)),
    ("images: one row, 1000 classes, fp16", 4096, 1, 1000, lambda: Half(1000)),
    ("images: 7 x 7 map of 256 channels, int8", 512, 49, 256, lambda: Int8(256, [0.05] * 256)),
    ("points: 10,000 rows, 20 classes, top 4", 64, 10_000, 20, lambda: TopK(20, 4)),
    ("points: 10,000 rows, 20 classes, fp16", 64, 10_000, 20, lambda: Half(20)),
)  # fmt: skip


# ---------------------------------------------------------------- error against size


def families(classes: int, generator: torch.Generator) -> Tensor:
    """Centres: ten classes around each family's."""
    family = torch.randn(-(-classes // 10), WIDTH, generator=generator)
    own = torch.randn(classes, WIDTH, generator=generator)
    return family.repeat_interleave(10, dim=0)[:classes] + 0.4 * own


def draw(centres: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    y = torch.randint(len(centres), (count,), generator=generator)
    return centres[y] + 0.6 * torch.randn(count, WIDTH, generator=generator), y


class Net(nn.Module):
    def __init__(self, hidden: int, depth: int, classes: int) -> None:
        super().__init__()
        sizes = [WIDTH, *[hidden] * depth]
        pairs = pairwise(sizes)
        self.body = nn.Sequential(*(layer for a, b in pairs for layer in (nn.Linear(a, b), nn.LayerNorm(b), nn.GELU())))
        self.head = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))  # type: ignore[no-any-return]


def trained(net: Net, centres: Tensor, steps: int, generator: torch.Generator) -> Net:
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    for _ in range(steps):
        x, y = draw(centres, 128, generator)
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net.eval()


def back(codec: Codec, rows: Tensor) -> Tensor:
    """What is read of `rows`."""
    kept = StoredSignal("rows", 0, "sample", False, codec)
    entries = written(kept, Signals().add("rows", rows, Layout.samples(len(rows)))["rows"], [""] * len(rows))
    return restored({"rows": kept}, {"rows": packed(kept, entries)}, Signals()).rows("rows")


def errors(term: Term, student: Tensor, live: Tensor, cached: Tensor) -> dict[str, float]:
    """Of the loss and of its gradient at the student's rows, as shares of the live ones."""
    found = []
    for teacher in (live, cached):
        rows = student.clone().requires_grad_()
        layout = Layout.samples(len(rows))
        loss = Objective([term])(Signals().add("x", rows, layout), Signals().add("x", teacher, layout)).value()
        found.append((loss.item(), torch.autograd.grad(loss, rows)[0]))
    (a, da), (b, db) = found
    return {"loss": abs(b - a) / a, "gradient": float((db - da).norm() / da.norm())}


def logits(classes: int, student: Tensor, teacher: Tensor, fit: Tensor) -> Iterator[dict[str, Any]]:
    """Args: fit: other rows of the teacher, to which a basis is fitted."""
    dense = row_bytes(Half(classes))
    bases = [Basis.fitted(fit, max(1, dense // smaller)) for smaller in SMALLER]
    for temperature in TEMPERATURES:
        term = Term(loss="kd", on="x", params={"temperature": temperature})
        codecs = [Half(classes), *(TopK(classes, k, temperature) for k in KS if k < classes), *bases]
        for codec in codecs:
            size = row_bytes(codec)
            if size <= dense:
                found = errors(term, student, teacher, back(codec, teacher))
                name = f"top {codec.k}" if isinstance(codec, TopK) else "fp16"
                if isinstance(codec, Basis):
                    name = f"basis of {len(codec.bits)}"
                yield {
                    "temperature": temperature,
                    "kept": name,
                    "bytes_per_row": size,
                    "smaller": dense / size,
                    **found,
                }


@torch.no_grad()
def _said(net: Net, x: Tensor) -> tuple[Tensor, Tensor]:
    features = net.body(x)
    return net.head(features), features


def against_size(classes: int) -> dict[str, Any]:
    torch.manual_seed(classes)
    generator = torch.Generator().manual_seed(classes)
    centres = families(classes, generator)
    teacher = trained(Net(256, 2, classes), centres, 800, generator)
    student = trained(Net(256, 1, classes), centres, 200, generator)
    x, y = draw(centres, SAMPLES, generator)
    (z_s, f_s), (z_t, f_t) = _said(student, x), _said(teacher, x)
    calibration = _said(teacher, draw(centres, 512, generator)[0])[1]
    fit = _said(teacher, draw(centres, fitted_to(classes), generator)[0])[0]
    term = Term(loss="hint", on="x")
    features = [
        {"kept": name, "bytes_per_row": row_bytes(codec), **errors(term, f_s, f_t, back(codec, f_t))}
        for name, codec in (("fp16", Half(256)), ("int8", Int8.fitted(calibration)))
    ]
    return {
        "accuracy": {"teacher": _right(z_t, y), "student": _right(z_s, y)},
        "top_16_mass": float(torch.softmax(z_t, -1).topk(min(16, classes)).values.sum(-1).mean()),
        "logits": list(logits(classes, z_s, z_t, fit)),
        "features": features,
    }


def every_size() -> dict[str, Any]:
    found = {f"{classes} classes": against_size(classes) for classes in (10, 100, 512, 1000)}
    return found | {"512 classes, random logits": random_logits(512)}


def _right(z: Tensor, y: Tensor) -> float:
    return float((z.argmax(-1) == y).float().mean())


def random_logits(classes: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    teacher, student = (3 * torch.randn(SAMPLES, classes, generator=generator) for _ in range(2))
    mass = float(torch.softmax(teacher, -1).topk(16).values.sum(-1).mean())
    fit = 3 * torch.randn(fitted_to(classes), classes, generator=generator)
    return {"top_16_mass": mass, "logits": list(logits(classes, student, teacher, fit))}


def fitted_to(classes: int) -> int:
    """Rows, as a run would take."""
    return max(BASIS_ROWS, BASIS_ROWS_BY_CLASS * classes)


# ---------------------------------------------------------------- throughput


class Shape(NamedTuple):
    name: str
    items: int
    rows: int
    width: int
    codec: Callable[[], Codec]


def throughput(shape: Shape, folder: Path) -> dict[str, float]:
    """Seconds by entry, encoded and committed in batches of 16, and read in batches of 16 in random order."""
    kept = StoredSignal("rows", 0, "frame", False, shape.codec())
    layout = Layout.padded("frame", torch.full((16,), shape.rows), shape.rows)
    rows = 3 * torch.randn(len(layout), shape.width, generator=torch.Generator().manual_seed(0))
    signals = Signals().add("rows", rows, layout)
    keys = [np.random.default_rng(i).bytes(16) for i in range(shape.items)]
    store, start = Store(folder, 0), perf_counter()
    for i in range(0, shape.items, 16):
        store.put(zip(keys[i : i + 16], written(kept, signals["rows"], [""] * 16), strict=True))
    wrote = perf_counter() - start
    store.close()
    reader, order = Store(folder), np.random.default_rng(0).permutation(shape.items)
    batches = [[keys[i] for i in order[j : j + 16]] for j in range(0, shape.items, 16)]
    for _ in range(2):  # the first time from a disk that may be cold
        start = perf_counter()
        for batch in batches:
            entries = [entry for key in batch for entry in reader.get([key]) if entry is not None]
            restored({"rows": kept}, {"rows": packed(kept, entries)}, signals)
        read = perf_counter() - start
    disk = reader.bytes_on_disk()
    reader.close()
    total = shape.items * shape.rows
    return {
        "bytes_per_row": row_bytes(kept.codec),
        "bytes_per_row_on_disk": disk / total,
        "bytes_per_item_on_disk": disk / shape.items,
        "write_us_per_item": 1e6 * wrote / shape.items,
        "read_us_per_item": 1e6 * read / shape.items,
        "read_rows_per_second": total / read,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="error_against_size,throughput", help="the others stay as they were")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "cache.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = json.loads(args.results.read_text()) if args.results.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        parts: dict[str, Callable[[], dict[str, Any]]] = {
            "error_against_size": every_size,
            "throughput": lambda: {s[0]: throughput(Shape(*s), Path(folder) / str(i)) for i, s in enumerate(SHAPES)},
        }
        for part in args.parts.split(","):
            found[part] = parts[part]() | {"load_average": os.getloadavg()[0]}
    found["versions"] = versions()
    args.results.parent.mkdir(parents=True, exist_ok=True)
    args.results.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
