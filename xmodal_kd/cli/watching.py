"""Commands that look at runs, behind their options; none of them loads torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from ..runtime.errors import UserError

#: Runs on one page.
MOST = 12


def watch(
    folders: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Folders of runs, or folders that hold runs.")
    ],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of 127.0.0.1; else one that is free.")] = 0,
    once: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the page as it is now to FILE, and serve nothing.")
    ] = None,
) -> None:
    """Show runs in a browser while they learn: one page that grows, at 127.0.0.1 alone. Ctrl-C ends it.

    Loss terms and the metric on dev with its best, control and student over each other, time left, memory, and what
    the modality shows: what is heard, seen or sampled at one evaluation after another. It reads files and touches
    nothing, so that a finished run, a killed one and one of another person (of whom it believes nothing: all text is
    escaped) can be looked at alike, as long as the folder can be read. From another machine:
    ssh -L 8000:127.0.0.1:8000 MACHINE, and --port 8000 there.

    Example: xmodal-kd watch runs/mine
    Example: xmodal-kd watch runs/mine --once mine.html
    """
    from ..runtime.whole_files import write_bytes
    from ..watch.page import whole
    from ..watch.server import Server, Shown

    shown = found(folders)
    if once is not None:
        write_bytes(once, whole(shown, Shown(shown).parts()).encode("utf-8", "backslashreplace"))
        print(f"{once} is written")
        return
    with Server(shown, port) as server:
        print(f"{server.address}  shows {', '.join(map(str, shown))}; Ctrl-C ends it", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return


def found(places: Sequence[Path]) -> list[Path]:
    """The runs that are named, and those that lie in folders that are.

    Raises:
        UserError: there is none, or there are more than a page has room for.
    """
    from ..runtime.run_status import is_run

    folders: dict[Path, None] = {}
    for place in places:
        inside = [place] if is_run(place) else sorted(one for one in place.glob("*/") if is_run(one))
        if not inside:
            raise UserError(f"{place}: no run is there" + (" (nor in its folders)" if place.is_dir() else ""))
        folders |= dict.fromkeys(inside)
    if len(folders) > MOST:
        raise UserError(f"{len(folders)} runs are too many for one page: name at most {MOST} (all: xmodal-kd runs)")
    return list(folders)


def runs(
    folder: Annotated[Path, typer.Argument(help="Where runs lie, at any depth.")] = Path("runs"),
    where: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Which are meant: comparisons (= != < <= > >=) joined by and / or."),
    ] = None,
    sort: Annotated[str | None, typer.Option(metavar="KEY", help="By which they stand; else by their folder.")] = None,
    reverse: Annotated[bool, typer.Option("--reverse", help="The largest first.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Machine-readable output, with every key.")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="The same as a comma-separated table.")] = False,
) -> None:
    """List runs: what each reaches on test, gains over its control, costs, and what it is in.

    A state is running, finished, failed, stopped (a checkpoint is there) or killed. Keys of --where and --sort are
    run, state, modality, recipe, method, scheme, seed, metric, value (of the student, on test), dev, teacher, control,
    gain, gap_closed, parameters, flops, latency_ms, minutes, steps, and every metric by its name. "and" binds closer
    than "or"; a run that has no such key is not meant.

    Example: xmodal-kd runs runs --where "wer<0.1 and modality=speech" --sort parameters
    Example: xmodal-kd runs --where "state=failed or state=killed"
    """
    from ..report.runs import as_csv, chosen, rows, show

    if json_ and csv:
        raise UserError("--json and --csv: choose one")
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    found = chosen(rows(folder), where, sort, backwards=reverse)
    if json_:
        print(json.dumps(found))
    elif csv:
        print(as_csv(found), end="")
    else:
        show(found)


#: By name; `cli` adds them to the program.
COMMANDS: Mapping[str, Callable[..., None]] = {"watch": watch, "runs": runs}
