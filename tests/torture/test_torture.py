"""A small fixed part of ``make torture``, and that it sees what falls short."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest

from torture import hostile, kills, received, recipes
from torture.__main__ import Tally, page
from torture.processes import Said, command, run_of

SEED = 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("torture")


@pytest.fixture(scope="module")
def base(folder: Path) -> kills.Baseline:
    return kills.Baseline.of(kills.toy_recipe(folder), kills.VARIANTS["often"], folder / "base")


def test_malformed_recipes(folder: Path) -> None:
    draw, found, short = random.Random(SEED), recipes.bases(("smoke/speech",), folder), list[str]()
    for number in range(12):
        case = recipes.malformed(draw, found)
        path = folder / f"case-{number}.yaml"
        path.write_bytes(case.text)
        sets = [word for one in case.sets for word in ("--set", one)]
        said = command(run_of(path, folder / f"case-{number}", *sets, "--max-minutes", "0"))
        if (what := said.short()) is not None:
            short.append(f"{case.what}: {what}")
    assert not short


def test_kills(base: kills.Baseline, folder: Path) -> None:
    draw, count = random.Random(SEED), 0
    while count < 3:
        killed, short = kills.killed(draw, base, folder / "killed")
        count += killed
        assert short is None


def test_hostile_folders_and_received_files(base: kills.Baseline, folder: Path) -> None:
    draw = random.Random(SEED)
    found = [hostile.damaged(draw, base, folder / "hostile" / "run") for _ in range(6)]
    found += [received.received(draw, folder / "received") for _ in range(3)]
    assert not [one for one in found if one[1] is not None]


def bare() -> None:
    import rich.markup as module

    def broken(*_: Any, **__: Any) -> None:
        raise KeyError("state")

    module.escape = broken  # type: ignore[assignment]


def dead() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def test_what_falls_short_is_seen() -> None:
    assert command(["list", "losses"]).short() is None
    assert command(["run", "no/such"]) == Said(2, command(["run", "no/such"]).errors, "")
    assert "a bare error: error: KeyError" in str(command(["list", "losses"], bare).short())
    assert command(["list", "losses"], dead).short() == "status -11"
    assert command(["list", "losses"], signal.pause, seconds=3).short() == "it did not end in time"


def test_what_is_written() -> None:
    tally = Tally()
    tally.add("kills", "toy", None, 3)
    tally.add("full disks", "a disk", "status 3")
    text = page(tally, 7, 20.0)
    assert "| kills | 3 | 50 | 0 |" in text and "| full disks | 1 | 8 | 1 |" in text and "a disk: status 3" in text
