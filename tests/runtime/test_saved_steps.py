"""A checkpoint knows its own bytes and whose it is: what was damaged, exchanged or taken away is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.saved_steps import STATE, TENSORS, Checkpoints, Progressed, file_digest


def put(checkpoints: Checkpoints, step: int, **at: Any) -> Path:
    state = {"at": vars(Progressed(total=step, step=step, **at))}
    return checkpoints.save(step, {"w": torch.full((300,), float(step))}, state)


def flip(path: Path, place: int = -3) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def rewrite(path: Path, **changes: Any) -> None:
    """As somebody does who edits a state by hand and leaves the digests out."""
    state = json.loads((path / STATE).read_text())
    state.pop("digests")
    state["at"] |= changes
    (path / STATE).write_text(json.dumps(state))


def test_every_file_is_in_the_digests(tmp_path: Path) -> None:
    path = put(Checkpoints(tmp_path, owner="a"), 3)
    state = json.loads((path / STATE).read_text())
    assert set(state["digests"]) == {name.name for name in path.iterdir()} == {STATE, TENSORS}
    assert state["digests"][TENSORS] == file_digest(path / TENSORS)
    assert state["owner"] == "a"


@pytest.mark.parametrize("name", [STATE, TENSORS])
@pytest.mark.parametrize("how", ["flip", "cut", "empty", "gone", "folder", "other"])
def test_a_damaged_newest_falls_back(name: str, how: str, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    first, last = put(checkpoints, 3), put(checkpoints, 6)
    path = last / name
    if how == "flip":
        flip(path)
    elif how in ("cut", "empty"):
        path.write_bytes(path.read_bytes()[: 40 if how == "cut" else 0])
    elif how == "other":
        shutil.copy(first / name, path)
    else:
        path.unlink()
        if how == "folder":
            path.mkdir()
    incomplete = name == STATE and how in ("gone", "folder")
    found, notes = checkpoints.sound()
    assert found == first and len(notes) == (0 if incomplete else 1)
    if notes:
        assert "step-00000006" in notes[0] and "step-00000003" in notes[0]
        assert (TENSORS if how == "other" else name) in notes[0]
        assert not last.exists()


def test_without_a_sound_one_nothing_is_removed(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (3, 6):
        flip(put(checkpoints, step) / TENSORS)
    with pytest.raises(UserError, match=r"step-00000006: tensors.safetensors is not what was written, and there is no"):
        checkpoints.sound()
    assert len(checkpoints.steps()) == 2


def test_another_trainings_checkpoint_is_named(tmp_path: Path) -> None:
    mine, theirs = Checkpoints(tmp_path / "a", owner="a/student"), Checkpoints(tmp_path / "b", owner="b/student")
    put(mine, 3)
    shutil.copytree(put(theirs, 9), tmp_path / "a" / "step-00000009")
    with pytest.raises(UserError, match=r"step-00000009 is not of this training but of another \(b/student\)"):
        mine.sound()
    assert (tmp_path / "a" / "step-00000009").exists()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"stage": 7}, "stage 8 of a training of 2"),
        ({"stage": -1}, "stage 0 of a training of 2"),
        ({"step": 11}, "step 11 of a stage of 10"),
        ({"total": 99}, "step 99 of all"),
        ({"total": "many"}, "at.total: "),
        ({"evaluations": 3}, "at.evaluations: "),
        ({"best_at": {}}, "at.best_at: "),
    ],
)
def test_a_place_that_is_none(changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    path = put(checkpoints, 3)
    rewrite(path, **changes)
    found, _ = checkpoints.sound()
    assert found == path
    with pytest.raises(UserError, match=told):
        Progressed.read(checkpoints.read(path)[1]["at"], path).check([10, 10], path)


def test_the_best_is_what_it_was(tmp_path: Path) -> None:
    checkpoints, at = Checkpoints(tmp_path), Progressed(total=8, best=0.5, best_at=4)
    checkpoints.save_best({"w": torch.ones(2)}, {"step": 4})
    assert checkpoints.read_best(at)[1] == {"step": 4}
    checkpoints.save_best({"w": torch.ones(2)}, {"step": 10})  # a kill came before its checkpoint
    assert checkpoints.read_best(at)[1] == {"step": 10}
    checkpoints.save_best({"w": torch.ones(2)}, {"step": 2})
    with pytest.raises(UserError, match="is of step 2, the best was at step 4"):
        checkpoints.read_best(at)
    flip(checkpoints.best() / TENSORS)
    with pytest.raises(
        UserError, match=r"best is damaged: tensors.safetensors is not what was written.*--accept-chang"
    ):
        checkpoints.read_best(at)
    shutil.rmtree(checkpoints.best())
    with pytest.raises(UserError, match=r"best is gone, the best weights \(of step 4\).*--accept-changes"):
        checkpoints.read_best(at)
