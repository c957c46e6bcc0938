"""Labelled points as a binary PLY that any viewer shows in colour."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from xmodal_kd.runtime.checkpoint import write_bytes

from ..show.palette import colours

FIELDS = (
    ("x", "<f4", "float"), ("y", "<f4", "float"), ("z", "<f4", "float"), ("red", "u1", "uchar"),
    ("green", "u1", "uchar"), ("blue", "u1", "uchar"), ("label", "i1", "char"), ("confidence", "<f4", "float"),
)  # fmt: skip


def write_ply(
    path: Path, xyz: Float[np.ndarray, "n 3"], labels: Int[np.ndarray, " n"], confidence: Float[np.ndarray, " n"],
    classes: Sequence[str],
) -> Path:  # fmt: skip
    """x, y, z in metres, red, green, blue of the class, its number (-1: none) and the confidence in it, by point.

    The numbers are those of `classes`, which stand in a comment.
    """
    table = np.empty(len(xyz), dtype=[(name, kind) for name, kind, _ in FIELDS])
    values = (*xyz.T, *colours(labels).T, labels, confidence)
    for (name, *_), column in zip(FIELDS, values, strict=True):
        table[name] = column
    head = ["ply", "format binary_little_endian 1.0", f"comment labels {' '.join(classes)}"]
    head += [f"element vertex {len(xyz)}", *(f"property {kind} {name}" for name, _, kind in FIELDS), "end_header"]
    write_bytes(path, "\n".join([*head, ""]).encode() + table.tobytes())
    return path


__all__ = ["write_ply"]
