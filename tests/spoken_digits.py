"""A source over the project's own spoken digits, for tests of what is heard."""

from __future__ import annotations

import pytest

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
