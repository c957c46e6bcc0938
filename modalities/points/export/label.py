"""Predictions as SemanticKITTI's programs read them: ``sequences/NN/predictions/NAME.label``, a uint32 a point."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

from xmodal_kd.runtime.checkpoint import write_bytes
from xmodal_kd.runtime.errors import UserError

from ..data.readers.semantickitti import IDS

#: Of our classes that are several of the data set's, the id that is written: the commonest, or the one of the name.
WRITTEN = {name: ids[0] for name, ids in IDS.items()} | {"truck": 18}
#: The data set's id of what has no label.
NONE = 0


def prediction_place(scan: Path, out: Path) -> Path:
    """Where the labels of a scan belong, below `out`.

    Raises:
        UserError: the scan does not lie in ``sequences/NN/velodyne``.
    """
    folder = scan.resolve().parent
    if folder.name != "velodyne" or scan.suffix.lower() != ".bin":
        raise UserError(
            f"{scan}: --format semantickitti needs sequences/NN/velodyne/NAME.bin, whose NN and NAME its labels keep: "
            "bring scans into that layout first, or leave the format out"
        )
    return out / "sequences" / folder.parent.name / "predictions" / f"{scan.stem}.label"


def write_label(path: Path, labels: Int[np.ndarray, " n"], classes: Sequence[str]) -> Path:
    """The data set's id of each point's class, 0 for none; read back by the reader it is the same class.

    Raises:
        UserError: a class that the data set does not have.
    """
    if unknown := next((name for name in classes if name not in WRITTEN), None):
        raise UserError(f"{path}: class {unknown!r} has no id in SemanticKITTI (known: {', '.join(WRITTEN)})")
    ids = np.array([*(WRITTEN[name] for name in classes), NONE], dtype="<u4")  # the last one is that of -1
    write_bytes(path, ids[labels].tobytes())
    return path


__all__ = ["WRITTEN", "prediction_place", "write_label"]
