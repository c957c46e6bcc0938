"""The program that lies beside an exported recogniser: its features and its words (`test_stream_export` calls it)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch

from xmodal_kd.modalities.speech.data.features import Features, Frontend
from xmodal_kd.modalities.speech.export import standalone

RATE = 8000


@pytest.mark.parametrize("normalise", ["utterance", "running", "none"])
@pytest.mark.parametrize("samples", [0, 5, 150, 200, 4321])
def test_features_are_those_of_training(normalise: Any, samples: int) -> None:
    config = Features(sample_rate=RATE, mels=30, normalise=normalise)
    wave = np.random.default_rng(samples).standard_normal(samples).astype(np.float32) / 10
    make = standalone.Features(config.model_dump())
    parts = [make(part) for part in np.array_split(wave, 7)]
    found = np.concatenate([*parts, make(np.zeros(0), last=True)])
    found = found - found.mean(axis=0) if normalise == "utterance" else found
    np.testing.assert_allclose(found, Frontend(config)(torch.from_numpy(wave)).numpy(), atol=2e-3)


def test_symbols_become_words() -> None:
    logits = [np.eye(5)[rows] for rows in ([0, 1, 1, 0, 1], [], [4, 2, 0, 3, 3, 0, 0])]
    letters = list(standalone.words(standalone.collapsed(logits), ["_", "a", "b", "c", "|"], "characters", 0.5))
    assert letters == [(0.5, "aa"), (3.0, "bc")]
    pieces = list(standalone.words(standalone.collapsed(logits), ["_", "\u2581a", "b", "\u2581c", "d"], "bpe", 0.5))
    assert pieces == [(0.5, "a"), (2.0, "adb"), (4.0, "c")]
    assert list(standalone.words(standalone.collapsed(logits), ["_", "x", "y", "z", "w"], "words", 1.0)) == [
        (1.0, "x"), (4.0, "x"), (5.0, "w"), (6.0, "y"), (8.0, "z"),
    ]  # fmt: skip


def test_another_rate_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "soxr", None)
    sf.write(tmp_path / "a.wav", np.zeros(1600), 16000)
    with pytest.raises(OSError, match="16000 Hz, and it hears 8000 Hz: pip install soxr"):
        next(standalone.pieces(str(tmp_path / "a.wav"), RATE))
