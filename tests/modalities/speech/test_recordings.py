"""Recorded noise and rooms: levels, what stays where it was, what is replayed, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch
from pydantic import ValidationError
from spoken_digits import make

from xmodal_kd.modalities.speech.data.augment import Augment, rms
from xmodal_kd.modalities.speech.data.recordings import Noises, Rooms
from xmodal_kd.runtime.errors import UserError

__all__ = ["make"]  # a fixture

RATE = 8000


def write(folder: Path, name: str, wave: Any, rate: int = RATE) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    sf.write(path, np.asarray(wave, np.float32), rate, subtype="FLOAT")
    return path


def tone(seconds: float, rate: int = RATE, hertz: float = 440.0) -> np.ndarray:
    return np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate).astype(np.float32)


@pytest.mark.parametrize("seconds", [0.2, 1.0, 30.0])
@pytest.mark.parametrize("rate", [RATE, 16000])
def test_noise_is_as_loud_as_was_asked_whatever_its_length_and_rate(tmp_path: Path, seconds: float, rate: int) -> None:
    draw = np.random.default_rng(0)
    write(tmp_path, "street/cars.wav", 0.01 * draw.standard_normal(round(seconds * rate)), rate)
    wave = tone(1.3)
    mixed = Noises(tmp_path, "key").add(wave, RATE, 10.0, np.random.default_rng(1))
    assert mixed.dtype == np.float32 and len(mixed) == len(wave)
    assert 20 * np.log10(rms(wave) / rms(mixed - wave)) == pytest.approx(10.0, abs=0.01)


def test_another_stretch_of_another_file_each_time_and_the_same_again(tmp_path: Path) -> None:
    for name in ("a.wav", "b.flac"):
        sf.write(tmp_path / name, np.random.default_rng(ord(name[0])).uniform(-0.5, 0.5, 4 * RATE), RATE)
    noises, wave = Noises(tmp_path, "key"), tone(0.5)
    heard = [noises.add(wave, RATE, 5.0, np.random.default_rng(seed)) for seed in range(8)]
    assert all((one != other).any() for i, one in enumerate(heard) for other in heard[:i])
    again = Noises(tmp_path, "key").add(wave, RATE, 5.0, np.random.default_rng(3))
    assert (again == heard[3]).all()


def test_silence_adds_nothing(tmp_path: Path) -> None:
    write(tmp_path, "silence.wav", np.zeros(RATE))
    wave = tone(0.5)
    assert (Noises(tmp_path, "key").add(wave, RATE, 0.0, np.random.default_rng(0)) == wave).all()


def test_a_room_is_a_convolution_from_its_loudest_sample_on(tmp_path: Path) -> None:
    response = np.array([0.0, 0.1, 0.0, 0.8, 0.0, -0.4, 0.0, 0.2])
    write(tmp_path, "hall.wav", response)
    wave = np.random.default_rng(0).standard_normal(500).astype(np.float32)
    heard = Rooms(tmp_path, "key").echo(wave, RATE, np.random.default_rng(0))
    by_hand = np.convolve(wave, response[3:])[:500]
    np.testing.assert_allclose(heard, by_hand * rms(wave) / rms(by_hand), atol=1e-5)


def test_a_click_is_no_room_at_all_at_any_rate(tmp_path: Path) -> None:
    click = np.zeros(2000)
    click[700] = 0.3
    write(tmp_path, "click.wav", click, 16000)
    wave = tone(0.5)
    heard = Rooms(tmp_path, "key").echo(wave, RATE, np.random.default_rng(0))
    assert np.corrcoef(heard[100:-100], wave[100:-100])[0, 1] > 0.999 and rms(heard) == pytest.approx(rms(wave))


def test_what_learns_hears_them_and_what_teaches_does_not(make: Any, tmp_path: Path) -> None:
    off = {"freq_masks": 0, "time_masks": 0}
    write(tmp_path, "noise/a.wav", np.random.default_rng(0).uniform(-0.5, 0.5, 2 * RATE))
    write(tmp_path, "rooms/b.wav", np.r_[1.0, np.zeros(400), 0.7])
    plain = make(augment=off).sample(0, 0)
    for more in (
        {"noise_path": tmp_path / "noise", "noise_snr_db": (5, 5)},
        {"rooms_path": tmp_path / "rooms", "rooms_share": 1.0},
    ):
        source = make(augment={**off, **more})
        sample, later = source.sample(0, 0), source.sample(0, 1)
        torch.testing.assert_close(sample.clean, plain.clean)
        assert not torch.equal(sample.features, sample.clean) and len(sample.features) == len(sample.clean)
        assert torch.equal(make(augment={**off, **more}).sample(0, 0).features, sample.features)
        assert torch.equal(later.features, sample.features) == ("rooms_path" in more)  # there is one room
        assert make("dev", augment={**off, **more}).sample(0, 0).features is not None
    never = make(augment={**off, "rooms_path": tmp_path / "rooms", "rooms_share": 1e-9}).sample(0, 0)
    assert torch.equal(never.features, never.clean)


def test_what_is_no_folder_of_recordings_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"^data\.augment\.noise_path: .*gone is no folder: name one"):
        Noises(tmp_path / "gone", "data.augment.noise_path")
    with pytest.raises(UserError, match=r"empty holds no audio \(such as \.wav, \.flac, \.ogg\)"):
        Rooms(tmp_path / "empty", "data.augment.rooms_path")
    write(tmp_path, "long/song.wav", tone(25))
    write(tmp_path, "mute/none.wav", np.zeros(100))
    draw = np.random.default_rng(0)
    for folder, why in (("long", "25 s long: a room's echo ends within 20 s"), ("mute", "is silent")):
        with pytest.raises(UserError, match=why):
            Rooms(tmp_path / folder, "key").echo(tone(0.1), RATE, draw)
    with pytest.raises(ValidationError, match="say how loud"):
        Augment(noise_path=tmp_path)
