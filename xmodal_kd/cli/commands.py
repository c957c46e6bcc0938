"""Commands that train nothing, behind their options. Nothing heavy is imported before one runs."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated

import typer

from ..runtime.discovery import modality, modality_names


def starting(names: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """Answers a shell's Tab: those of `names` that start with what is typed."""
    return lambda incomplete: [name for name in names() if name.startswith(incomplete)]


def diff(
    a: Annotated[Path, typer.Argument(help="The folder of a finished run.")],
    b: Annotated[Path, typer.Argument(help="Another's; differences are B - A.")],
    json_: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> None:
    """What differs between two runs: recipe, versions, metrics by role with intervals, cost.

    Intervals are over test items that both runs have, drawn together: they hold the two trained models fixed and say
    nothing of other seeds (for that: compare).

    Example: xmodal-kd diff runs/fsdd runs/mine
    """
    from ..compare.run_diff import difference, show

    found = difference(a, b)
    if json_:
        print(json.dumps(found))
    else:
        show(found)


def schema() -> None:
    """Print the JSON Schema of recipes, from which editors complete and explain keys.

    An editor with a YAML language server takes it up where a recipe says
    "# yaml-language-server: $schema=recipe.schema.json", as those of the command new do.

    Example: xmodal-kd schema > recipe.schema.json
    """
    from .recipe_schema import recipe_schema

    print(json.dumps(recipe_schema(), indent=1, ensure_ascii=False))


#: What `list` lists.
LISTS = ("losses", "methods", "schemes", "compress", "models", "modalities", "datasets", "recipes")
#: What a table of `list` has room for on a terminal.
SHOWN = ("name", "modality", "summary", "paper", "year")


def list_(
    what: Annotated[str, typer.Argument(help=f"{', '.join(LISTS)}.", autocompletion=starting(lambda: LISTS))],
    needs: Annotated[
        str | None, typer.Option(help="Losses and schemes that need all of these: labels,features; several_teachers.")
    ] = None,
    without: Annotated[str | None, typer.Option(help="Those that need none of these: labels; teacher.")] = None,
    for_: Annotated[
        str | None,
        typer.Option(
            "--for",
            metavar="MODALITY",
            help="What serves, or belongs to, one.",
            autocompletion=starting(modality_names),
        ),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> None:
    """What there is, a line each; --json tells more (of a loss: what it needs, which modalities it serves, parameters).

    Example: xmodal-kd list losses --needs features --without labels --for speech
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from .catalogue import catalogue

    rows = catalogue(what, _words(needs), _words(without), for_)
    if json_:
        print(json.dumps(rows))
        return
    shown = [key for key in rows[0] if key in SHOWN] if rows else ["nothing"]
    table = Table(*shown)
    for row in rows:
        table.add_row(*(escape(str(row[key])) for key in shown))
    Console().print(table)


def _words(text: str | None) -> list[str]:
    return [word.strip() for word in (text or "").split(",") if word.strip()]


def doctor(
    kernels: Annotated[
        bool, typer.Option("--kernels", help="Only call the compiled packages; print what fails and one line.")
    ] = False,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where runs would be written.")] = Path("runs"),
    json_: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> None:
    """Does what is installed work here, and what does this machine offer? One line a check: ok, warning or failed.

    Versions, and what each extra is for. One call of each compiled package
    (torchaudio, torchvision, Open3D, ONNX Runtime and others), apart, so that a
    library which does not fit is a line with the command that mends it. The
    attention kernel that was chosen and why. CPU, GPUs, memory, and the disk of
    the run folder. Status 1 if anything that is installed does not work; what is
    not installed is no failure.

    Example: xmodal-kd doctor --out runs/mine
    """
    from ..doctor.checks import report

    if not report(out, only_kernels=kernels, as_json=json_):
        raise typer.Exit(1)


def modality_commands() -> Iterator[tuple[str, Callable[..., None]]]:
    """Each modality brings its own verbs (``transcribe``); their heavy imports wait until one is used."""
    for name in modality_names():
        path: str | None = getattr(modality(name), "COMMANDS", None)
        if path is not None:
            yield from importlib.import_module(f"xmodal_kd.modalities.{name}.{path}").COMMANDS.items()


#: By name; `cli` adds them to the program.
COMMANDS: Mapping[str, Callable[..., None]] = {"schema": schema, "diff": diff, "list": list_, "doctor": doctor}
