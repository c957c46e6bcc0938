"""Ranks that do not see one another's disks: what one folder gives to the bit, after one of them was killed too."""

from __future__ import annotations

import signal
from pathlib import Path

import machine_worker
import pytest
from killed_runs import command, same
from launch import FORKS, PATIENCE, as_rank, meeting, ranks
from toy import RECIPE


def on_two(folder: Path, arguments: list[str], apart: bool = True, checkpoint: str | None = None) -> list[int | None]:
    """Exit codes of two ranks; a rank whose other one is gone is ended, as torchrun does."""
    with meeting() as environments:
        given = (folder, arguments, apart, checkpoint)
        running = [
            FORKS.Process(target=as_rank, args=(environment, machine_worker.run, given)) for environment in environments
        ]
        for process in running:
            process.start()
        running[0].join(PATIENCE)
        if running[0].exitcode:
            running[1].kill()
        running[1].join(PATIENCE)
        return [process.exitcode for process in running]


def test_what_ranks_tell_one_another(tmp_path: Path) -> None:
    with ranks(machine_worker.exchange, tmp_path):
        pass


@pytest.mark.full
@pytest.mark.parametrize("cache", ["", "cache: {view: replay, epochs: 2, top_k: 4}\n"])
def test_a_run_of_machines_with_folders_of_their_own(tmp_path: Path, cache: str) -> None:
    """Killed in the student's training, where teacher and control are done: these, the checkpoint, its best weights and
    the cache are what the second machine has not."""
    recipe = tmp_path / "toy.yaml"
    recipe.write_text(RECIPE + cache)
    told = command(recipe, Path("out"))
    assert on_two(tmp_path / "whole", told, apart=False) == [0, 0]
    folder = tmp_path / "apart"
    killed = on_two(folder, told, checkpoint="out/checkpoints/student/step-00000004")
    assert killed[0] == -signal.SIGKILL
    assert not (folder / "node1" / "out" / "state.json").exists()
    assert on_two(folder, [*told, "--resume"]) == [0, 0]
    same(folder / "node0" / "out", tmp_path / "whole" / "node" / "out")
    left = {path.parts[-2] for path in (folder / "node1" / "out").rglob("*") if path.is_file()}
    assert left == ({"cache", "rank-1"} if cache else set())
