"""The command that uses a saved detector. Nothing heavy is imported before it runs."""

from __future__ import annotations

import json
import os
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from ..data.suffixes import IN_FOLDERS, PHOTOGRAPHS
from .scans import per_scan, scans_named


def detect(
    scans: Annotated[
        list[Path],
        typer.Argument(
            metavar="SCAN...",
            help="LiDAR scans: .bin (KITTI), .pcd.bin (nuScenes), .ply, .pcd, .npz, .npy, .csv and other text; of a "
            "detector of photographs these (.png, .jpg); and folders, which are searched for "
            f"{', '.join((*IN_FOLDERS, *PHOTOGRAPHS))} at any depth.",
        ),
    ],
    model: Annotated[Path, typer.Option(help="Folder of a saved detector: it holds card.json and its weights.")],
    out: Annotated[
        Path, typer.Option(help="Folder of the results: NAME.txt or NAME.json, and NAME.png, for each scan.")
    ] = Path("detected"),
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            help="kitti: lines as in label_2 with scores, in the camera's frame where calib lies beside the scan's "
            "folder velodyne, or beside that of a photograph; json: boxes in the LiDAR's frame.",
        ),
    ] = "kitti",
    score: Annotated[float, typer.Option(min=0, max=1, help="Least score of a box.")] = 0.3,
    beams: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Lasers of the sensor, for files that do not say which laser saw a point; without it as many as the "
            "sensor has that the detector was trained on.",
        ),
    ] = None,
    calib: Annotated[
        Path | None,
        typer.Option(
            help="Of photographs, where no calib/NAME.txt lies beside their folder: a KITTI calibration, the folder of "
            "a KITTI raw drive, or JSON with intrinsics and lidar_to_camera. Of all of them."
        ),
    ] = None,
    json_: Annotated[
        bool, typer.Option("--json", help="One JSON object a line: path, points (of a scan), boxes, notes.")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "cpu",
) -> None:
    """Find boxes of things in scans or photographs; writes KITTI's text or JSON and a picture from above, prints what.

    A scan that cannot be read is named on standard error, the rest are looked at, and the exit status is 2.

    Example: xmodal-kd detect kitti/training/velodyne --model runs/points/detection/student --out detected
    """
    from xmodal_kd.runtime.device import make_accelerator
    from xmodal_kd.runtime.errors import UserError
    from xmodal_kd.runtime.progress import console
    from xmodal_kd.runtime.whole_files import writable

    from ..export.saved_folder import load_card
    from .detect import FORMATS, Detector, process
    from .output import stem

    if format_ not in FORMATS:
        raise UserError(f"--format {format_!r} is unknown: choose one of {', '.join(FORMATS)}")
    ends: tuple[str, ...] = IN_FOLDERS
    if any(path.is_dir() for path in scans) and load_card(model, detects=True).view.sees == "image":
        ends = PHOTOGRAPHS
    places, empty = scans_named(scans, ends)
    if empty and not places:
        raise UserError(empty[0])
    taken = Counter(str(below / stem(scan)) for scan, below in places.items())
    if twice := next((name for name, number in taken.items() if number > 1), None):
        raise UserError(f"{taken[twice]} scans would be written to {out / twice}.png: detect in them apart")
    results = {os.path.realpath(out / f"{name}.{end}") for name in taken for end in ("txt", "json", "png")}
    if lost := next((scan for scan in places if os.path.realpath(scan) in results), None):
        raise UserError(f"{lost}: a result would overwrite it: choose another folder with --out")
    writable(out, "--out")
    detector = Detector(model, str(make_accelerator(device, "fp32").device))
    work = partial(process, detector, out=out, beams=beams, calib=calib, least=score, form=format_)
    for result in per_scan(places, empty, console, "detecting", "nothing detected", work):
        typer.echo(json.dumps(result, ensure_ascii=False) if json_ else _line(result))


def _line(result: dict[str, Any]) -> str:
    number = Counter(box["name"] for box in result["boxes"])
    said = ", ".join(f"{count} {name}" for name, count in number.most_common()) or "nothing"
    return "\n".join([f"{result['path']}\t{said}", *(f"  {note}" for note in result["notes"])])
