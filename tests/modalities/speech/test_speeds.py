"""Speeds of which few are drawn, and a second view at the first one's speed."""

from __future__ import annotations

import pytest
import torch

from xmodal_kd.modalities.speech.data.source import SpeechData, SpeechSource, build_tokens
from xmodal_kd.runtime.random_streams import Streams

SPEAKERS = {
    "train_speakers": ("anna", "brian", "carla"),
    "dev_speakers": ("duncan", "edith"),
    "test_speakers": ("frank",),
}
OFF = {"freq_masks": 0, "time_masks": 0}
ALL = {"speed": (0.9, 1.1), "gain_db": (-6, 6), "noise_snr_db": (5, 20)}


@pytest.fixture(scope="module")
def make(digits):
    """A source over the project's digits; keywords change the data section."""

    def build(split="train", seed=1, batch_size=16, **changes):
        keys = {"sources": "fsdd", "path": digits, "features": {"sample_rate": 8000}, **SPEAKERS, **changes}
        data = SpeechData(**keys)
        return SpeechSource(data, split, build_tokens(data), Streams(seed), batch_size)

    return build


def equal(one, other):
    return torch.equal(one.clean, other.clean) and torch.equal(one.features, other.features)


def test_of_few_speeds_each_is_drawn_and_its_features_are_computed_once(make):
    source = make(augment={**OFF, "speed": (0.8, 1.2), "speeds": 3})
    plain = len(make(augment=OFF).sample(0, 0).clean)
    heard = [source.sample(0, epoch).clean for epoch in range(30)]
    lengths = {len(x) for x in heard}
    assert len(lengths) == 3 and min(lengths) < plain < max(lengths) and plain in lengths
    assert len({x.data_ptr() for x in heard}) == 3
    anew = make(augment={**OFF, "speed": (0.8, 1.2), "speeds": 3, "gain_db": (0, 0)})
    assert all(torch.equal(anew.sample(0, epoch).clean, heard[epoch]) for epoch in range(5))


def test_another_view_has_the_speed_of_the_first_and_masks_and_noise_of_its_own(make):
    source = make(augment=ALL)
    one, again = source.sample(3, 1), source.again(3, 1, 7)
    assert torch.equal(one.clean, again.clean) and not torch.equal(one.features, again.features)
    assert equal(source.again(3, 1, 1), one) and not torch.equal(source.sample(3, 7).clean, one.clean)
    masked = make(augment={"speed": (0.9, 1.1)})
    assert torch.equal(masked.again(3, 1, 7).clean, masked.sample(3, 1).clean)
    assert not torch.equal(masked.again(3, 1, 7).features, masked.sample(3, 1).features)
