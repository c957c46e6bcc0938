"""Predictions as SemanticKITTI's programs read them: ``sequences/NN/predictions/NAME.label``, a uint32 a point."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

from xmodal_kd.runtime.checkpoint import write_bytes
from xmodal_kd.runtime.errors import UserError

from ..data.classes import EIGHT

#: The id of each of the eight classes; those of other classes stand on their model's card.
WRITTEN = dict(zip(EIGHT.names, EIGHT.written, strict=True))
#: The data set's id of what has no label.
NONE = 0


def prediction_place(scan: Path, out: Path) -> Path:
    """Where the labels of a scan belong, below `out`.

    Raises:
        UserError: the scan does not lie in ``sequences/NN/velodyne``.
    """
    folder = Path(os.path.realpath(scan)).parent
    if folder.name != "velodyne" or scan.suffix.lower() != ".bin":
        raise UserError(
            f"{scan}: --format semantickitti needs sequences/NN/velodyne/NAME.bin, whose NN and NAME its labels keep: "
            "bring scans into that layout first, or leave the format out"
        )
    return out / "sequences" / folder.parent.name / "predictions" / f"{scan.stem}.label"


def write_label(
    path: Path, labels: Int[np.ndarray, " n"], classes: Sequence[str], ids: Sequence[int] | None = None
) -> Path:
    """The data set's id of each point's class, 0 for none; read back by the reader it is the same class.

    Args:
        ids: of `classes`, as the data set's ``learning_map_inv`` has them; None: those of the eight by their names.

    Raises:
        UserError: a class that the data set does not have, or whose id means none.
    """
    if ids is None and (unknown := next((name for name in classes if name not in WRITTEN), None)):
        raise UserError(f"{path}: class {unknown!r} has no id in SemanticKITTI (known: {', '.join(WRITTEN)})")
    table = [WRITTEN[name] for name in classes] if ids is None else list(ids)
    if NONE in table:
        name = classes[table.index(NONE)]
        raise UserError(
            f"{path}: the id of class {name!r} is {NONE}, which means no label: train with other ids for it"
        )
    written = np.array([*table, NONE], dtype="<u4")  # the last one is that of -1
    write_bytes(path, written[labels].tobytes())
    return path


__all__ = ["WRITTEN", "prediction_place", "write_label"]
