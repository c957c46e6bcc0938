"""The command that uses a saved student. Nothing heavy is imported before it runs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from xmodal_kd.runtime.progress import each, named

SUFFIXES = (".bin", ".ply", ".pcd", ".npz")


def segment(
    student: Annotated[Path, typer.Argument(help="Folder of a saved student: it holds card.json and its weights.")],
    scans: Annotated[
        list[Path],
        typer.Argument(
            metavar="SCAN...",
            help="LiDAR scans: .bin (KITTI: x, y, z, intensity), .pcd.bin (nuScenes: ring too), .ply, .pcd, .npz "
            "(xyz or points, intensity, ring); and folders, which are searched for them at any depth.",
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
    out: Annotated[Path, typer.Option(help="Folder of the results: NAME.ply and NAME.png for each scan.")] = Path(
        "segmented"
    ),
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

    from .output import check_names, process
    from .segment import Segmenter

    paths = list(_files(scans))
    if image is None and calib is not None:
        raise UserError("--calib says where a photograph was taken: give it with --image")
    if image is not None and len(paths) > 1:
        raise UserError(f"--image is the photograph of one scan, and {len(paths)} are given")
    check_names(paths, out)
    segmenter = Segmenter(student, str(make_accelerator(device, "fp32").device))
    errors, failed = Console(stderr=True), False
    for path in each(paths, "segmenting", errors):
        try:
            result = process(segmenter, path, out, image=image, calibration=calib, beams=beams)
        except UserError as error:
            errors.print(named(path, error), style="red", soft_wrap=True, markup=False, highlight=False)
            failed = True
            continue
        typer.echo(json.dumps(result, ensure_ascii=False) if json_ else _line(result))
    if failed:
        raise typer.Exit(2)


def _line(result: dict[str, Any]) -> str:
    shares = ", ".join(f"{name} {100 * share:.1f} %" for name, share in result["shares"].items())
    return "\n".join([f"{result['path']}\t{shares}", *(f"  {note}" for note in result["notes"])])


def _files(scans: Iterable[Path]) -> Iterator[Path]:
    """The files named, and those in the folders named, in order. A missing one is left for the reader to complain."""
    from xmodal_kd.runtime.errors import UserError

    for path in scans:
        if not path.is_dir():
            yield path
            continue
        found = sorted(p for p in path.rglob("*") if p.name.lower().endswith(SUFFIXES) and p.is_file())
        if not found:
            raise UserError(f"{path}: no scans in this folder (looked for {', '.join(SUFFIXES)})")
        yield from found
