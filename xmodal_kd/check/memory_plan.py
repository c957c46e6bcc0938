"""What the weights of saved teachers take, by the headers of their files, before any of it is loaded."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from ..recipe.recipe import Loaded
from .rehearsal import in_bytes, memory_of
from .subject import Finding

#: Bytes of a weight where it is loaded, and of one that learns: itself, its gradient, and Adam's two moments.
HELD, LEARNING = 4, 16
#: Bytes below which nobody asks.
SMALL = 2**28


def weights(loaded: Loaded, device: str = "auto") -> Iterator[Finding]:
    """A line where a saved teacher is large: what it and a student like it take, beside what there is."""
    recipe = loaded.recipe
    teachers = [recipe.teacher, *recipe.teachers.values()] if recipe.teacher else [*recipe.teachers.values()]
    for folder in [spec.path for spec in teachers if spec is not None and spec.path is not None]:
        found = parameters(folder.expanduser())
        held = HELD * sum(found.values())
        if held < SMALL:
            continue
        place = torch.device("cuda" if device in ("auto", "cuda") and torch.cuda.is_available() else "cpu")
        there = memory_of(place)
        parts = ", ".join(f"{name or 'itself'} {count / 1e6:,.0f} M" for name, count in found.items())
        text = f"{folder}: {in_bytes(held)} in float32 ({parts})"
        learning = in_bytes(LEARNING * max(found.values()))
        text += f", a student as large as its largest part {learning} to learn; there are {in_bytes(there)}"
        if held > there:
            yield Finding(
                "weights", "warn", text, "set train.sharding to fsdp on several devices, or take a smaller one"
            )
        else:
            yield Finding("weights", "pass", text)


def parameters(folder: Path) -> Mapping[str, int]:
    """Weights by part, a part being a folder with safetensors in it: each name once, as variants and shards have it.

    Nothing but the headers is read. A file that is none is left to whoever loads it.
    """
    from safetensors import SafetensorError, safe_open

    found: dict[str, dict[str, int]] = {}
    for file in sorted(folder.rglob("*.safetensors")) if folder.is_dir() else ():
        part = found.setdefault(str(file.parent.relative_to(folder)).replace(".", "", 1), {})
        try:
            with safe_open(file, framework="pt") as opened:
                part |= {name: math.prod(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
        except (SafetensorError, OSError):
            continue
    return {name: sum(part.values()) for name, part in found.items() if part}


__all__ = ["parameters", "weights"]
