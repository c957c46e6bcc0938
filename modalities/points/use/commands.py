"""The points modality's own commands. Nothing heavy is imported before one runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from .detect_command import detect
from .segment_command import segment


def simulate(
    out: Annotated[Path, typer.Argument(help="Folder of the data set; its sequences/NN are made.")],
    family: Annotated[str, typer.Option(help="Of streets: train, dev or test.")] = "train",
    frames: Annotated[int, typer.Option(min=1, max=40, help="Of each drive, a tenth of a second apart.")] = 20,
    drives: Annotated[int, typer.Option(min=1, max=100, help="Sequences, each in a street of its own.")] = 1,
    first: Annotated[int, typer.Option(min=0, help="Number of the first street; drives go on from it.")] = 0,
    sensor: Annotated[
        str,
        typer.Option(help="A preset (hdl64e, vlp16, pandar64, ...), or its lasers: '{beams: 40, fov: [-25, 15]}'."),
    ] = "hdl64e",
    columns: Annotated[
        int | None, typer.Option(min=8, help="Shots of a laser in a turn; unless said, as the sensor does.")
    ] = None,
    camera: Annotated[bool, typer.Option("--camera", help="Take pictures too, 1242 x 375 pixels.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of streets and noise: the same seed gives the same files.")] = 0,
    json_: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> None:
    """Drive through made-up streets and write LiDAR scans with labels and poses in SemanticKITTI's layout.

    Needs pip install 'xmodal-kd\\[points]'.

    Example: xmodal-kd simulate streets --family train --frames 20 --sensor hdl64e --camera
    """
    from ..data.simulator.camera import CameraSpec
    from ..data.simulator.cast import simulate as drive
    from ..data.simulator.sensors import sensor as described
    from ..data.simulator.sensors import told
    from ..data.simulator.write import sequence_folder, write_semantickitti

    spec, chosen = CameraSpec(375, 1242) if camera else None, described(told(sensor), columns)
    for number in range(drives):
        sequence_folder(out, number)  # before any work
    for number in range(drives):
        found = drive(family, first + number, chosen, seed=seed, camera=spec, sweeps=frames)
        folder = write_semantickitti(out, number, found[::-1])
        points = sum(len(frame.scan) for frame in found)
        if json_:
            typer.echo(json.dumps({"folder": str(folder), "frames": frames, "points": points}))
        else:
            typer.echo(f"{folder}: {frames} frames, {points:,} points")


COMMANDS: dict[str, Callable[..., Any]] = {"detect": detect, "segment": segment, "simulate": simulate}
