"""Connected digits (or any words) from recordings of single ones.

Utterance i of a split is a function of (streams, split, i) and of that split's clips. A clip belongs to one speaker and
a speaker to one split, so no clip is heard in two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, Field

from xmodal_kd.adapter.adapter import Strict
from xmodal_kd.runtime.bounded_cache import BoundedCache
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams

from .audio import Wave
from .augment import GainRange, MillisecondRange, Range, SpeedRange, add_noise, change_speed, ordered, rms
from .manifests import Utterance

#: Bytes of clips kept in memory: 2,000 digits at 16 kHz take about 60 MB.
CLIP_MEMORY = 256 << 20


Count = Annotated[int, Field(gt=0, le=10_000_000)]
Clips = Annotated[int, Field(gt=0, le=1000)]
CountRange = Annotated[tuple[Clips, Clips], AfterValidator(ordered)]
Counts = dict[Literal["train", "dev", "test"], Count]


def _counts() -> Counts:
    return {"train": 1500, "dev": 200, "test": 300}


class Compose(Strict):
    """How clips become utterances. Ranges are (least, most), drawn uniformly."""

    #: How many utterances each split has.
    utterances: Counts = Field(default_factory=_counts)
    clips: CountRange = (3, 7)
    #: Silence before the first clip, and as much again (drawn anew) behind the last.
    lead_ms: MillisecondRange = (50.0, 250.0)
    gap_ms: MillisecondRange = (0.0, 300.0)
    #: Share of gaps that are exactly zero: there, a digit said twice needs a blank between.
    no_gap: float = Field(default=0.25, ge=0, le=1)
    speed: SpeedRange = (0.9, 1.1)
    gain: GainRange = (0.5, 1.0)
    noise_snr_db: Range | None = (5.0, 25.0)
    #: Exponent of the noise's spectrum: 0 white, 1 pink, 2 brown.
    noise_colour: Range = (0.0, 2.0)
    #: A number composes the same utterances whatever the run's seed, so that seeds are compared on one test set; None
    #: takes them from the run's streams.
    seed: int | None = 0


@dataclass(frozen=True)
class Part:
    """One clip of an utterance: which, and how it is played. `gap_ms` of silence come before it."""

    clip: Utterance
    speed: float
    gain: float
    gap_ms: float


@dataclass(frozen=True)
class Composition:
    """What an utterance is made of. Its noise is drawn when it is rendered, from a stream of its own."""

    key: str
    speaker: str
    parts: tuple[Part, ...]
    tail_ms: float

    @property
    def text(self) -> str:
        return " ".join(part.clip.text or "" for part in self.parts)


class Composer:
    """The composed utterances of one split.

    Args:
        clips: the clips of that split, all of them.
        sample_rate: of the waves that it renders, in Hz.
    """

    def __init__(
        self, config: Compose, clips: Sequence[Utterance], streams: Streams, split: str, sample_rate: int
    ) -> None:
        counts = {str(name): count for name, count in config.utterances.items()}
        if split not in counts:
            raise UserError(f"data.compose.utterances: lacks {split!r}")
        self.config, self.split, self.sample_rate, self.count = config, split, sample_rate, counts[split]
        self.streams = streams if config.seed is None else Streams(config.seed)
        self.speakers = sorted({clip.speaker for clip in clips})
        timed = [replace(clip, duration=clip.seconds()) for clip in clips]
        self.clips = {speaker: [clip for clip in timed if clip.speaker == speaker] for speaker in self.speakers}
        self._waves: BoundedCache[Wave] = BoundedCache(CLIP_MEMORY)

    def __len__(self) -> int:
        return self.count

    def composition(self, index: int) -> Composition:
        """What utterance `index` is made of, decided without reading any audio. Speakers take turns."""
        rng = self.streams.numpy("compose", self.split, index)
        speaker = self.speakers[index % len(self.speakers)]
        count = int(rng.integers(self.config.clips[0], self.config.clips[1] + 1))
        parts = tuple(self._part(speaker, first=i == 0, rng=rng) for i in range(count))
        return Composition(f"{self.split}-{index:05d}", speaker, parts, rng.uniform(*self.config.lead_ms))

    def _part(self, speaker: str, *, first: bool, rng: np.random.Generator) -> Part:
        clips, config = self.clips[speaker], self.config
        clip = clips[int(rng.integers(len(clips)))]
        speed, gain = rng.uniform(*config.speed), rng.uniform(*config.gain)
        if first:
            return Part(clip, speed, gain, rng.uniform(*config.lead_ms))
        gap = 0.0 if rng.random() < config.no_gap else rng.uniform(*config.gap_ms)
        return Part(clip, speed, gain, gap)

    def seconds(self, composition: Composition) -> float:
        """Its duration, to within a millisecond."""
        spoken = sum(part.clip.seconds() / (round(100 * part.speed) / 100) for part in composition.parts)
        return spoken + (sum(part.gap_ms for part in composition.parts) + composition.tail_ms) / 1000

    def wave(self, index: int) -> Wave:
        """``(samples,)`` float32: the clips with their gaps, in noise at an SNR relative to the clips' own level."""
        composition = self.composition(index)
        played = [np.float32(part.gain) * change_speed(self._clip(part.clip), part.speed) for part in composition.parts]
        pieces: list[Wave] = []
        for part, wave in zip(composition.parts, played, strict=True):
            pieces += [self._silence(part.gap_ms), wave]
        mixed = np.concatenate([*pieces, self._silence(composition.tail_ms)])
        if self.config.noise_snr_db is None:
            return mixed
        rng = self.streams.numpy("compose noise", self.split, index)
        snr_db, colour = rng.uniform(*self.config.noise_snr_db), rng.uniform(*self.config.noise_colour)
        return add_noise(mixed, snr_db, rng, colour=colour, level=rms(np.concatenate(played)))

    def _silence(self, milliseconds: float) -> Wave:
        return np.zeros(round(milliseconds * self.sample_rate / 1000), np.float32)

    def _clip(self, clip: Utterance) -> Wave:
        return self._waves.get(clip.key, lambda: clip.wave(self.sample_rate))
