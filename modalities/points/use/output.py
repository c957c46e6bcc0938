"""What ``xmodal-kd segment`` writes and says of one scan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from xmodal_kd.runtime.errors import UserError

from ..data.calibration import read_picture
from ..data.files import read_points
from ..data.frame import Picture, Scan
from ..data.readers.base import read_rgb
from ..data.suffixes import PHOTOGRAPHS, SUFFIXES
from ..export.label import prediction_place, write_label
from ..export.ply import write_ply
from ..show.palette import FAINT
from ..show.pictures import above, in_photograph, in_view, painted, sheet, strip_panels, strips, write_picture
from .scans import same_file
from .segment import Segmented, Segmenter, uncalibrated

#: Metres to the edge of the two views from above.
NEAR, FAR = 15.0, 40.0
#: Kinds of results: a coloured cloud with a picture, or a data set's own labels.
FORMATS = ("ply", "semantickitti")


def stem(scan: Path) -> str:
    """The name of a scan's results: its own without the end."""
    ending = next((end for end in (*SUFFIXES, *PHOTOGRAPHS) if scan.name.lower().endswith(end)), "")
    return scan.name[: len(scan.name) - len(ending)]


def check_names(scans: Mapping[Path, Path], out: Path, form: str = "ply") -> None:
    """Raises `UserError` where results would overwrite each other, or a scan.

    Args:
        scans: each with the folder of its results, below `out`.
        form: of `FORMATS`.
    """
    if form == "semantickitti":
        return  # places are the data set's own; a scan outside it is refused when its turn comes
    names: dict[Path, Path] = {}
    for scan, below in scans.items():
        name = below / stem(scan)
        if name in names:
            raise UserError(f"{scan} and {names[name]} would both be written to {out / name}.ply: segment them apart")
        names[name] = scan
        if same_file(out / f"{name}.ply", scan):
            raise UserError(f"{scan}: its result would overwrite it: choose another folder with --out")


def process(
    segmenter: Segmenter, path: Path, out: Path, *, image: Path | None = None, calibration: Path | None = None,
    beams: int | None = None, below: Path = Path(), form: str = "ply",
) -> dict[str, Any]:  # fmt: skip
    """Segment one file, write its results; returns what ``--json`` prints.

    ``path``, ``points``, ``shares`` (of the labelled points, by class, largest first; of the labelled pixels where no
    point has a label), ``confidence`` (mean), ``labelled`` and ``seen`` (shares of the points: with a label, by the
    model itself), ``ply`` and ``png``, or ``label``, ``notes``.

    Args:
        below: folder of the results below `out`.
        form: ``ply`` (a cloud and a picture) or ``semantickitti`` (labels only, see `export.label`).

    Raises:
        UserError: a file is missing or broken, or the model cannot see it.
    """
    place = prediction_place(path, out) if form == "semantickitti" else None
    scan = read_points(path, len(segmenter.classes))
    picture = _picture(scan, image, calibration)
    found = segmenter.segment(scan, picture=picture, beams=beams)
    classes, known = segmenter.classes, found.labels >= 0
    if place is None:
        written = _cloud(out / below / stem(path), scan, found, picture, segmenter)
    else:
        written = {"label": str(write_label(place, found.labels, classes, segmenter.card.label_ids))}
    counted = found.labels[known] if known.any() or found.pixels is None else found.pixels.ravel()
    return {
        "path": str(path), "points": len(scan), "shares": shares(counted, classes),
        "confidence": float(found.confidence[known].mean()) if known.any() else None,
        "labelled": float(known.mean()), "seen": float(found.seen.mean()), **written, "notes": list(found.notes),
    }  # fmt: skip


def _cloud(name: Path, scan: Scan, found: Segmented, picture: Picture | None, segmenter: Segmenter) -> dict[str, str]:
    ply = write_ply(name.with_name(f"{name.name}.ply"), scan.xyz, found.labels, found.confidence, segmenter.classes)
    shown = replace(found, labels=found.labels[scan.there])
    drawn = page(scan[scan.there], shown, picture, segmenter.classes, segmenter.view.columns)
    return {"ply": str(ply), "png": str(write_picture(name.with_name(f"{name.name}.png"), drawn))}


def _picture(scan: Scan, image: Path | None, calibration: Path | None) -> Picture | None:
    if image is None:
        return None
    return uncalibrated(read_rgb(image)) if calibration is None else read_picture(image, calibration, scan)


def shares(labels: np.ndarray, classes: Sequence[str]) -> dict[str, float]:
    """Share of each class that occurs, the largest first."""
    count = np.bincount(labels, minlength=len(classes))
    return {classes[i]: float(count[i] / count.sum()) for i in np.argsort(-count, kind="stable") if count[i]}


def page(
    scan: Scan, found: Segmented, picture: Picture | None, classes: Sequence[str], columns: int = 256
) -> Image.Image:
    """Range images, two views from above, and the photograph with its pixels' and its points' labels."""
    panels = strip_panels(strips(scan, {"class": found.labels}, columns))
    views = [above(scan.xyz, found.labels, reach) for reach in (FAR, NEAR)]
    both = Image.new("RGB", (2 * views[0].width + 1, views[0].height), FAINT)  # a line between the two
    for view, left in zip(views, (0, views[0].width + 1), strict=True):
        both.paste(view, (left, 0))
    panels.append((f"from above, {FAR:g} m and {NEAR:g} m each way", both))
    if picture is not None and found.pixels is not None:
        panels.append(("pixels", painted(picture.rgb, found.pixels)))
    if picture is not None:
        seen, uv = in_view(scan, picture)
        if len(seen):
            panels.append(("points in the photograph", in_photograph(picture.rgb, uv, found.labels[seen])))
    return sheet(panels, 1, "", classes)


__all__ = ["FORMATS", "check_names", "page", "process", "shares", "stem"]
