"""A voice of another pitch: its frequencies, its length, its level, and who hears it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from spoken_digits import make

from xmodal_kd.modalities.speech.data.augment import Augment, rms, shift_pitch

__all__ = ["make"]  # a fixture


@pytest.mark.parametrize("rate", [8000, 16000])
@pytest.mark.parametrize("hertz", [90.0, 440.0, 1500.0])
@pytest.mark.parametrize("semitones", [-12, -3, 1.5, 7])
def test_a_tone_moves_by_semitones_and_stays_as_long_and_as_loud(rate: int, hertz: float, semitones: float) -> None:
    wave = np.sin(2 * np.pi * hertz * np.arange(2 * rate) / rate).astype(np.float32)
    moved = shift_pitch(wave, semitones, rate)
    assert moved.dtype == np.float32 and len(moved) == len(wave)
    middle = moved[rate // 4 : -rate // 4]
    power = np.abs(np.fft.rfft(middle * np.hanning(len(middle)))) ** 2
    peak = int(power.argmax())
    assert peak * rate / len(middle) == pytest.approx(hertz * 2 ** (semitones / 12), rel=0.015)
    assert power[peak - 6 : peak + 7].sum() / power.sum() > 0.98  # still a tone
    assert rms(middle) == pytest.approx(rms(wave), rel=0.03)


def test_a_click_stays_where_it_was() -> None:
    """Within the window of the stretch, so that frames keep their words."""
    wave = np.zeros(16000, np.float32)
    for at in (3000, 9000, 14000):
        wave[at : at + 80] = np.random.default_rng(at).standard_normal(80)
    for semitones in (-5, 4):
        moved = np.abs(shift_pitch(wave, semitones, 8000))
        for at in (3000, 9000, 14000):
            near = moved[at - 400 : at + 480]
            assert abs(int(near.argmax()) - 400) < 250 and near.max() > 0.5
        assert moved[4500:8000].max() < 0.05


@pytest.mark.parametrize("samples", [0, 1, 50, 150, 333])
def test_short_waves_and_no_shift(samples: int) -> None:
    wave = np.random.default_rng(0).standard_normal(samples).astype(np.float32)
    assert (shift_pitch(wave, 0.05, 8000) == wave).all()
    for semitones in (-7, 7):
        moved = shift_pitch(wave, semitones, 8000)
        assert len(moved) == samples and np.isfinite(moved).all()


def test_what_learns_hears_it_and_the_clean_view_does_not(make) -> None:
    source, plain = make(augment=Augment(pitch=(3, 4), freq_masks=0, time_masks=0)), make()
    for epoch in (0, 1):
        sample, other = source.sample(0, epoch), plain.sample(0, epoch)
        torch.testing.assert_close(sample.clean, other.clean)
        assert sample.features.shape == sample.clean.shape and (sample.features - sample.clean).abs().mean() > 0.05
    assert torch.equal(source.sample(0, 1).features, make(augment=source.data.augment).sample(0, 1).features)
    with pytest.raises(ValidationError, match="within -12 and 12"):
        Augment(pitch=(-20, 0))
