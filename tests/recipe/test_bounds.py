"""Recipes that nobody should open: bombs, rings, depths, and values that are none."""

from __future__ import annotations

from pathlib import Path

import pytest
from torture.recipes import BOMB, CHAIN
from toy import RECIPE

from xmodal_kd.recipe.recipe import load
from xmodal_kd.recipe.yaml_reader import override
from xmodal_kd.runtime.errors import UserError


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (BOMB, "its aliases stand for more than 50,000 values"),
        (CHAIN, "its aliases stand for more than 32 levels"),
        ("a: &a [*a]", "an alias refers to what it is in"),
        ("a: &a {b: {c: *a}}", "an alias refers to what it is in"),
        ("a: " + "[" * 3000, "nested in more than 32 levels"),
        ("- " * 3000, "nested in more than 32 levels"),
        ("a: " + "x" * (1 << 21), "characters, more than 1,048,576"),
        ("a: 2001-99-99", "cannot be read: month must be in 1..12"),
        ("seed: " + "9" * 5000, "cannot be read: Exceeds the limit"),
        ("a: !!python/object/apply:os.system [id]", "not YAML: could not determine a constructor"),
        ("a: \x00", "special characters are not allowed"),
    ],
)
def test_one_line_before_anything_is_made(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(UserError, match=told) as refused:
        load(str(tmp_path / "r.yaml"))
    assert "\n" not in str(refused.value) and "r.yaml" in str(refused.value)


@pytest.mark.parametrize(
    "text", ["a=2001-99-99", "a=&a [*a]", "a=" + "[" * 100, "a" + ".a" * 100 + "=1", "a=" + "9" * 5000]
)
def test_values_of_the_command_line_too(text: str) -> None:
    with pytest.raises(UserError, match=r"^--set "):
        override({}, text)


@pytest.mark.parametrize("betas", ["[2, 0.9]", "[0.9, 1]", "[-0.1, 0.9]"])
def test_shares_are_shares(betas: str, tmp_path: Path) -> None:
    (tmp_path / "toy.yaml").write_text(RECIPE)
    with pytest.raises(UserError, match=r"train\.optimizer\.betas"):
        load(str(tmp_path / "toy.yaml"), [f"train.optimizer.betas={betas}"])
