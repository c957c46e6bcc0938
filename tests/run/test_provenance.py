"""A run knows what it was made from: what has changed is named, what decides nothing is let through."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from toy import RECIPE

from xmodal_kd.cli.main import call
from xmodal_kd.recipe.recipe import Loaded, load
from xmodal_kd.run import provenance
from xmodal_kd.run.run_folder import RECIPE as WRITTEN
from xmodal_kd.run.run_folder import STATE, Opening, open_run, read_state, write_state
from xmodal_kd.runtime.errors import UserError

SPEECH = """\
modality: speech
data: {{sources: manifest, path: {path}}}
teacher: {{path: {teacher}}}
student: {{model: conv}}
objective: [{{loss: ctc}}, {{loss: kd}}]
train: {{steps: 10}}
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder of recordings, a saved teacher and a recipe; nothing of it is ever trained."""
    (tmp_path / "data").mkdir()
    (tmp_path / "saved").mkdir()
    for name in ("train", "dev", "test"):
        (tmp_path / "data" / f"{name}.jsonl").write_text(f'{{"audio_filepath": "{name}.wav", "text": "a"}}\n')
        (tmp_path / "data" / f"{name}.wav").write_bytes(name.encode() * 40)
    (tmp_path / "saved" / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "saved" / "card.json").write_text('{"format": 1, "metrics": {"wer": 0.5}}')
    return tmp_path


def recipe(place: Path, *sets: str, data: str = "data", teacher: str = "saved") -> Loaded:
    (place / "recipe.yaml").write_text(SPEECH.format(path=place / data, teacher=place / teacher))
    return load(str(place / "recipe.yaml"), sets)


def opened(place: Path, loaded: Loaded, teacher: str = "saved", **more: Any) -> dict[str, Any]:
    how = Opening(
        **{"resume": True, "accept": False, "hash_data": False, "loaded": [("teacher", place / teacher)], **more}
    )
    state, lock = open_run(place / "run", loaded, how)
    lock.release()
    return state


def test_nothing_has_changed(place: Path) -> None:
    first = opened(place, recipe(place))
    before = {path.name: path.read_bytes() for path in (place / "run").iterdir()}
    assert before.keys() == {STATE, WRITTEN, provenance.FILE}
    assert opened(place, recipe(place)) == first
    assert {path.name: path.read_bytes() for path in (place / "run").iterdir()} == before


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda p: (p / "saved" / "model.safetensors").write_bytes(b"others"),
            "teacher: model.safetensors is not what",
        ),
        (lambda p: (p / "saved" / "card.json").write_text('{"format": 2}'), "teacher: card.json is not what it was"),
        (lambda p: (p / "data" / "dev.wav").write_bytes(b"d"), "data: dev.wav had 120 bytes, has 1"),
        (lambda p: (p / "data" / "dev.wav").write_bytes(b"ved" * 40), "data: dev.wav is another file"),
    ],
)
def test_what_has_changed_is_named_and_may_be_accepted(place: Path, change: Any, told: str) -> None:
    opened(place, recipe(place))
    change(place)
    with pytest.raises(UserError, match=f"{told}.*--accept-changes") as refused:
        opened(place, recipe(place))
    assert "\n" not in str(refused.value)
    state = opened(place, recipe(place), accept=True)
    assert len(state["changes"]) == 1 and told.split(" is ", maxsplit=1)[0] in state["changes"][0]
    assert opened(place, recipe(place)) == state, "what was accepted is known from then on"


def test_what_decides_nothing_is_let_through(place: Path) -> None:
    opened(place, recipe(place))
    (place / "saved" / "card.json").write_text('{"format": 1, "metrics": {"wer": 0.4}, "license": ["x"]}')
    (place / "saved" / "README.md").write_text("more")
    os.utime(place / "data" / "dev.wav", (1, 1))  # known by its content
    opened(place, recipe(place, "train.workers=2", "trackers=[]", "train.optimizer.name=adamw"))
    opened(place, recipe(place, "threads=3"), threads_matter=False)
    with pytest.raises(UserError, match="threads was 3, is 1"):
        opened(place, recipe(place))
    with pytest.raises(UserError, match=r"train\.steps was 10, is 11"):
        opened(place, recipe(place, "train.steps=11", "threads=3"))


def test_data_and_teacher_may_have_moved(place: Path) -> None:
    opened(place, recipe(place))
    shutil.copytree(place / "data", place / "moved" / "here")
    shutil.copytree(place / "saved", place / "elsewhere")
    moved = recipe(place, data="moved/here", teacher="elsewhere")
    assert opened(place, moved, teacher="elsewhere")["fingerprint"] == moved.recipe.fingerprint()
    assert str(place / "moved" / "here") in (place / "run" / WRITTEN).read_text()
    (place / "moved" / "here" / "test.wav").write_bytes(b"")
    with pytest.raises(UserError, match=r"data: test\.wav had 160 bytes, has 0"):
        opened(place, moved, teacher="elsewhere")


def test_many_samples_are_known_by_size_and_time_unless_asked(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "SMALL", 10)
    opened(place, recipe(place))
    assert {known[2] for known in provenance.read(place / "run")["samples"].values()} == {None}
    os.utime(place / "data" / "dev.wav", (1, 1))
    with pytest.raises(UserError, match=r"data: dev\.wav is another file"):
        opened(place, recipe(place))
    shutil.rmtree(place / "run")
    opened(place, recipe(place), hash_data=True)
    os.utime(place / "data" / "dev.wav", (2, 2))
    opened(place, recipe(place))  # the run remembers how it was asked


@pytest.mark.parametrize("name", [STATE, provenance.FILE, WRITTEN])
@pytest.mark.parametrize(
    "text", ["", "[]", '{"roles": 3}', "{", "\x00", '{"fingerprint": "x", "roles": {"student": 3}}']
)
def test_a_damaged_state_is_one_line(place: Path, name: str, text: str) -> None:
    opened(place, recipe(place))
    (place / "run" / name).write_text(text)
    try:
        opened(place, recipe(place, "seed=2" if name == WRITTEN else "seed=1"))
    except UserError as error:
        assert str(place / "run") in str(error) and "\n" not in str(error)
    else:
        pytest.fail("it went on")


def test_an_edited_state_is_refused(place: Path) -> None:
    opened(place, recipe(place))
    path = place / "run" / STATE
    content = json.loads(path.read_text())
    content["roles"]["teacher"] = {}
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"state\.json is not what the run wrote"):
        read_state(place / "run")


def test_a_run_is_locked_while_it_is_open(place: Path) -> None:
    how = Opening(resume=True, accept=False, hash_data=False, loaded=[])
    _, lock = open_run(place / "run", recipe(place), how)
    assert (place / "run" / ".lock").exists()
    (place / "run" / f".x.{os.getpid()}.tmp").write_text("")
    lock.release()
    opened(place, recipe(place))
    assert {path.name for path in (place / "run").iterdir()} == {STATE, WRITTEN, provenance.FILE}


def test_an_older_run_goes_on(place: Path) -> None:
    """One that knew neither what it was made from nor its own digest."""
    opened(place, recipe(place))
    (place / "run" / provenance.FILE).unlink()
    state = {"fingerprint": recipe(place).recipe.fingerprint(), "roles": {}}
    (place / "run" / STATE).write_text(json.dumps(state))
    assert opened(place, recipe(place))["roles"] == {}
    assert provenance.read(place / "run")["samples"]


def test_finished_roles_are_looked_at_and_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A whole run: its teacher's file is exchanged, then its best weights are gone."""
    (tmp_path / "toy.yaml").write_text(RECIPE)
    out = tmp_path / "run"
    words = [
        "run",
        str(tmp_path / "toy.yaml"),
        "--out",
        str(out),
        "--allow-import",
        "toy",
        "--device",
        "cpu",
        "--quiet",
    ]
    words += [word for one in ("trackers=[]", "train.steps=4", "teacher.train.steps=4") for word in ("--set", one)]
    assert call(words) == 0
    assert set(read_state(out)["roles"]["teacher"]["files"]) == {"card.json", "model.safetensors"}
    student = (out / "student" / "model.safetensors").read_bytes()
    state = read_state(out)
    state["roles"] = {role: state["roles"][role] for role in ("teacher", "control")}
    write_state(out, state)
    shutil.copy(out / "control" / "model.safetensors", out / "teacher" / "model.safetensors")
    shutil.rmtree(out / "checkpoints" / "student" / "best")
    capfd.readouterr()
    assert call([*words, "--resume"]) == 2
    assert "teacher, which this run finished: model.safetensors is not what it was" in capfd.readouterr().err
    shutil.copy(out / "student" / "model.safetensors", tmp_path / "kept")
    state["roles"]["teacher"]["files"] = provenance.model_files(out / "teacher")
    write_state(out, state)
    assert call([*words, "--resume"]) == 2, "a teacher of other shapes, or a best that is gone"
    capfd.readouterr()
    assert (out / "student" / "model.safetensors").read_bytes() == student
