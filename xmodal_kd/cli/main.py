"""The program ``xmodal-kd``: errors are one line, status 0 done, 1 a failed run or check, 2 bad input, 130 Ctrl-C."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import __version__
from ..runtime.discovery import shipped
from ..runtime.errors import RunError, UserError, with_page
from ..runtime.progress import console
from .commands import COMMANDS, modality_commands, starting
from .drafts import distil, new
from .hub import COMMANDS as HUB
from .shown import show_findings, show_report
from .standard import NobodyReads, Output, open_closed
from .watching import COMMANDS as WATCHING

app = typer.Typer(
    name="xmodal-kd", no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Knowledge distillation across modalities: train a compact student and prove what its teacher added.",
    epilog="Start with: xmodal-kd run smoke/images --out runs/first",
)  # fmt: skip

RecipeName = Annotated[
    str,
    typer.Argument(
        help="A recipe file, or the name of a shipped one (see: list recipes).", autocompletion=starting(shipped)
    ),
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the recipe, e.g. train.steps=500. Repeatable."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
RunFolder = Annotated[Path, typer.Argument(help="The folder of a run.")]
Imports = Annotated[
    list[str] | None,
    typer.Option("--allow-import", metavar="PACKAGE", help="Let the recipe name classes of this package."),
]

Hooks = Annotated[
    list[str] | None,
    typer.Option("--allow-hook", metavar="NAME", help="Let the recipe's 'on' tell this host, or start this command."),
]


@app.callback(invoke_without_command=True)
def options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks instead of one-line errors.")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


@app.command()
def run(
    recipe: RecipeName,
    set_: Sets = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; else the recipe's out, else runs/<name>.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where a stopped run left off, to the same bit.")
    ] = False,
    only: Annotated[str | None, typer.Option(help="'teacher': train the teacher and stop.")] = None,
    device: Device = "auto",
    max_minutes: Annotated[
        float | None, typer.Option(min=0, help="Stop with a checkpoint after so many minutes; --resume goes on.")
    ] = None,
    accept_changes: Annotated[
        bool,
        typer.Option("--accept-changes", help="Resume though teachers or samples have changed; the report says so."),
    ] = False,
    hash_data: Annotated[
        bool, typer.Option("--hash-data", help="Know samples by content, not by size and time (small data always are).")
    ] = False,
    allow_import: Imports = None,
    no_export: Annotated[
        bool, typer.Option("--no-export", help="Save the student alone; xmodal-kd export exports and measures it.")
    ] = False,
    allow_hook: Hooks = None,
    json_: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Train teacher (where the recipe trains one), control and student; evaluate, report, export.

    Example: xmodal-kd run speech/fsdd --set data.path=recordings --set train.steps=500 --out runs/mine
    """
    from ..recipe.recipe import load
    from ..run.alerts import allowed_hooks
    from ..run.options import Options
    from ..run.runner import Run

    _allow(allow_import)
    allowed_hooks.update(allow_hook or ())
    if only not in (None, "teacher"):
        raise UserError(f"--only {only!r}: 'teacher' is the only part that can run alone")
    loaded = load(recipe, set_ or ())
    folder = out or loaded.recipe.out or Path("runs") / loaded.source.stem
    options_ = Options(folder, device, resume, only, max_minutes, quiet, accept_changes, hash_data, not no_export)
    started = Run(loaded, options_)
    report = started.execute()
    if json_ and started.main:
        print(json.dumps(report))
    elif report:
        show_report(report, folder)


@app.command()
def check(
    recipe: RecipeName,
    set_: Sets = None,
    gate: Annotated[
        bool, typer.Option("--gate", help="Also measure the saved teacher against the metric that it declares.")
    ] = False,
    bad: Annotated[
        Path | None,
        typer.Option(help="Write the names of samples that cannot be read; data.skip=FILE leaves them out."),
    ] = None,
    device: Device = "auto",
    allow_import: Imports = None,
    json_: AsJson = False,
) -> None:
    """Look for what would spoil a run, on real batches, before it starts. Status 1 if anything fails."""
    from ..check import check as run_checks
    from ..recipe.recipe import load

    _allow(allow_import)
    findings = run_checks(load(recipe, set_ or ()), device, gate, bad)
    if json_:
        print(json.dumps([finding.to_json() for finding in findings]))
    else:
        show_findings(findings)
    if any(finding.status == "fail" for finding in findings):
        raise typer.Exit(1)


@app.command()
def compare(
    recipe: RecipeName,
    methods: Annotated[
        str | None,
        typer.Option(
            help="Arms, comma-separated. LOSS, LOSS@MODULE or LOSS@MODULE=WEIGHT puts that loss, with its defaults, in "
            "the place of all terms that need the teacher: kd, kd=0.3, hint@encoder.3, at@encoder.3/blocks.7 "
            "(student/teacher), a+b for several modules. Or the name of a method, which keeps of method.params what "
            "both know; or 'recipe', the recipe as it is."
        ),
    ] = None,
    axis: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=V1,V2", help="Arms by values of a key, e.g. train.ema=0.9,0.99. Repeatable: product."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each arm, counted from the recipe's seed.")] = 3,
    set_: Sets = None,
    out: Annotated[Path | None, typer.Option(help="Folder of all cells; else runs/compare-<name>.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Cells at once, each a process with the recipe's threads.")] = 1,
    reference: Annotated[str | None, typer.Option(help="Arm to compare with, beside the control; else kd.")] = None,
    teacher_per_seed: Annotated[bool, typer.Option("--teacher-per-seed", help="Else one teacher for all.")] = False,
    search: Annotated[
        str | None, typer.Option(metavar="weight=W1,W2", help="Choose each loss's weight on dev before.")
    ] = None,
    search_steps: Annotated[int | None, typer.Option(min=1, help="Of each search run; else train.steps.")] = None,
    search_seed: Annotated[int | None, typer.Option(min=0, help="Not a measured one; else the first + 1000.")] = None,
    equal: Annotated[str, typer.Option(help="What the arms share with the control: steps, or time.")] = "steps",
    launcher: Annotated[str, typer.Option(help="process, or ray: on RAY_ADDRESS, else here.")] = "process",
    dry_run: Annotated[
        str | None,
        typer.Option(metavar="KIND", help="Print what would run: cells (commands), slurm or kubernetes (their jobs)."),
    ] = None,
    export: Annotated[bool, typer.Option("--export", help="Export every student, as run does.")] = False,
    device: Device = "auto",
    allow_import: Imports = None,
    json_: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Compare methods, losses or settings by seeds, beside the control: intervals, verdicts, cost.

    The control is always an arm; what is finished is reused, so the same command goes on where it was stopped. The
    student of a cell is saved, not exported: xmodal-kd export CELL does that.

    Example: xmodal-kd compare speech/fsdd --methods kd,dist,hint@body --seeds 3 --jobs 2 --out runs/losses
    """
    from ..compare.command import main

    _allow(allow_import)
    main(
        recipe, set_ or (), out, methods=methods, axes=axis or (), seeds=seeds, jobs=jobs, reference=reference,
        teacher_per_seed=teacher_per_seed, search=search, search_steps=search_steps, search_seed=search_seed,
        equal=equal, launcher=launcher, device=device, imports=allow_import or (), json_=json_, quiet=quiet,
        dry_run=dry_run, export=export,
    )  # fmt: skip


@app.command()
def cache(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE | export RECIPE FOLDER | import RECIPE FOLDER | merge FOLDER...",
            help="Fill the recipe's store; write it as a folder of signals; fill it from one; make one of several.",
            autocompletion=starting(shipped),
        ),
    ],
    set_: Sets = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder; else the recipe's out, else runs/<name>. Of merge: the folder.")
    ] = None,
    shard: Annotated[str | None, typer.Option(metavar="I/N", help="Only part I, from 0, of N of the samples.")] = None,
    on_missing: Annotated[str | None, typer.Option(help="Of import: error, skip or compute.")] = None,
    device: Device = "auto",
    allow_import: Imports = None,
    json_: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Run the teacher once over all that the student will see, and store its signals; a kill costs a second of it.

    The section cache of the recipe says where and how (of a recipe without one: cache={}, all defaults). The run that
    reads them is the same command with run, and --resume where it is the same folder.

    Example: xmodal-kd cache speech/fsdd --set data.path=recordings --set cache={top_k: 4} --out runs/mine

    On several machines: xmodal-kd cache export RECIPE part0 --shard 0/2, the same for 1/2, then xmodal-kd cache merge
    part0 part1 --out all, and run the recipe with --set "cache={signals: all}".
    """
    from .cache import act

    _allow(allow_import)
    found, lines = act(words, set_ or (), out, device, quiet, shard, on_missing)
    print(json.dumps(found) if json_ else "\n".join(lines))


@app.command("eval")
def evaluate(
    folder: RunFolder,
    split: Annotated[str, typer.Option(help="train, dev or test.")] = "test",
    device: Device = "auto",
    allow_import: Imports = None,
    json_: AsJson = False,
) -> None:
    """Measure the roles of a run again."""
    from ..run.rerun import evaluate_again

    _allow(allow_import)
    found = evaluate_again(folder, split, device)
    if json_:
        print(json.dumps(found))
    else:
        for role, metrics in found.items():
            print(f"{role}\t{_plain(metrics)}")


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="The folder of a run; with --index one that holds runs.")],
    index: Annotated[bool, typer.Option("--index", help="Write index.html, which compares the runs below.")] = False,
    show: Annotated[
        bool,
        typer.Option("--show", help="Take what the page shows (sound, samples, clouds) from the models anew."),
    ] = False,
    allow_import: Imports = None,
    json_: AsJson = False,
) -> None:
    """Show a finished run, and write its report.md and report.html anew."""
    from .. import report as reports

    _allow(allow_import)
    if index:
        found = reports.write_index(folder)
        print(json.dumps({"index": str(found)})) if json_ else reports.show_runs(folder, found)
        return
    if show:
        from ..run.rerun import show_again

        show_again(folder)
    content = reports.rewrite(folder)
    print(json.dumps(content) if json_ else reports.markdown(content))


@app.command()
def export(folder: RunFolder, set_: Sets = None, allow_import: Imports = None, json_: AsJson = False) -> None:
    """Export the student of a finished run again, and measure what was exported.

    Example: xmodal-kd export runs/mine --set data.onnx=true
    """
    from ..run.rerun import export_again

    _allow(allow_import)
    found = export_again(folder, set_ or [])
    if json_:
        print(json.dumps(found))
    else:
        for name, entry in found.items():
            print(f"{name}\t{_plain(entry)}")


def _plain(values: Mapping[str, Any]) -> str:
    """Numbers, with their intervals, and words on one line; of a ``metrics`` table, what is in it."""
    flat = {**values, **values.get("metrics", {})}

    def said(key: str, value: object) -> str:
        number = f"{value:.4f}" if isinstance(value, float) else f"{value}"
        match flat.get(f"{key}_interval"):
            case [float() | int() as low, float() | int() as high]:
                return f"{key} {number} [{low:.4f}, {high:.4f}]"
        return f"{key} {number}"

    told = {k: v for k, v in flat.items() if not isinstance(v, dict | list) and not k.endswith("_interval_over")}
    return "  ".join(said(key, value) for key, value in told.items())


def _allow(packages: list[str] | None) -> None:
    from ..runtime.registry import allowed_imports

    allowed_imports.update(packages or ())
    if packages and "" not in sys.path:
        sys.path.append("")  # last: what lies in the current folder stands in for no installed package


_VERBS: list[tuple[str, Callable[..., None]]] = [("new", new), ("distil", distil)]
for _verb, _function in (
    *_VERBS, *COMMANDS.items(), *WATCHING.items(), *HUB.items(), *modality_commands(),
):  # fmt: skip
    app.command(_verb)(_function)


def main(arguments: list[str] | None = None) -> None:
    """Entry point: `arguments` as of a shell; exits with the status."""
    open_closed()
    sys.stdout = Output(sys.stdout)
    sys.exit(call(sys.argv[1:] if arguments is None else arguments))


def call(arguments: list[str]) -> int:
    """Run a command line and return its exit status; errors are one line on stderr."""
    from ..runtime.interrupt import Interrupted

    if "--debug" in arguments:
        arguments = ["--debug", *(a for a in arguments if a != "--debug")]
    try:
        status = int(app(arguments, standalone_mode=False) or 0)
        sys.stdout.flush()  # here, where a full disk is still said
        return status
    except Interrupted as stopped:
        _line(f"{stopped}; a checkpoint is there: the same command with --resume goes on")
        return 130 if stopped.reason == "interrupted" else 0
    except KeyboardInterrupt:
        _line("interrupted; --resume goes on from the last checkpoint")
        return 130
    except UserError as error:
        return _failed(error, 2, arguments)
    except RunError as error:
        return _failed(error, 1, arguments)
    except typer.Exit as leave:
        return int(leave.exit_code)
    except NobodyReads:
        return NobodyReads.status
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # click's usage errors
            _line(f"error: {error.format_message()} (see --help)")
            return 2
        from ..runtime.failures import explained

        told = error if "--debug" in arguments else explained(error) or error
        return _failed(told, 2 if isinstance(told, UserError) else 1, arguments)


def _failed(error: Exception, status: int, arguments: list[str]) -> int:
    if "--debug" in arguments:
        raise error
    kind = "" if isinstance(error, UserError | RunError) else f"{type(error).__name__}: "
    text = with_page(error) if isinstance(error, UserError) else " ".join(str(error).split())
    _line(f"error: {kind}{text}" + ("" if isinstance(error, UserError | RunError) else " (--debug shows where)"))
    return status


def _line(text: str) -> None:
    plain = text.encode("utf-8", "backslashreplace").decode()  # a recipe may hold characters that no terminal shows
    console.print(plain, highlight=False, markup=False, soft_wrap=True)


__all__ = ["app", "call", "main"]
