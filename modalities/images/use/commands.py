"""The images modality's own commands. Nothing heavy is imported before they run."""

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

    classifier = ImageClassifier(student, str(make_accelerator(device, "fp32").device))

    def lines(path: Path) -> Iterator[str]:
        said = classifier.classify(path, fit=fit)
        yield _json(path, said) if json_ else _line(path, said, top)

    _of_each(images, "classifying", lines)


def keypoints(
    student: Annotated[Path, typer.Argument(help="Folder of a saved student of the task keypoints.")],
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGE...", help="Image files, and folders, which are searched for images at any depth."
        ),
    ],
    boxes: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="COCO's annotations: a figure in each bbox; without, one fills the image."),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "cpu",
) -> None:
    """Find the joints of figures: one JSON object a line for each figure.

    It has path, figure (the annotation's id, or 0), box (left, top, width, height)
    and joints: of each by name x, y (pixels of the image) and score, the height of
    its heat map. An image that cannot be read is named on standard error, the rest
    are looked at, and the exit status is 2.

    Example: xmodal-kd keypoints runs/images-keypoints/student pictures/ > joints.jsonl
    """
    from xmodal_kd.runtime.device import make_accelerator

    from .keypoints import KeypointFinder, boxes_of, in_image

    held = None if boxes is None else boxes_of(boxes)
    finder = KeypointFinder(student, str(make_accelerator(device, "fp32").device))

    def lines(path: Path) -> Iterator[str]:
        for figure in finder.find(path, None if held is None else in_image(path, held)):
            joints = {name: {"x": x, "y": y, "score": score} for name, (x, y, score) in figure.joints.items()}
            content = {"path": str(path), "figure": figure.number, "box": figure.box, "joints": joints}
            yield json.dumps(content, ensure_ascii=False)

    _of_each(images, "looking", lines)


def restore(
    student: Annotated[Path, typer.Argument(help="Folder of a saved student of the task restoration.")],
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGE...", help="Image files, and folders, which are searched for images at any depth."
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where restored images are written, as PNG files.")],
    fit: Annotated[bool, typer.Option("--fit", help="Bring images of other colours to what the student sees.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "cpu",
) -> None:
    """Enlarge images, or take their noise away, as the student has learnt it.

    Images may be of any size: large ones are made tile by tile, without seams. A
    line for each, "path<TAB>written file", is printed. An image that cannot be read
    is named on standard error, the rest are restored, and the exit status is 2.

    Example: xmodal-kd restore runs/images-restoration/student pictures/ --out restored
    """
    from xmodal_kd.runtime.device import make_accelerator
    from xmodal_kd.runtime.whole_files import writable, write_bytes

    from .restore import ImageRestorer, as_png, placed

    writable(out, "--out")
    restorer = ImageRestorer(student, str(make_accelerator(device, "fp32").device))
    places = placed(images, out)

    def lines(path: Path) -> Iterator[str]:
        place = places[path]
        if isinstance(place, UserError):
            raise place
        write_bytes(place, as_png(restorer.restore(path, fit=fit)), lasting=False)
        yield f"{path}\t{place}"

    _of_each(images, "restoring", lines)


def _of_each(images: Iterable[Path], doing: str, lines: Callable[[Path], Iterable[str]]) -> None:
    """Print what is said of each image; one that cannot be read costs a line on standard error and the exit status."""
    errors, found, failed = console, list(_files(images)), False
    for path in each(found, doing, errors):
        try:
            if isinstance(path, UserError):
                raise path
            said = list(lines(path))
        except UserError as error:
            text = str(error) if isinstance(path, UserError) else named(path, error)
            errors.print(text, style="red", soft_wrap=True, markup=False, highlight=False)
            failed = True
            continue
        for line in said:
            typer.echo(line)
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


COMMANDS: dict[str, Callable[..., Any]] = {"classify": classify, "keypoints": keypoints, "restore": restore}
