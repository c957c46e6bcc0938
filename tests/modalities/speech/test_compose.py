from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from xmodal_kd.modalities.speech.data.augment import add_noise, change_speed, coloured_noise, rms
from xmodal_kd.modalities.speech.data.compose import Compose, Composer
from xmodal_kd.modalities.speech.data.manifests import read_fsdd
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams

SPLITS = {"train": ("anna", "brian", "carla"), "dev": ("duncan",), "test": ("edith", "frank")}


@pytest.fixture(scope="module")
def clips(digits):
    return read_fsdd(digits)


def composer(clips, split="train", run=1, **changes):
    config = Compose(**{"utterances": {"train": 60, "dev": 30, "test": 30}, **changes})
    return Composer(config, [c for c in clips if c.speaker in SPLITS[split]], Streams(run), split, 8000)


def test_an_utterance_is_a_function_of_its_index(clips):
    forward, backward = composer(clips), composer(clips)
    waves = [forward.wave(i) for i in range(10)]
    for i in reversed(range(10)):
        assert forward.composition(i) == backward.composition(i)
        np.testing.assert_array_equal(waves[i], backward.wave(i))


def test_its_own_seed_fixes_the_data_and_none_leaves_it_to_the_run(clips):
    def made(run, **changes):
        return [composer(clips, run=run, **changes).composition(i) for i in range(5)]

    assert made(1) == made(2)
    assert made(1) != made(1, seed=5)
    assert made(1, seed=None) != made(2, seed=None)
    assert made(3, seed=None) == made(3, seed=None)


def test_no_clip_is_in_two_splits_and_a_speaker_speaks_alone(clips):
    heard = {}
    for split in SPLITS:
        made = composer(clips, split)
        for i in range(len(made)):
            composition = made.composition(i)
            assert {part.clip.speaker for part in composition.parts} == {composition.speaker}
            for part in composition.parts:
                assert heard.setdefault(part.clip.key, split) == split
    assert set(heard.values()) == set(SPLITS)


def test_draws_keep_to_their_ranges(clips):
    made = [composer(clips).composition(i) for i in range(60)]
    gaps = [part.gap_ms for c in made for part in c.parts[1:]]
    assert {len(c.parts) for c in made} == {3, 4, 5, 6, 7}
    assert all(50 <= edge <= 250 for c in made for edge in (c.parts[0].gap_ms, c.tail_ms))
    assert min(gaps) == 0 and max(gaps) <= 300
    assert 0.15 < np.mean([gap == 0 for gap in gaps]) < 0.35
    assert all(0.9 <= p.speed <= 1.1 and 0.5 <= p.gain <= 1 for c in made for p in c.parts)
    assert any(a.clip.text == b.clip.text for c in made for a, b in zip(c.parts, c.parts[1:], strict=False))
    assert [c.speaker for c in made[:4]] == ["anna", "brian", "carla", "anna"]


def test_duration_and_text_are_known_without_audio(clips):
    made = composer(clips)
    for i in range(20):
        composition = made.composition(i)
        assert made.seconds(composition) == pytest.approx(len(made.wave(i)) / 8000, abs=1e-3)
        assert composition.text.split() == [part.clip.text for part in composition.parts]


def test_noise_is_as_loud_as_it_says(clips):
    clean = composer(clips, noise_snr_db=None).wave(0)
    noisy = composer(clips, noise_snr_db=(10, 10)).wave(0)
    spoken = rms(np.concatenate([piece for piece in np.split(clean, np.flatnonzero(clean == 0)) if len(piece) > 1]))
    assert 20 * np.log10(spoken / rms(noisy - clean)) == pytest.approx(10, abs=0.5)


@pytest.mark.parametrize("colour", [0.0, 1.0, 2.0])
def test_noise_has_its_colour(colour):
    noise = coloured_noise(80_000, colour, np.random.default_rng(0))
    power = np.abs(np.fft.rfft(noise)) ** 2
    octaves = [power[n : 2 * n].mean() for n in (2000, 4000, 8000, 16000)]
    slopes = -np.diff(np.log2(octaves))
    assert noise.dtype == np.float32 and rms(noise) == pytest.approx(1, abs=1e-3)
    np.testing.assert_allclose(slopes, colour, atol=0.15)


def test_silence_gets_no_noise_and_a_sample_is_enough():
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(add_noise(np.zeros(100, np.float32), 10, rng), 0)
    assert coloured_noise(1, 1.0, rng).shape == (1,)


def test_speed_changes_tempo_and_pitch():
    wave = np.sin(2 * np.pi * 400 * np.arange(8000) / 8000).astype(np.float32)
    fast = change_speed(wave, 1.25)
    assert len(fast) == 6400
    assert np.argmax(np.abs(np.fft.rfft(fast))) / 6400 * 8000 == pytest.approx(500, abs=2)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"gap_ms": (300, 0)}, "gap_ms"),
        ({"clips": (5, 3)}, "clips"),
        ({"clips": (0, 3)}, "clips"),
        ({"speed": (0, 1)}, "speed"),
        ({"lead_ms": (-1, 1)}, "lead_ms"),
        ({"utterances": {"eval": 3}}, "utterances"),
        ({"no_gaps": 0.5}, "no_gaps"),
    ],
)
def test_impossible_compositions_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        Compose(**changes)


def test_a_split_without_a_count_is_named(clips):
    with pytest.raises(UserError, match=r"data\.compose\.utterances: lacks 'dev'"):
        composer(clips, "dev", utterances={"train": 3})
