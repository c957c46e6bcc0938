"""A sketch as YAML: what is read back is what was meant, and every comment stays with its choice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from xmodal_kd.adapter.sketch import SIZES, Looking, Noted, Sketch
from xmodal_kd.draft.text import WIDTH, recipe_text
from xmodal_kd.recipe.yaml_reader import read_yaml
from xmodal_kd.runtime.errors import UserError

LONG = [f"speaker-{i:03d}" for i in range(60)]
SECTIONS: dict[str, Any] = {
    "data": {
        "path": Noted("a folder: with # signs", "given"),
        "train": Noted(["00", "01"], "sequences, whose names are no numbers"),
        "speakers": Noted(LONG, "of whom there are many"),
        "features": {"sample_rate": Noted(8000, "Hz " + "and so on " * 20), "mels": 40},
        "frames": Noted({"first": 0, "last": 3}, "by time"),
    },
    "objective": [Noted({"loss": "hint", "on": "prediction"}, "a term"), {"loss": "kd", "params": {"t": 1e-5}}],
    "train": {"steps": 10, "note": "yes: no", "flag": True, "word": "on", "none": None},
}


def plain(value: Any) -> Any:
    value = value.value if isinstance(value, Noted) else value
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, list) else value


def test_it_reads_back_as_it_was_meant() -> None:
    text = recipe_text("speech", Path("mine.yaml"), Sketch("Who teaches whom.", SECTIONS), ())
    found, _ = read_yaml(text)
    assert found == {"modality": "speech", "seed": 1, "threads": 1, **plain(SECTIONS)}
    assert yaml.safe_load(text)["data"]["train"] == ["00", "01"]


def test_comments_are_kept_and_lines_are_short() -> None:
    text = recipe_text("speech", Path("mine.yaml"), Sketch("One.", SECTIONS, ("odd " * 60,)), ("it takes " * 30,))
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "check mine.yaml" in text and text.startswith("# One.\n")
    lines = text.splitlines()
    assert next(line for line in lines if line.startswith("  train:")).endswith(
        "# sequences, whose names are no numbers"
    )
    above = next(i for i, line in enumerate(lines) if line.startswith("  speakers:"))
    assert lines[above - 1] == "  # of whom there are many"
    assert "  - {loss: hint, on: prediction}  # a term" in lines


def test_sizes_are_in_order_and_bounded() -> None:
    small, medium, large = SIZES.values()
    for samples in (10, 1_000, 100_000):
        steps = [size.steps(samples, 16) for size in (small, medium, large)]
        assert steps == sorted(steps) and small.least <= steps[0] <= small.most
    assert "passes over 848" in small.why(848, 16)


def test_one_look_tells_all_problems() -> None:
    looking = Looking()
    for text in ("one", "two"):
        with looking.on():
            raise UserError(text)
    assert [problem.partition(" (see ")[0] for problem in looking.problems] == ["one", "two"]
