"""The line of `check` about large weights, of which nothing but headers is read."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from xmodal_kd.check import memory_plan as module
from xmodal_kd.check.memory_plan import parameters, weights


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for part, names in {"unet": ("a", "b"), "vae": ("c",)}.items():
        (tmp_path / part).mkdir()
        save_file({name: torch.zeros(10, 10) for name in names}, tmp_path / part / "model.safetensors")
    half = {name: torch.zeros(10, 10, dtype=torch.float16) for name in ("a", "b")}
    save_file(half, tmp_path / "unet" / "model.fp16.safetensors")
    (tmp_path / "vae" / "broken.safetensors").write_bytes(b"none")
    return tmp_path


def recipe(folder: Path) -> Any:
    return SimpleNamespace(recipe=SimpleNamespace(teacher=SimpleNamespace(path=folder), teachers={}))


def test_each_weight_counts_once(folder: Path) -> None:
    assert parameters(folder) == {"unet": 200, "vae": 100}
    assert parameters(folder / "unet") == {"": 200}
    assert parameters(folder / "gone") == {}


def test_what_does_not_fit_is_warned_of_before_it_is_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(weights(recipe(folder))) == [], "nobody asks of so little"
    monkeypatch.setattr(module, "SMALL", 1000)
    [fits] = weights(recipe(folder))
    assert fits.status == "pass" and "unet 0 M, vae 0 M" in fits.found
    assert "a student as large as its largest part 0 MiB to learn" in fits.found
    monkeypatch.setattr(module, "memory_of", lambda _: 1100)
    [large] = weights(recipe(folder))
    assert large.status == "warn" and "train.sharding" in large.advice, "1,200 bytes in float32"
