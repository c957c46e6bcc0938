"""What single losses need of the random batch in `harness`, by name. Imports nothing from there."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from torch import Tensor

from xmodal_kd.losses.subclasses import save_statistics, subclass_statistics

Batch = dict[str, Any]

#: Widths of both sides' signals, where the random batch's one or two will not do.
SHAPES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "cfl": ((6,), (9, 5)),
    "distilhubert": ((6,), (9, 5, 7)),
    "dphubert": ((6, 6, 6), (9, 9, 9)),
    "dskd_cma": ((5, 6, 12), (5, 9, 18)),
    "lelp": ((10,), (2, 7)),
    "minilm": ((6,) * 3, (9,) * 3),
    "minilmv2": ((6,) * 3, (9,) * 3),
    "mobilebert": ((6,) * 6, (6,) * 6),
    "norm": ((12,), (6,)),
    "pkd": ((6,) * 3, (6,) * 6),
    "reviewkd": ((6, 4), (9, 5)),
    "tinybert": ((6,) * 7, (12,) * 13),
    "triplet_votes": ((6,), (9, 5, 7)),
    "uskd": ((6, 5), (6, 5)),
    "wkd_l": ((5,), (9,)),
}


def rows(batch: Batch, width: int, seed: int) -> Tensor:
    """Random rows beside those of the batch."""
    like = batch["student"][0] if isinstance(batch["student"], list) else batch["student"]
    random = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(len(like), width, dtype=torch.float64, generator=random)).to(like.dtype)


def shaped(name: str) -> Callable[[Batch, int], Batch]:
    """The batch with rows of the widths in `SHAPES`."""
    widths = SHAPES[name]

    def change(batch: Batch, seed: int) -> Batch:
        sides = [
            [rows(batch, width, 1000 * seed + 100 * side + i) for i, width in enumerate(widths[side])]
            for side in (0, 1)
        ]
        if not isinstance(batch["student"], list):
            return batch | {"student": sides[0][0], "teacher": sides[1][0]}
        places = {key: batch[key][:1] * len(widths[0]) for key in ("item", "teacher_item", "cell", "grid")}
        return batch | {"student": sides[0], "teacher": sides[1]} | places

    return change


def regression(batch: Batch, seed: int) -> Batch:
    """The batch with real labels, one an output."""
    first = batch["student"][0] if isinstance(batch["student"], list) else batch["student"]
    return batch | {"labels": rows(batch, first.shape[1], 1000 * seed + 500)}


def few_labels(batch: Batch, seed: int) -> Batch:
    """The batch of five classes, as its head has."""
    return shaped("wkd_l")(batch, seed) | {"labels": batch["labels"] % 5}


def one_label(batch: Batch, seed: int) -> Batch:
    """The batch whose items have a class each."""
    return batch | {"labels": batch["item"] % batch["student"].shape[1]}


def partly(batch: Batch, seed: int) -> Batch:
    """The batch of a teacher that knows neither class 0 nor, of every other row, class 3."""
    teacher = batch["teacher"].clone()
    teacher[:, 0] = teacher[::2, 3] = -torch.inf
    return batch | {"teacher": teacher}


@cache
def statistics() -> Path:
    """A file of what `lelp` knows of 40 embeddings of two classes."""
    random = torch.Generator().manual_seed(0)
    embeddings, classifier = (torch.randn(n, 7, generator=random) for n in (40, 2))
    path = Path(mkdtemp()) / "lelp.safetensors"
    save_statistics(subclass_statistics(embeddings, torch.arange(40) % 2, classifier, 5), path)
    return path


#: Changes of the random batch ``(batch, seed) -> batch`` for a loss whose rows have a form of their own.
EXAMPLES: dict[str, Callable[[Batch, int], Batch]] = {name: shaped(name) for name in SHAPES} | {
    "bounded_reg": regression,
    "dskd": lambda batch, seed: batch | {"labels": batch["labels"] % 5},
    "dskd_cma": lambda batch, seed: shaped("dskd_cma")(batch, seed) | {"labels": batch["labels"] % 5},
    "patch_gan": regression,
    "sdd": one_label,
    "uhc": partly,
    "wkd_l": few_labels,
}
#: Hyper-parameters under every setting, where the defaults make tests slow or do not fit the random batch.
PARAMS: dict[str, dict[str, Any]] = {
    "lelp": {"statistics": statistics()},
    "minilm": {"heads": 1},
    "minilmv2": {"heads": 1},
    "mobilebert": {"heads": 3},
    "cfl": {"width": 6, "common": 5},
    "mvq": {"codebooks": 2, "size": 4},
    "norm": {"segments": 2},
    "pkd": {"layers": "uniform"},  # skip leaves a layer out
    "tinybert": {"heads": 3},
}
