"""The command that uses a saved student. Nothing heavy is imported before it runs."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from ..data.suffixes import IN_FOLDERS
from .scans import per_scan, scans_named


def segment(
    student: Annotated[Path, typer.Argument(help="Folder of a saved student: it holds card.json and its weights.")],
    scans: Annotated[
        list[Path],
        typer.Argument(
            metavar="SCAN...",
            help="LiDAR scans: .bin (KITTI: x, y, z, intensity), .pcd.bin (nuScenes: ring too), .ply, .pcd, .npz "
            "(xyz or points, intensity, ring), .npy, .csv and other text; and folders, which are searched for "
            f"{', '.join(IN_FOLDERS)} at any depth.",
        ),
    ],
    image: Annotated[
        Path | None, typer.Option(help="Photograph taken with the scan (one scan only): students of images need it.")
    ] = None,
    calib: Annotated[
        Path | None,
        typer.Option(
            help="Where its camera stands: KITTI calibration file, folder of a KITTI raw drive, or JSON with "
            "intrinsics (3 x 3) and lidar_to_camera (4 x 4)."
        ),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(
            help="Folder of the results: NAME.ply and NAME.png for each scan; those of a folder lie as in it, and "
            "where several folders are given, each in one of its own."
        ),
    ] = Path("segmented"),
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            help="ply, or semantickitti: sequences/NN/predictions/NAME.label (uint32 ids of the data set, 0 for none), "
            "of scans that lie in sequences/NN/velodyne.",
        ),
    ] = "ply",
    beams: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Lasers of the sensor, for files that do not say which laser saw a point; without it as many as the "
            "sensor has that the student was trained on.",
        ),
    ] = None,
    json_: Annotated[
        bool,
        typer.Option("--json", help="One JSON object a line: path, points, shares, confidence, ply, png, notes."),
    ] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "cpu",
) -> None:
    """Label every point of LiDAR scans; writes coloured point clouds and pictures, prints the classes' shares.

    A scan that cannot be read is named on standard error, the rest are segmented, and the exit status is 2.
    """
    from xmodal_kd.runtime.device import make_accelerator
    from xmodal_kd.runtime.errors import UserError
    from xmodal_kd.runtime.progress import console
    from xmodal_kd.runtime.whole_files import writable

    from .output import FORMATS, check_names, process

    if format_ not in FORMATS:
        raise UserError(f"--format {format_!r} is unknown: choose one of {', '.join(FORMATS)}")
    places, empty = scans_named(scans)
    if image is None and calib is not None:
        raise UserError("--calib says where a photograph was taken: give it with --image")
    if image is not None and len(places) > 1:
        raise UserError(f"--image is the photograph of one scan, and {len(places)} are given")
    if empty and not places:
        raise UserError(empty[0])
    check_names(places, out, format_)
    writable(out, "--out")
    from .segment import Segmenter

    segmenter = Segmenter(student, str(make_accelerator(device, "fp32").device))
    work = partial(process, segmenter, out=out, image=image, calibration=calib, beams=beams, form=format_)
    for result in per_scan(places, empty, console, "segmenting", "cannot be segmented", work):
        typer.echo(json.dumps(result, ensure_ascii=False) if json_ else _line(result))


def _line(result: dict[str, Any]) -> str:
    shares = ", ".join(f"{name} {100 * share:.1f} %" for name, share in result["shares"].items())
    return "\n".join([f"{result['path']}\t{shares}", *(f"  {note}" for note in result["notes"])])
