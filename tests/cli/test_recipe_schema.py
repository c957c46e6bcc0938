"""The JSON Schema of recipes: what ships is valid, what is misspelt is not, and keys are explained."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from xmodal_kd.cli.main import call
from xmodal_kd.cli.recipe_schema import recipe_schema
from xmodal_kd.recipe.recipe import load
from xmodal_kd.recipe.yaml_reader import Loader
from xmodal_kd.run.resolved_recipe import resolved
from xmodal_kd.runtime.discovery import shipped

jsonschema = pytest.importorskip("jsonschema", reason="the schema is tried with the package jsonschema")


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    found = json.loads(json.dumps(recipe_schema()))
    jsonschema.Draft202012Validator.check_schema(found)
    return dict(found)


@pytest.fixture(scope="module")
def problems(schema: dict[str, Any]) -> Callable[[Any], list[str]]:
    validator = jsonschema.Draft202012Validator(schema)
    return lambda recipe: [f"{error.json_path}: {error.message}" for error in validator.iter_errors(recipe)]


def read(name: str) -> dict[str, Any]:
    content = yaml.load(shipped()[name].read_text(), Loader=Loader)
    assert isinstance(content, dict)
    return content


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_recipe_is_valid(name: str, problems: Callable[[Any], list[str]]) -> None:
    assert problems(read(name)) == []


@pytest.mark.parametrize("name", ["smoke/speech", "smoke/points", "diffusion/digits_ect"])
def test_what_a_run_writes_is_valid(name: str, problems: Callable[[Any], list[str]]) -> None:
    assert problems(json.loads(json.dumps(resolved(load(name))))) == []


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("smoke/speech", {"trian": {}}),
        ("smoke/speech", {"modality": "speach"}),
        ("smoke/speech", {"train": {"steps": 3, "batchsize": 2}}),
        ("smoke/speech", {"train": {"steps": 0}}),
        ("smoke/speech", {"train": {"steps": 3, "optimizer": {"name": "adamx"}}}),
        ("smoke/speech", {"data": {"sources": "fsdd", "path": "x", "mels": 40}}),
        ("smoke/speech", {"data": {"sources": "fsd", "path": "x"}}),
        ("smoke/speech", {"student": {"model": "conv", "params": {"widht": 3}}}),
        ("smoke/speech", {"student": {"model": "range_unet"}}),
        ("smoke/speech", {"objective": [{"loss": "kdd"}]}),
        ("smoke/speech", {"objective": [{"loss": "kd", "params": {"temprature": 3}}]}),
        ("smoke/speech", {"objective": [{"loss": "kd", "params": {"temperature": 0}}]}),
        ("smoke/points", {"data": {"sources": "simulator", "student": {"sees": "range", "beam": 16}}}),
        ("smoke/points", {"teacher": {"model": "range_unet", "params": {"depth": 3}, "train": {"steps": 3}}}),
        ("smoke/diffusion", {"method": "progresive"}),
        ("smoke/diffusion", {"method": {"name": "progressive", "params": {"ends": 2}}}),
    ],
    ids=lambda value: value if isinstance(value, str) else json.dumps(value),
)
def test_a_misspelt_key_or_name_is_not(name: str, change: dict[str, Any], problems: Callable[[Any], list[str]]) -> None:
    assert problems(read(name) | change)


def test_things_of_ones_own_are_valid(problems: Callable[[Any], list[str]]) -> None:
    """Their parameters are not known, so nothing is said of them."""
    own = {"student": {"model": "mine.nets:Net", "params": {"depth": 3}}, "objective": [{"loss": "mine:pull"}]}
    assert problems(read("smoke/speech") | own) == []
    assert problems(read("smoke/speech") | {"modality": "toy:ToyAdapter", "data": {"noise": 1}}) == []


def test_keys_are_explained(schema: dict[str, Any]) -> None:
    parts = schema["$defs"]
    assert "Samples an optimizer step sees" in parts["Train"]["properties"]["batch_size"]["description"]
    assert "T. A power of two" in parts["ProcessConfig"]["properties"]["steps"]["description"], "#: lines count too"
    losses = {
        one["const"]: one["description"] for one in parts["Term"]["properties"]["loss"]["anyOf"] if "const" in one
    }
    ours = {name: text for name, text in losses.items() if not name.startswith("test_")}  # other tests' stay registered
    assert "kd" in ours and all(ours.values())


def test_the_command_prints_it(schema: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> None:
    assert call(["schema"]) == 0
    assert json.loads(capfd.readouterr().out) == schema
