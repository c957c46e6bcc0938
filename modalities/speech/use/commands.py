"""The speech modality's own commands. Nothing heavy is imported before one runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")


def transcribe(
    student: Annotated[
        Path, typer.Argument(help="Folder of an exported student: it holds card.json and its weights or ONNX files.")
    ],
    audio: Annotated[
        list[Path],
        typer.Argument(
            help="Audio files of any sample rate and length, and folders, which are searched for "
            f"{', '.join('*' + suffix for suffix in SUFFIXES)} at any depth."
        ),
    ],
    json_: Annotated[
        bool, typer.Option("--json", help="One JSON object a line: path, text, words with times, duration, rtf.")
    ] = False,
    precision: Annotated[
        Literal["fp32", "int8"], typer.Option(help="int8 is smaller and needs model.int8.onnx in the folder.")
    ] = "fp32",
    beam: Annotated[
        int,
        typer.Option(
            min=0,
            help="Hypotheses kept by beam search; 0 takes the best token of each frame, which is faster and seldom "
            "worse. Needs pip install 'xmodal-kd\\[decode]'.",
        ),
    ] = 0,
) -> None:
    """Write what is said in audio files, as "path<TAB>text" lines.

    A file that cannot be read is named on standard error, the rest are transcribed, and the exit status is 2.
    """
    from xmodal_kd.runtime.errors import UserError

    from .transcribe import Recogniser

    recogniser, errors, failed = Recogniser(student, precision), Console(stderr=True), False
    for path in _progress(list(_files(audio)), errors):
        try:
            result = recogniser.transcribe(path, beam_size=beam)
        except UserError as error:
            if "pip install" in str(error):  # no file is to blame
                raise
            errors.print(_named(path, error), style="red", soft_wrap=True, markup=False, highlight=False)
            failed = True
            continue
        typer.echo(
            json.dumps({"path": str(path)} | result, ensure_ascii=False) if json_ else f"{path}\t{result['text']}"
        )
    if failed:
        raise typer.Exit(2)


def _files(audio: Iterable[Path]) -> Iterator[Path]:
    """The files named, and those in the folders named, in order. A missing one is left for the reader to complain."""
    from xmodal_kd.runtime.errors import UserError

    for path in audio:
        if not path.is_dir():
            yield path
            continue
        found = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        if not found:
            raise UserError(f"{path}: no audio in this folder (looked for {', '.join(SUFFIXES)})")
        yield from found


def _progress(paths: list[Path], console: Console) -> Iterable[Path]:
    """A progress bar on standard error where that is a terminal and there is more than one file."""
    if len(paths) < 2 or not console.is_terminal:
        return paths
    from rich.progress import track

    return track(paths, "transcribing", console=console, transient=True)


def _named(path: Path, error: Exception) -> str:
    text = str(error)
    return text if str(path) in text else f"{path}: {text}"


COMMANDS: dict[str, Callable[..., Any]] = {"transcribe": transcribe}
