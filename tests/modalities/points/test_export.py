"""Students as ONNX: equal to torch at other sizes, timed, and a note where there can be none."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from xmodal_kd.adapter.adapter import Strict
from xmodal_kd.modalities.points.data.config import View
from xmodal_kd.modalities.points.data.frame import CLASSES
from xmodal_kd.modalities.points.export import onnx as module
from xmodal_kd.modalities.points.export.onnx import FP32, export, size, wave
from xmodal_kd.modalities.points.export.saved_folder import WEIGHTS, load_card, load_model, save_model
from xmodal_kd.modalities.points.models import MODELS
from xmodal_kd.models import onnx
from xmodal_kd.report.markdown import _export


def save(folder: Path, name: str, view: View, channels: int, **params: Any) -> nn.Module:
    torch.manual_seed(0)
    kind = MODELS[name]
    model: nn.Module = kind(kind.Config(**params), channels=channels, classes=len(CLASSES))
    card = {"model": name, "params": params, "channels": channels, "classes": CLASSES, "view": view}
    save_model(folder, model, {**card, "image": (20, 36), "sensor": "hdl64e"})
    return model


@pytest.mark.parametrize(
    ("name", "view", "channels", "expected", "other"),
    [
        ("range_unet", View(beams=16, columns=64), 5, (16, 64), (5, 5, 16, 100)),
        pytest.param("image_unet", View(sees="image"), 3, (20, 36), (5, 3, 31, 41), marks=pytest.mark.full),
    ],
)
def test_onnx_equals_torch_at_other_sizes(
    tmp_path: Path, name: str, view: View, channels: int, expected: tuple[int, int], other: tuple[int, ...]
) -> None:
    model = save(tmp_path, name, view, channels, width=4, levels=2).train()
    found = export(model, tmp_path)[FP32]
    assert model.training and size(load_card(tmp_path)) == expected
    assert found["bytes"] == (tmp_path / FP32).stat().st_size and found["max_error"] <= 1e-4
    assert found["free"] == (["batch", "width"] if view.sees == "range" else ["batch", "height", "width"])
    assert 0 < found["milliseconds"] <= found["p95_ms"] and found["threads"] == torch.get_num_threads()
    session, whole = onnx.session(tmp_path / FP32, extra="points"), load_model(tmp_path)[0]
    x = torch.from_numpy(np.random.default_rng(0).standard_normal(other, dtype=np.float32))
    assert onnx.prove(whole, partial(onnx.run, session), x) <= 1e-4
    assert str(Path(module.__file__).parent).encode() not in (tmp_path / FP32).read_bytes()
    assert "milliseconds" in _export({FP32: found}, "miou")


def test_the_rows_of_all_beams_are_the_sensors(tmp_path: Path) -> None:
    save(tmp_path, "range_unet", View(columns=64), 5, width=2, levels=1)
    assert size(load_card(tmp_path)) == (64, 64)


def test_a_wave_is_the_same_every_time() -> None:
    state = torch.get_rng_state()
    assert torch.equal(wave((2, 3)), wave((2, 3))) and wave((2, 3)).unique().numel() == 6
    assert torch.equal(state, torch.get_rng_state())


class Points(nn.Module):
    """A model of point sets; one that `counts` looks at how many there are, which no graph can."""

    view = "points"

    class Config(Strict):
        counts: bool

    def __init__(self, config: Any, *, channels: int, classes: int) -> None:
        super().__init__()
        self.counts, self.linear = config.counts, nn.Linear(channels, classes)

    def forward(self, points: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        if self.counts and int(points[:, 0].sum()) > 10**9:
            return torch.zeros(1)
        return self.linear(points) * (lengths.sum() > 0)  # type: ignore[no-any-return]


@pytest.mark.parametrize("counts", [True, False])
def test_sets_of_points_are_exported_or_the_report_says_why_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counts: bool
) -> None:
    monkeypatch.setitem(MODELS._items, "toy_points", Points)
    found = export(save(tmp_path, "toy_points", View(sees="points"), 4, counts=counts), tmp_path)
    assert (tmp_path / FP32).is_file() != counts
    if counts:
        note = found[WEIGHTS]["note"]
        assert note.startswith("no ONNX") and note.isprintable() and "\n" not in note and note in _export(found, "miou")
        assert found[WEIGHTS]["bytes"] == (tmp_path / WEIGHTS).stat().st_size
    else:
        assert found[FP32]["free"] == ["points"] and found[FP32]["bytes"] > 0
