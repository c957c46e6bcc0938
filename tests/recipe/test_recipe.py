"""Recipes: strict, answered with a line and the nearest name, and inert."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import Field

from xmodal_kd.adapter.adapter import Strict, adapter_class
from xmodal_kd.losses import LOSSES
from xmodal_kd.recipe.recipe import Loaded, MethodSpec, Recipe, find, load
from xmodal_kd.runtime.discovery import shipped
from xmodal_kd.runtime.errors import UserError

TEXT = """\
# a comment
modality: speech
data: {path: somewhere}
teacher:
  model: conv
  train:
    steps: 5
student:
  model: conv
objective:
  - loss: ctc
  - loss: kd
    weight: 0.5
    params: {temperature: 2}
  - loss: hint
    on:
      student: a
      teacher: b
train:
  steps: 10
  optimizer:
    lr: 1e-3
  early_stop: {patience: 3}
"""


def read(tmp_path: Path, text: str, *overrides: str) -> Loaded:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    return load(str(path), overrides)


def refused(tmp_path: Path, text: str, *overrides: str) -> str:
    with pytest.raises(UserError) as error:
        read(tmp_path, text, *overrides)
    message = str(error.value)
    assert "\n" not in message
    return message.replace(f"{tmp_path}/", "")


def changed(old: str, new: str) -> str:
    assert TEXT.count(old) == 1, old
    return TEXT.replace(old, new)


def test_a_method_is_a_name_or_a_name_with_parameters(tmp_path: Path) -> None:
    plain, full = (
        read(tmp_path, TEXT + f"method: {method}\n").recipe.method
        for method in ("progressive", "{name: progressive, params: {end: 2}}")
    )
    assert (plain, full.params) == (MethodSpec(name="progressive"), {"end": 2})


def test_a_recipe_with_its_defaults(tmp_path: Path) -> None:
    recipe = read(tmp_path, TEXT).recipe
    assert (recipe.seed, recipe.threads, recipe.method, recipe.control) == (1, 1, MethodSpec(name="distil"), True)
    assert recipe.train.optimizer.lr == 0.001 and recipe.train.batch_size == 32
    assert recipe.objective[1].weight == 0.5 and recipe.objective[0].on == "logits"
    assert recipe.objective[2].signals("student") == ("a",) and recipe.objective[2].signals("teacher") == ("b",)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        # unknown keys: at the top, nested, in lists, in unions, in flow style, with a hyphen, instead of a required one
        ("student:\n  model: conv", "studnet:\n  model: conv", r"r.yaml:8: unknown key 'studnet' (nearest: student"),
        ("  steps: 10", "  stesp: 10", "r.yaml:20: unknown key 'train.stesp' (nearest: steps"),
        ("    lr: 1e-3", "    lrate: 1", "r.yaml:22: unknown key 'train.optimizer.lrate' (nearest: lr"),
        ("    weight: 0.5", "    wieght: 1", "r.yaml:13: unknown key 'objective.1.wieght' (nearest: weight"),
        ("      teacher: b", "      techer: b", "r.yaml:18: unknown key 'objective.2.on.techer' (nearest: teacher"),
        ("{patience: 3}", "{patiens: 3}", "r.yaml:23: unknown key 'train.early_stop.patiens' (nearest: patience"),
        ("  steps: 10", "  steps: 10\n  batch-size: 3", "r.yaml:21: unknown key 'train.batch-size' (nearest: batch"),
        # missing keys
        ("modality: speech\n", "", "key 'modality' is missing"),
        ("    steps: 5", "    batch_size: 5", "r.yaml:6: key 'teacher.train.steps' is missing"),
        ("  - loss: kd\n    weight", "  - weight", "r.yaml:12: key 'objective.1.loss' is missing"),
        ("      teacher: b\n", "", "key 'objective.2.on.teacher' is missing"),
        ("  - loss: ctc\n", "  - {}\n", "r.yaml:11: key 'objective.0.loss' is missing"),
        # wrong types and values
        ("1e-3", "fast", "r.yaml:22: train.optimizer.lr: Input should be a valid number"),
        ("1e-3", "-1", "r.yaml:22: train.optimizer.lr: Input should be greater than 0, got -1"),
        ("1e-3", ".inf", "r.yaml:22: train.optimizer.lr: Input should be a finite number"),
        ("  steps: 10", "  steps: 1.5", "r.yaml:20: train.steps: Input should be a valid integer"),
        ("weight: 0.5", "weight: -1", "r.yaml:13: objective.1.weight: Input should be greater than or equal to 0"),
        ("model: conv\n  train:\n    steps: 5", "params: {}", "r.yaml:4: teacher: give path (a saved teacher)"),
        ("  train:\n    steps: 5\n", "", "teacher: a teacher that is not loaded from a path needs train"),
        ("      student: a", "      student: 3", "r.yaml:17: objective.2.on.student: Input should be a valid string"),
        ("    on:\n      student: a\n      teacher: b", "    on: 3", "r.yaml:16: objective.2.on: Input should be"),
        ("loss: kd", "loss: ctc", "r.yaml:10: objective: two terms are called ctc: give each its own name"),
        ("loss: kd", "{loss: kd", "not YAML"),
        ("{path: somewhere}", "[1, 2", "not YAML"),
        ("# a comment", "seed: 1\nseed: 2", "r.yaml:2: not YAML: key 'seed' is written twice"),
        ("    lr: 1e-3", "    lr: 1\n    lr: 2", "r.yaml:23: not YAML: key 'lr' is written twice"),
        ("{temperature: 2}", "{temperature: 2, temperature: 3}", "r.yaml:14: not YAML: key 'temperature' is written"),
        ("# a comment", "[a]: 1", "r.yaml:1: not YAML: a key is a word"),
        ("# a comment", "? {a: 1}\n: 1", "r.yaml:1: not YAML: a key is a word"),
        ("# a comment", "\tseed: 1", "r.yaml:1: not YAML"),
        ("# a comment", "seed: \x00", "r.yaml: cannot be read: unacceptable character"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_line(old: str, new: str, message: str, tmp_path: Path) -> None:
    assert message in refused(tmp_path, changed(old, new))


def test_several_mistakes_are_counted(tmp_path: Path) -> None:
    text = changed("  steps: 10", "  stesp: 10").replace("weight: 0.5", "weight: -1")
    assert refused(tmp_path, text).endswith("(and 2 more)"), "stesp, the steps that are missing now, and the weight"


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n"])
def test_an_empty_file(text: str, tmp_path: Path) -> None:
    assert "is empty" in refused(tmp_path, text)


@pytest.mark.parametrize("text", ["- a\n- b\n", "just words\n", "3\n"])
def test_not_a_mapping(text: str, tmp_path: Path) -> None:
    assert "r.yaml:1: a recipe is a mapping of keys" in refused(tmp_path, text)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(b"modality: \xff\xfe\n")
    with pytest.raises(UserError, match="cannot be read"):
        load(str(tmp_path / "r.yaml"))


# ---------------------------------------------------------------- YAML


def test_words_of_yaml_1_1_that_are_words_here(tmp_path: Path) -> None:
    """`on` is a key, 1e-3 a number, and a speaker may be called no."""
    text = changed("{path: somewhere}", "{on: off, speakers: [no, yes, y], lr: 1e-3, big: 1E5, n: 12, f: true, s: 1e}")
    data = read(tmp_path, text).recipe.data
    assert data == {
        "on": "off", "speakers": ["no", "yes", "y"], "lr": 0.001, "big": 1e5, "n": 12, "f": True, "s": "1e",
    }  # fmt: skip
    assert isinstance(data["lr"], float) and isinstance(data["n"], int)


def test_merged_keys_may_be_overridden(tmp_path: Path) -> None:
    text = changed("    steps: 5", "    &t\n    steps: 5\n    batch_size: 7").replace(
        "train:\n  steps: 10", "train:\n  <<: *t\n  steps: 10"
    )
    recipe = read(tmp_path, text).recipe
    assert recipe.train.steps == 10 and recipe.train.batch_size == 7
    assert recipe.teacher is not None and recipe.teacher.train is not None and recipe.teacher.train.steps == 5


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:pathlib.Path.touch", "!!python/name:os.system", "!!python/object/new:set", "!mine"]
)
def test_a_recipe_executes_nothing(tag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "r.yaml:3: not YAML: could not determine a constructor" in refused(
        tmp_path, changed("{path: somewhere}", f"{{path: {tag} [touched]}}")
    )
    with pytest.raises(UserError, match="not a YAML value"):
        read(tmp_path, TEXT, f"data.path={tag} [touched]")
    assert [path.name for path in tmp_path.iterdir()] == ["r.yaml"]


# ---------------------------------------------------------------- --set


def test_overrides_are_applied_and_recorded(tmp_path: Path) -> None:
    loaded = read(
        tmp_path, TEXT, "train.steps=500", "train.optimizer.lr=1e-4", "objective.1.weight=2", "data.new.deep=[a, 1]",
        "objective.1.params.temperature=3", "seed=4", "out=runs/a=b", "train.early_stop=",
    )  # fmt: skip
    recipe = loaded.recipe
    assert (recipe.train.steps, recipe.train.optimizer.lr, recipe.seed) == (500, 1e-4, 4)
    assert recipe.objective[1].weight == 2 and recipe.objective[1].params == {"temperature": 3}
    assert recipe.data == {"path": "somewhere", "new": {"deep": ["a", 1]}}
    assert recipe.out == Path("runs/a=b") and recipe.train.early_stop is None
    assert loaded.overrides["train.steps"] == 500 and len(loaded.overrides) == 8
    assert recipe.objective[0].weight == 1


def test_a_saved_teacher_takes_the_place_of_one_to_train(tmp_path: Path) -> None:
    teacher = read(tmp_path, TEXT, "teacher.path=runs/a/teacher").recipe.teacher
    assert teacher is not None and teacher.path == Path("runs/a/teacher")
    assert read(tmp_path, TEXT, "teacher={path: x}").recipe.teacher.model is None  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.steps", "--set 'train.steps': write key=value"),
        ("=3", "--set '=3': write key=value"),
        ("train.steps=[1", "is not a YAML value"),
        ("objective.7.weight=1", "there is no 7 to go into"),
        ("objective.7=1", "there is no 7 to set"),
        ("objective.first.weight=1", "there is no 'first' to go into"),
        ("objective.-1.weight=1", "there is no '-1' to go into"),
        ("modality.deep.er=1", "there is no 'deep' to go into"),
        ("modality.deep=1", "there is no 'deep' to set"),
        ("train.stesp=1", "unknown key 'train.stesp' (nearest: steps"),
        ("train.batch-size=1", "unknown key 'train.batch-size' (nearest: batch_size"),
        ("train.steps=many", "train.steps: Input should be a valid integer"),
        ("objective.²=1", "there is no '²' to set"),
    ],
)
def test_overrides_that_do_not_fit(override: str, message: str, tmp_path: Path) -> None:
    assert message in refused(tmp_path, TEXT, override)


# ---------------------------------------------------------------- the second phase


class Compose(Strict):
    clips: int = 3


class Data(Strict):
    path: str
    compose: Compose | None = None
    stages: tuple[Compose, ...] | None = None
    by_split: dict[str, Compose] = Field(default_factory=dict)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("{path: a, compsoe: {}}", "r.yaml:3: unknown key 'data.compsoe' (nearest: compose"),
        ("{path: a, compose: {clip: 1}}", "r.yaml:3: unknown key 'data.compose.clip' (nearest: clips"),
        ("\n  path: a\n  stages:\n    - clips: 1\n    - clisp: 2", "r.yaml:7: unknown key 'data.stages.1.clisp'"),
        ("{path: a, by_split: {dev-clean: {clisp: 2}}}", "unknown key 'data.by_split.dev-clean.clisp' (nearest: clips"),
        ("{}", "r.yaml:3: key 'data.path' is missing"),
        ("{path: a, compose: {clips: x}}", "r.yaml:3: data.compose.clips: Input should be a valid integer"),
    ],
)  # fmt: skip
def test_an_adapters_own_part_is_answered_the_same_way(data: str, message: str, tmp_path: Path) -> None:
    loaded = read(tmp_path, changed("{path: somewhere}", data))
    with pytest.raises(UserError) as error:
        loaded.validate(Data, loaded.recipe.data, ("data",))
    assert message in str(error.value)


# ---------------------------------------------------------------- values


def test_a_recipe_is_frozen_and_its_use_leaves_it_equal(tmp_path: Path) -> None:
    """Trap 7."""
    loaded = read(tmp_path, TEXT)
    before = copy.deepcopy(loaded.recipe)
    for _ in range(3):
        Recipe.model_validate(loaded.recipe.model_dump())
        loaded.recipe.fingerprint()
    assert loaded.recipe == before
    with pytest.raises(ValueError, match="frozen"):
        loaded.recipe.train.steps = 3  # type: ignore[misc]


def test_the_resolved_recipe_reads_back_as_the_same(tmp_path: Path) -> None:
    recipe = read(tmp_path, TEXT, "train.optimizer.lr=1e-5").recipe
    text = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
    again = read(tmp_path, text).recipe
    assert again == recipe and again.fingerprint() == recipe.fingerprint()


def test_the_fingerprint_is_of_what_decides_the_result(tmp_path: Path) -> None:
    def of(*overrides: str) -> str:
        return read(tmp_path, TEXT, *overrides).recipe.fingerprint()

    assert of() == of("out=elsewhere") == of("trackers=[]") == of("seed=1") == of("train.workers=2")
    assert of("cache={path: a}") == of("cache={path: b}") == of("cache={}") != of()
    assert len({of(), of("seed=2"), of("data.path=b"), of("objective.1.weight=0.6"), of("train.steps=11")}) == 5


# ---------------------------------------------------------------- recipes that ship


def test_a_recipe_is_found_by_path_and_by_name(tmp_path: Path) -> None:
    name = next(iter(shipped()))
    for spelling in (name, f"{name}.yaml", f"recipes/{name}.yaml", str(shipped()[name])):
        assert find(spelling).read_text() == shipped()[name].read_text()
    with pytest.raises(UserError, match=f"no recipe '{name}s'.*nearest: {name}"):
        find(f"{name}s")
    with pytest.raises(UserError, match="no recipe"):
        find(str(tmp_path))


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_recipe_is_valid_in_both_phases(name: str) -> None:
    """Its own keys, then data, models and losses against the models that declare them."""
    loaded = load(name)
    recipe = loaded.recipe
    kind = adapter_class(recipe.modality)
    loaded.validate(kind.Data, recipe.data, ("data",))
    models: list[tuple[str, dict[str, Any], str]] = [(recipe.student.model, recipe.student.params, "student")]
    if recipe.teacher is not None and recipe.teacher.model is not None:
        models.append((recipe.teacher.model, recipe.teacher.params, "teacher"))
    for model, params, role in models:
        loaded.validate(kind.models[model].Config, params, (role, "params"))
    for i, term in enumerate(recipe.objective):
        loaded.validate(LOSSES[term.loss].params, term.params, ("objective", i, "params"))
    assert shipped()[name].read_text().startswith("# "), "the comment at the head says what it is"
