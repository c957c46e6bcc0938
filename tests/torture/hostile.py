"""Folders that something happened to, or that somebody made up: each command ends as promised, or goes on soundly."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .kills import Baseline, arguments
from .processes import command
from .recipes import BOMB, VALUES, paths

DEEP = "[" * 5000 + "]" * 5000
#: Files of a run whose loss costs that loss and nothing else.
MAY_GO = ("log.jsonl", "report.md", "report.html", "events.out", "panels.json", "report.json", "README.md")


def damaged(draw: random.Random, base: Baseline, out: Path) -> tuple[str, str | None]:
    """Do something to a copy of a finished or half-finished run, then use it. Returns what, and what fell short."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(base.out, out)
    whole = draw.random() < 0.4
    if not whole:  # as if the student's training had been stopped
        _stop(out, draw)
    file = draw.choice(sorted(path for path in out.rglob("*") if path.is_file()))
    name, way = file.relative_to(out).as_posix(), draw.choice(WAYS)
    said_ = f"{base.recipe.rpartition('/')[2]}: {name} {way.__name__.strip('_')}"
    way(draw, file)
    verb = draw.choice(["resume", "resume", "accept", "report", "index", "eval", "export", "diff"])
    words = {
        "resume": arguments(base.recipe, base.sets, out, "--resume"),
        "accept": arguments(base.recipe, base.sets, out, "--resume", "--accept-changes"),
        "report": ["report", str(out)], "index": ["report", "--index", str(out.parent)],
        "eval": ["eval", str(out), "--allow-import", "toy", "--device", "cpu"],
        "export": ["export", str(out), "--allow-import", "toy"], "diff": ["diff", str(base.out), str(out)],
    }  # fmt: skip
    said = command(words[verb], seconds=200)
    what = f"{said_}, then {verb}"
    if (short := said.short()) is not None:
        return what, f"{short} | {said.errors[-200:]}"
    if verb in ("resume", "accept") and said.status == 0:
        return what, _sound(base, out, file, verb)
    return what, None


def _sound(base: Baseline, out: Path, file: Path, verb: str) -> str | None:
    """What went on must end with the undisturbed bytes, or say what had changed."""
    different = base.difference(out)
    told = json.loads((out / "report.json").read_text())["changes"]
    if different is None or told:
        return None
    alone = different.split()[0] == file.relative_to(out).as_posix()
    return None if alone and file.name.startswith(MAY_GO) else f"went on without a word: {different}"


def _stop(out: Path, draw: random.Random) -> None:
    """Take away what a run does last."""
    from xmodal_kd.run.run_folder import read_state, write_state

    state = read_state(out)
    last = draw.choice(["student", "control", "report"])
    for role in ("control", "student") if last == "control" else ("student",) if last == "student" else ():
        if state["roles"].pop(role, None) is not None:
            shutil.rmtree(out / role, ignore_errors=True)
            steps = sorted((out / "checkpoints" / role).glob("step-*"))
            if len(steps) > 1:
                shutil.rmtree(steps[-1])
    state.pop("overview", None)
    write_state(out, state)
    for name in ("report.json", "report.md", "report.html", "panels.json"):
        (out / name).unlink(missing_ok=True)


# ---------------------------------------------------------------- what happens to a file


def _flipped(draw: random.Random, file: Path) -> None:
    content = bytearray(file.read_bytes())
    for _ in range(draw.randint(1, 3) if content else 0):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    file.write_bytes(content)


def _cut(draw: random.Random, file: Path) -> None:
    size = file.stat().st_size
    os.truncate(file, draw.randrange(size) if size else 0)


def _emptied(draw: random.Random, file: Path) -> None:
    file.write_bytes(b"")


def _gone(draw: random.Random, file: Path) -> None:
    file.unlink()


def _folder_gone(draw: random.Random, file: Path) -> None:
    shutil.rmtree(file.parent)


def _a_folder(draw: random.Random, file: Path) -> None:
    file.unlink()
    file.mkdir()


def _a_pipe(draw: random.Random, file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def _a_link_to_itself(draw: random.Random, file: Path) -> None:
    file.unlink()
    file.symlink_to(file.name)


def _a_device(draw: random.Random, file: Path) -> None:
    file.unlink()
    file.symlink_to(draw.choice(["/dev/zero", "/dev/null", "/dev/full"]))


def _another(draw: random.Random, file: Path) -> None:
    """Another file of the folder in its place."""
    others = [path for path in file.parent.rglob("*") if path.is_file() and path != file]
    if others:
        shutil.copy(draw.choice(others), file)


def _text(draw: random.Random, file: Path) -> None:
    file.write_text(
        draw.choice(["", "{}", "[]", "null", "3", '"x"', DEEP, BOMB, "{" * 3000, "\x00", "NaN", "{}\n" * 50])
    )


def _garbage(draw: random.Random, file: Path) -> None:
    file.write_bytes(draw.randbytes(draw.randint(1, 5000)))


def _mutated(draw: random.Random, file: Path) -> None:
    """A value of a JSON file is another; of other files a byte."""
    try:
        content: Any = json.loads(file.read_bytes())
        places = list(paths(content))
    except ValueError:
        places = []
    if not places:
        return _flipped(draw, file)
    for _ in range(draw.randint(1, 3)):
        at = draw.choice(places)
        try:
            place = content
            for key in at[:-1]:
                place = place[key]
            if draw.random() < 0.3:
                del place[at[-1]]
            else:
                place[at[-1]] = draw.choice(VALUES)
        except (KeyError, IndexError, TypeError):
            continue
    file.write_text(json.dumps(content))
    return None


WAYS: tuple[Callable[[random.Random, Path], None], ...] = (
    _flipped, _flipped, _cut, _cut, _emptied, _gone, _folder_gone, _a_folder, _a_pipe, _a_link_to_itself, _a_device,
    _another,
    _text, _garbage, _mutated, _mutated, _mutated, _mutated,
)  # fmt: skip
