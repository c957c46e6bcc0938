"""What a run could die of after hours is refused before anything trains: status 2, one line, no trained role."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import toy
import yaml
from safetensors.torch import load_file

from xmodal_kd.cli.main import call
from xmodal_kd.recipe.recipe import load
from xmodal_kd.run.fingerprints import role_prints
from xmodal_kd.run.rehearsal import Rehearsal
from xmodal_kd.run.roles import make_adapter, role_plans
from xmodal_kd.runtime.checkpoint import digest, read_json
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.runtime.registry import allowed_imports
from xmodal_kd.training.engine import Engine


@pytest.fixture(autouse=True)
def around(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr("xmodal_kd.runtime.registry.allowed_imports", allowed_imports | {"toy"})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    yield


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "toy.yaml"
    path.write_text(toy.RECIPE)
    return path


def run(recipe: Path | str, out: Path, *sets: str, more: tuple[str, ...] = ()) -> int:
    listed = [word for one in sets for word in ("--set", one)]
    return call(["run", str(recipe), "--out", str(out), "--device", "cpu", "--quiet", *listed, *more])


def refused(
    capfd: pytest.CaptureFixture[str], recipe: Path | str, out: Path, *sets: str, words: tuple[str, ...],
    more: tuple[str, ...] = (),
) -> str:  # fmt: skip
    """The run ends with status 2 and one line with all `words`, and nothing was trained."""
    capfd.readouterr()
    assert run(recipe, out, *sets, more=more) == 2
    [line] = capfd.readouterr().err.splitlines()
    assert all(word in line for word in words), line
    assert not out.is_dir() or not list(out.iterdir()), "a run that was refused leaves nothing behind"
    return line


# ---------------------------------------------------------------- what it does not change


def test_nothing_of_it_reaches_the_run(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With BatchNorm and dropout: weights of all roles, and the caller's randomness."""
    sets = ("student.params={width: 8, dropout: 0.2, batch_norm: true}", "teacher.params={width: 24, batch_norm: true}")
    states = torch.random.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index, union-attr]
    assert run(recipe, tmp_path / "with", *sets) == 0
    monkeypatch.setattr(Rehearsal, "go", lambda self: None)
    assert run(recipe, tmp_path / "without", *sets) == 0
    for role in ("teacher", "control", "student"):
        found = [load_file(tmp_path / name / role / "model.safetensors") for name in ("with", "without")]
        assert digest(found[0].items()) == digest(found[1].items()), role
    monkeypatch.undo()
    before = torch.random.get_rng_state()
    with Rehearsal.aside(_bare(tmp_path)):
        torch.rand(1), np.random.rand()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert np.random.get_state()[1].tolist() == states[1]  # type: ignore[index, union-attr]


def _bare(folder: Path) -> Rehearsal:
    made = toy.adapter()
    adapters = SimpleNamespace(of=lambda plan, size=None: made)
    return Rehearsal(None, made, adapters, [], made.streams, "cpu", folder)  # type: ignore[arg-type]


def test_a_saved_teacher_is_rehearsed_on_a_copy(recipe: Path, tmp_path: Path) -> None:
    assert run(recipe, tmp_path / "first", "teacher.params={width: 24, batch_norm: true}") == 0
    teacher = tmp_path / "first" / "teacher"
    before = {path: path.read_bytes() for path in teacher.iterdir()}
    assert run(recipe, tmp_path / "second", f"teacher={{path: {teacher}}}") == 0
    assert {path: path.read_bytes() for path in teacher.iterdir()} == before


# ---------------------------------------------------------------- the recipe


@pytest.mark.parametrize(("sets", "words"), [
    (("objective.1.weights=nothing",), ("kd", "nothing")),
    (("objective.1.params={temperature: 1e300}",), ("kd", "params", "temperature 1e+300")),
    (("objective.1.params={temperature: 1e-300}",), ("kd", "temperature 1e-300")),
    (("objective.1.weight=1e300",), ("weight",)),
    (("objective.1.params={temperature: 1e30}",), ("kd", "NaN or Inf", "temperature 1e+30")),
    (("train.accumulate=7",), ("train.accumulate", "7 micro-batches", "batch_size")),
    (("teacher.train.accumulate=7",), ("teacher.train.accumulate",)),
    (("train.optimizer.lr=1e30",), ("train.optimizer.lr", "a number up to")),
    (("data.dev=0",), ("dev",)),
    (("data.test=0",), ("test",)),
    (("data.nan=2", "train.batch_size=24"), ("sample", "NaN")),
    (("data.broken=2", "train.batch_size=24"), ("toy-2",)),
    (("trackers=[nobody]",), ("trackers", "nobody")),
    (("cache={path: BLOCKED/inside}", "data.noise=0.0"), ("cache.path", "BLOCKED")),
    (("cache={path: /proc/nowhere}", "data.noise=0.0"), ("cache.path", "/proc/nowhere")),
])  # fmt: skip
def test_a_recipe_that_cannot_be_trained(
    recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], sets: tuple[str, ...], words: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "BLOCKED").write_text("a file")
    refused(capfd, recipe, tmp_path / "run", *sets, words=words)


def test_an_out_folder_that_is_a_file(recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    refused(capfd, recipe, tmp_path / "file", words=("--out", "no folder"))
    refused(capfd, recipe, tmp_path / "file" / "inside", words=("--out", "no folder"))
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    refused(capfd, recipe, tmp_path / "link", words=("--out", "links to nothing"))


@pytest.mark.parametrize(("verb", "words"), [
    ("evaluate", ("measured",)), ("save", ("student",)), ("answer", ("measured",)), ("about", ("cards",)),
    ("export", ("export",)),
])  # fmt: skip
def test_an_adapter_whose_verb_fails(
    recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, verb: str,
    words: tuple[str, ...],
) -> None:  # fmt: skip
    """Of the student alone, which the run would ask last."""
    original = getattr(toy.ToyAdapter, verb)

    def broken(self: Any, role: Any, *args: Any) -> Any:
        if role == "student" or verb == "export":
            raise TypeError("not today")
        return original(self, role, *args)

    monkeypatch.setattr(toy.ToyAdapter, verb, broken)
    line = refused(capfd, recipe, tmp_path / "run", words=("TypeError: not today", *words))
    assert "before anything was trained" in line


def test_a_metric_that_a_few_samples_do_not_give_is_asked_of_all(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    original, least = toy.ToyAdapter.evaluate, 6

    def picky(self: Any, role: str, model: Any, split: str) -> Any:
        found = original(self, role, model, split)
        if len(self.data(split)) < least:
            found.metrics["error"] = float("nan")
        return found

    monkeypatch.setattr(toy.ToyAdapter, "evaluate", picky)
    assert run(recipe, tmp_path / "run") == 0
    least = 10  # more than dev has
    refused(capfd, recipe, tmp_path / "again", words=("error of the teacher on dev is nan over all 8 samples",))


# ---------------------------------------------------------------- a teacher's card


@pytest.mark.parametrize(("card", "words"), [
    ("---\nlicense: [mit\n---\n", ("not YAML", "line")),
    ("---\ndate: 2024-13-45\n---\n", ("not YAML", "month")),
    ("---\nlicense: mit\n", ("no end",)),
    ("---\n- mit\n---\n", ("no mapping",)),
    ("---\nlicense: {name: mit}\n---\n", ("license",)),
    (b"---\nlicense: \xff\n---\n", ("UTF-8",)),
])  # fmt: skip
def test_a_teachers_card_that_cannot_be_read(
    recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], card: str | bytes, words: tuple[str, ...]
) -> None:
    made = toy.adapter()
    model = toy.roles(made)["teacher"]
    model.card = {"model": "mlp", "params": {"width": 24}, "classes": list(toy.NAMES)}
    made.save("teacher", model, tmp_path / "teacher")
    (tmp_path / "teacher" / "README.md").write_bytes(card.encode() if isinstance(card, str) else card)
    set_ = f"teacher={{path: {tmp_path / 'teacher'}}}"
    refused(capfd, recipe, tmp_path / "run", set_, words=(str(tmp_path / "teacher" / "README.md"), *words))


# ---------------------------------------------------------------- a corrected recipe


def test_a_corrected_recipe_goes_on_with_the_roles_that_it_did_not_change(
    recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, fit = tmp_path / "run", Engine.fit

    def fails(self: Engine, **options: Any) -> Any:
        if self.target == "student":
            raise UserError("the disk went away")
        return fit(self, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "fit", fails)
        assert run(recipe, out) == 2
    before = {role: load_file(out / role / "model.safetensors") for role in ("teacher", "control")}
    seconds = read_json(out / "state.json")["roles"]["teacher"]["training"]["seconds"]
    assert run(recipe, out, "teacher.train.steps=9", more=("--resume",)) == 2
    assert "which decides student, teacher" not in (line := capfd.readouterr().err.splitlines()[-1])
    assert "teacher.train.steps was 8, is 9), which decides teacher" in line
    new = "objective.1.params={temperature: 3.0}"
    assert run(recipe, out, new, more=("--resume",)) == 0
    after = {role: load_file(out / role / "model.safetensors") for role in ("teacher", "control")}
    assert {role: digest(m.items()) for role, m in before.items()} == {r: digest(m.items()) for r, m in after.items()}
    assert read_json(out / "state.json")["roles"]["teacher"]["training"]["seconds"] == seconds, (
        "it was not trained again"
    )
    assert yaml.safe_load((out / "recipe.yaml").read_text())["objective"][1]["params"] == {"temperature": 3.0}
    assert run(recipe, tmp_path / "whole", new) == 0
    found = [load_file(folder / "student" / "model.safetensors") for folder in (out, tmp_path / "whole")]
    assert digest(found[0].items()) == digest(found[1].items())
    assert run(recipe, out, more=("--resume",)) == 2, "the student is finished now"
    assert "which decides student" in capfd.readouterr().err


@pytest.mark.parametrize(("set_", "roles"), [
    ("train.optimizer.lr=0.5", {"control", "student"}),
    ("objective.1.params={temperature: 4.0}", {"student"}),
    ("objective.0.weight=2.0", {"teacher", "control", "student"}),
    ("teacher.params={width: 25}", {"teacher", "student"}),
    ("student.params={width: 9}", {"control", "student"}),
    ("seed=4", {"teacher", "control", "student"}),
    ("data.noise=0.2", {"teacher", "control", "student"}),
    ("trackers=[]", set()),
    ("out=elsewhere", set()),
])  # fmt: skip
def test_what_a_key_decides(recipe: Path, set_: str, roles: set[str]) -> None:
    def prints(*sets: str) -> Mapping[str, str]:
        loaded = load(str(recipe), sets)
        made = make_adapter(loaded, Streams(loaded.recipe.seed))
        return role_prints(loaded, made, role_plans(loaded, made))

    before, after = prints(), prints(set_)
    assert {role for role in before if before[role] != after[role]} == roles
