"""The images modality's own command. Nothing heavy is imported before it runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.progress import console, each, named


def classify(
    student: Annotated[Path, typer.Argument(help="Folder of a saved student: it holds card.json and its weights.")],
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGE...", help="Image files, and folders, which are searched for images at any depth."
        ),
    ],
    top: Annotated[int, typer.Option(min=1, help="Classes named of each image, the most probable first.")] = 1,
    fit: Annotated[
        bool,
        typer.Option("--fit", help="Bring images of another size or other colours to what the student sees."),
    ] = False,
    json_: Annotated[
        bool, typer.Option("--json", help="One JSON object a line: path, class, probability, probabilities.")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "cpu",
) -> None:
    """Name the class of images, as "path<TAB>class<TAB>probability" lines.

    An image that cannot be read is named on standard error, the rest are classified, and the exit status is 2.

    Example: xmodal-kd classify runs/images-digits/student pictures/ --fit --top 3
    """
    from xmodal_kd.runtime.device import make_accelerator

    from .classify import ImageClassifier

    errors, found, failed = console, list(_files(images)), False
    classifier = ImageClassifier(student, str(make_accelerator(device, "fp32").device))
    for path in each(found, "classifying", errors):
        try:
            if isinstance(path, UserError):
                raise path
            said = classifier.classify(path, fit=fit)
        except UserError as error:
            text = str(error) if isinstance(path, UserError) else named(path, error)
            errors.print(text, style="red", soft_wrap=True, markup=False, highlight=False)
            failed = True
            continue
        typer.echo(_json(path, said) if json_ else _line(path, said, top))
    if failed:
        raise typer.Exit(2)


def _json(path: Path, said: dict[str, float]) -> str:
    name, probability = next(iter(said.items()))
    content = {"path": str(path), "class": name, "probability": probability, "probabilities": said}
    return json.dumps(content, ensure_ascii=False)


def _line(path: Path, said: dict[str, float], top: int) -> str:
    return "\t".join([str(path), *(f"{name}\t{p:.3f}" for name, p in list(said.items())[:top])])


def _files(images: Iterable[Path]) -> Iterator[Path | UserError]:
    """The files named, and those in the folders named, in order. A missing one is left for the reader to complain."""
    from xmodal_kd.adapter.images.stores import Folder

    for path in images:
        if not path.is_dir():
            yield path
            continue
        try:
            yield from (path / name for name in Folder(path).names)
        except UserError as error:
            yield error


COMMANDS: dict[str, Callable[..., Any]] = {"classify": classify}
