"""From what one has to a recipe, and from there to a run. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from ..runtime.discovery import modality, modality_names
from ..runtime.errors import UserError
from ..runtime.progress import console
from .commands import starting
from .shown import show_findings, show_report

Modality = Annotated[
    str,
    typer.Argument(
        metavar="MODALITY", help=f"One of {', '.join(modality_names())}.", autocompletion=starting(modality_names)
    ),
]
Teacher = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="A saved teacher, or logits that one wrote; without, one is trained."),
]
Data = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER", help="What to learn from: a folder, a file, or the name of a data set that needs none."
    ),
]
Small = Annotated[bool, typer.Option("--small", help="A small student and few steps.")]
Medium = Annotated[bool, typer.Option("--medium", help="The default.")]
Large = Annotated[bool, typer.Option("--large", help="A large student and many steps.")]
LikeModel = Annotated[
    str | None, typer.Option("--like", metavar="MODEL", help="The student: a model's name, or a saved one's folder.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]


def new(
    modality_: Modality,
    file: Annotated[Path | None, typer.Argument(help="Where to write it; else MODALITY.yaml; - is the screen.")] = None,
    teacher: Teacher = None,
    data: Data = None,
    small: Small = False,
    medium: Medium = False,
    large: Large = False,
    like: LikeModel = None,
    device: Device = "auto",
) -> None:
    """Write a complete, commented recipe: of your teacher and your data, or one to start from.

    With --teacher or --data both are looked at, and every choice has a comment
    that says what it was read from. A few steps are tried, so that the recipe's
    head can say what it takes here. What is missing or contradictory is a line
    each, with what to do, and nothing is written.

    Example: xmodal-kd new speech mine.yaml --teacher my_wav2vec2 --data my_recordings --small
    """
    path = file or Path(f"{modality_}.yaml")
    size = _size(small, medium, large)
    if teacher is None and data is None:
        if size or like:
            raise UserError(
                "a student's size is chosen for data: give --data FOLDER, and --teacher FOLDER if you have one"
            )
        _write_template(modality_, path)
    elif str(path) == "-":
        raise UserError("a recipe of --teacher or --data is tried before it is kept: name a file in the place of -")
    else:
        _draft(modality_, path, teacher, data, size or "medium", like, device)
    if str(path) != "-":
        print(f"{path} is written; next: xmodal-kd check {quote(str(path))}")


def distil(
    modality_: Modality,
    out: Annotated[Path, typer.Option(help="Run folder; the recipe is kept in it as draft.yaml.")],
    teacher: Teacher = None,
    data: Data = None,
    small: Small = False,
    medium: Medium = False,
    large: Large = False,
    like: LikeModel = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the recipe, e.g. train.steps=500."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a stopped run left off.")] = False,
    device: Device = "auto",
    json_: Annotated[bool, typer.Option("--json", help="Print the report as JSON, and no table of checks.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """From a teacher and data to a student in one call: new, check, run.

    Example: xmodal-kd distil diffusion --teacher my_pipeline --data my_images --out runs/mine
    """
    from ..check import check
    from ..recipe.recipe import load
    from ..run.options import Options
    from ..run.run_folder import DRAFT, Opening, refuse_folder
    from ..run.runner import Run

    refuse_folder(out, Opening(resume, False, False, ()))
    path = out / DRAFT
    if not (resume and path.is_file()):
        if path.exists():
            raise UserError(f"{path} is there already: {_run(path, out)} runs it, --out starts another")
        out.mkdir(parents=True, exist_ok=True)
        _draft(modality_, path, teacher, data, _size(small, medium, large) or "medium", like, device, estimate=False)
        findings = check(load(str(path), [*(set_ or ()), f"out={json.dumps(str(out))}"]), device)
        if not json_:
            show_findings(findings)
        if any(finding.status == "fail" for finding in findings):
            _say(f"mend {path}, then: {_run(path, out)}")
            raise typer.Exit(1)
    started = Run(load(str(path), set_ or ()), Options(out, device, resume, quiet=quiet))
    report = started.execute()
    if json_ and started.main:
        print(json.dumps(report))
    elif report:
        show_report(report, out)


#: By name; `cli` adds them to the program.
DRAFTS: Mapping[str, Callable[..., None]] = {"new": new, "distil": distil}


def template(name: str) -> str:
    """The commented recipe that a modality brings as ``template.yaml``. Raises `UserError` where there is none."""
    [folder, *_] = modality(name).__path__
    path = Path(folder) / "template.yaml"
    if not path.is_file():
        raise UserError(f"modality {name!r} brings no template.yaml: start from one of: xmodal-kd list recipes")
    return path.read_text(encoding="utf-8")


def _write_template(name: str, path: Path) -> None:
    text = template(name)
    if str(path) == "-":
        print(text, end="")
        return
    try:
        with path.open("x", encoding="utf-8") as out:
            out.write(text.replace("THIS_FILE", str(path)).replace("<name>", path.stem))
    except FileExistsError:
        raise UserError(f"{path} is there already: name another file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}: name another file") from None


def _draft(
    name: str, path: Path, teacher: Path | None, data: Path | None, size: str, like: str | None, device: str,
    estimate: bool = True,
) -> None:  # fmt: skip
    """Write a recipe of what there is and say what is odd; or say what is in its way, a line each, and stop."""
    from ..draft import Unfit, draft

    try:
        for line in draft(name, path, teacher, data, size, like, device, estimate):
            _say(line)
    except Unfit as unfit:
        for problem in unfit.problems:
            _say(f"error: {' '.join(problem.split())}")
        raise typer.Exit(2) from None


def _size(small: bool, medium: bool, large: bool) -> str | None:
    asked = [name for name, wanted in (("small", small), ("medium", medium), ("large", large)) if wanted]
    if len(asked) > 1:
        raise UserError(f"--{asked[0]} and --{asked[1]}: choose one of --small, --medium and --large")
    return asked[0] if asked else None


def _run(recipe: Path, out: Path) -> str:
    """A command to copy, whatever letters are in the names."""
    return f"xmodal-kd run {quote(str(recipe))} --out {quote(str(out))}"


def _say(text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
