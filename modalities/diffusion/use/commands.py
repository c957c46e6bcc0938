"""The diffusion modality's own commands. Nothing heavy is imported before one runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer


def sample(
    student: Annotated[
        Path,
        typer.Argument(help="A run's student folder, one of its steps-... folders, or a pipeline of diffusers."),
    ],
    steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Sampling steps. A run of progressive distillation has a student for each of its step counts; a "
            "consistency student takes any up to those it was trained on, a teacher any up to its timesteps. "
            "Unless said, what the folder was made for.",
        ),
    ] = None,
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="How many samples.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Of the noise: the same seed gives the same samples.")] = 0,
    label: Annotated[
        str | None,
        typer.Option(help="Name or number of one class. Unless said, a class-conditional model makes all in turn."),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="What the samples shall show, of a model that is prompted by text; several come in turn."),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(
            min=0, help="Scale of classifier-free guidance, 1 for none. Unless said, what the folder was made for."
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="HEIGHTxWIDTH",
            help="Of the images, as 32x48, or 32 for a square: sides that divide by what the network, and its "
            "autoencoder, halve. The further from the size that it was taught, the less its samples are worth. Unless "
            "said, that size.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the samples.")] = Path("samples"),
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the samples of an earlier call in that folder.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    json_: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> None:
    """Draw samples from a diffusion model: a grid, and each image by itself.

    Writes grid.png and images/00000.png, 00001.png, ...; of data that are no images also samples.npz.

    Example: xmodal-kd sample runs/digits/student --steps 4 -n 64 --seed 0 --label 3
    """
    from .sample import IN_GRID, draw

    found = draw(
        student, steps, count, seed, label, out, overwrite=overwrite, device=device, quiet=json_, prompts=prompt or (),
        guidance=guidance, size=size,
    )  # fmt: skip
    if json_:
        typer.echo(json.dumps(found))
        return
    typer.echo(
        f"{found['count']} samples of {found['solver']}, {found['nfe']} network evaluations each, "
        f"{found['milliseconds']:.1f} ms a sample"
    )
    first = f" (the first {IN_GRID})" if found["count"] > IN_GRID else ""
    typer.echo(f"grid: {found['grid']}{first}   images: {found['images']}")
    if "arrays" in found:
        typer.echo(f"arrays: {found['arrays']}")


COMMANDS: dict[str, Callable[..., Any]] = {"sample": sample}
