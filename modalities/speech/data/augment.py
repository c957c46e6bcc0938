"""Augmentation of waves and features. All randomness comes from the generator given, so a stream's key replays it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import AfterValidator, Field, model_validator
from scipy.fft import irfft, next_fast_len, rfft
from torch import Tensor

from xmodal_kd.adapter.adapter import Strict

from .audio import Wave, resample


def ordered(value: tuple[float, float]) -> tuple[float, float]:
    """Validates a range."""
    if value[0] > value[1]:
        raise ValueError(f"a range is (least, most), got {value}")
    return value


def _within(least: float, most: float) -> AfterValidator:
    def check(value: tuple[float, float]) -> tuple[float, float]:
        if not least <= value[0] <= value[1] <= most:
            raise ValueError(f"a range within {least:g} and {most:g} is expected, got {value}")
        return value

    return AfterValidator(check)


#: Hz below which vocal tract warping is a plain factor: it holds the formants.
WARPED = 4800.0
#: Seconds between two windows that a wave is stretched by, and how far each is looked for: a period of a deep voice.
HOP, SEARCHED = 0.0125, 0.008
#: (least, most), drawn uniformly.
Range = Annotated[tuple[float, float], AfterValidator(ordered)]
SpeedRange = Annotated[tuple[float, float], _within(0.1, 10)]
WarpRange = Annotated[tuple[float, float], _within(0.5, 2)]
PitchRange = Annotated[tuple[float, float], _within(-12, 12)]
GainRange = Annotated[tuple[float, float], _within(1e-3, 1e3)]
MillisecondRange = Annotated[tuple[float, float], _within(0, 60_000)]


class Augment(Strict):
    """What happens to a training utterance. A range of None is off.

    `speed` and `gain_db` change the wave that every role hears, for their frames must stay aligned; `pitch`, rooms,
    noise, `warp` and the masks of SpecAugment (Park et al., 2019) are the augmented view's alone. A width below 1 is
    a share of the mels or of the utterance's frames, from 1 on a number of them; a mask is as wide as that at most.
    """

    speed: SpeedRange | None = None
    #: How many speeds are drawn from, evenly spaced over `speed` (3 in Ko et al., 2015); None: all, to the percent.
    #: With few, and neither gain nor noise, the features of each are computed once and kept.
    speeds: int | None = Field(default=None, ge=2, le=100)
    gain_db: Range | None = None
    noise_snr_db: Range | None = None
    #: Exponent of the noise's spectrum: 0 white, 1 pink, 2 brown.
    noise_colour: Range = (0.0, 2.0)
    #: A folder of recorded noise, to be mixed in at `noise_snr_db` in place of coloured noise.
    noise_path: Path | None = None
    #: A folder of impulse responses of rooms, and the share of utterances that are heard in one.
    rooms_path: Path | None = None
    rooms_share: float = Field(default=0.5, gt=0, le=1)
    #: Semitones by which the voice is higher, or lower, at the same speed.
    pitch: PitchRange | None = None
    #: A factor on the frequencies below `WARPED`, as of a shorter or longer vocal tract (Jaitly and Hinton, 2013).
    warp: WarpRange | None = None
    freq_masks: int = Field(default=2, ge=0)
    freq_width: float = Field(default=0.15, ge=0)
    time_masks: int = Field(default=2, ge=0)
    time_width: float = Field(default=0.05, ge=0)

    @model_validator(mode="after")
    def _some_noise(self) -> Augment:
        if self.noise_path is not None and self.noise_snr_db is None:
            raise ValueError("noise_path: say how loud, such as noise_snr_db: [5, 20]")
        return self

    @property
    def noisy(self) -> bool:
        """Whether the augmented view's wave is another than the clean one's."""
        return self.noise_snr_db is not None or self.rooms_path is not None or self.pitch is not None

    @property
    def waves(self) -> bool:
        """Whether anything happens to waves, so that features cannot be computed once."""
        return self.noisy or self.speed is not None or self.gain_db is not None

    @property
    def few_speeds(self) -> bool:
        """Whether a wave is heard in so few ways, by its speed alone, that the features of each are worth keeping."""
        return self.speeds is not None and self.speed is not None and self.gain_db is None and not self.noisy

    @property
    def masks(self) -> bool:
        return self.freq_masks > 0 or self.time_masks > 0

    @property
    def fastest(self) -> float:
        """The highest speed, at which an utterance has the fewest frames."""
        return 1.0 if self.speed is None else round(100 * self.speed[1]) / 100  # as `change_speed` rounds

    @property
    def slowest(self) -> float:
        """The lowest speed, at which an utterance lasts longest."""
        return 1.0 if self.speed is None else round(100 * self.speed[0]) / 100


def perturb(wave: Wave, config: Augment, rng: np.random.Generator) -> Wave:
    """Speed and gain: what every role hears."""
    if config.speed is not None:
        wave = change_speed(wave, draw_speed(config, rng))
    if config.gain_db is not None:
        wave = wave * np.float32(10 ** (rng.uniform(*config.gain_db) / 20))
    return wave


def draw_speed(config: Augment, rng: np.random.Generator) -> float:
    """A factor of ``config.speed``, which is given: any, or one of ``config.speeds``."""
    assert config.speed is not None
    if config.speeds is None:
        return rng.uniform(*config.speed)
    return float(np.linspace(*config.speed, config.speeds)[rng.integers(config.speeds)])


def change_speed(wave: Wave, factor: float) -> Wave:
    """Tempo and pitch times `factor`, to the nearest percent; ``ceil(samples / factor)`` samples."""
    return resample(wave, round(100 * factor), 100)


def shift_pitch(wave: Wave, semitones: float, rate: int) -> Wave:
    """`wave` as long as it was, its frequencies times ``2^(semitones / 12)``, to the nearest percent.

    It is stretched by WSOLA (Verhelst and Roelands, 1993) and played as much faster.
    """
    percent = round(100 * 2 ** (semitones / 12))
    if percent == 100 or not len(wave):
        return wave
    shifted = resample(_stretched(wave, percent / 100, rate), percent, 100)[: len(wave)]
    return np.pad(shifted, (0, len(wave) - len(shifted)))


def _stretched(wave: Wave, factor: float, rate: int) -> Wave:
    """``round(samples * factor)`` samples at the same pitch.

    Of windows that overlap by half, each is taken where it continues best what the one before it would have gone on
    with, by their cross-correlation, not far from where it stands in `wave`.
    """
    hop, search = max(1, round(rate * HOP)), max(1, round(rate * SEARCHED))
    samples = round(len(wave) * factor)
    padded = np.pad(wave, (search, search + 3 * hop))
    taper = (0.5 - 0.5 * np.cos(np.pi * np.arange(2 * hop) / hop)).astype(np.float32)
    out = np.zeros(samples + 3 * hop, np.float32)
    out[:hop] = wave[:hop] if len(wave) >= hop else np.pad(wave, (0, hop - len(wave)))
    at = search - hop  # of the window that would have ended in the first `hop` samples
    for start in range(0, samples + hop, hop):
        ideal = search + min(round(start / factor), len(wave))
        goes_on = padded[max(at + hop, 0) : at + 3 * hop]
        region = padded[ideal - search : ideal + search + len(goes_on)]
        at = ideal - search + int(np.correlate(region, goes_on, "valid").argmax()) if len(goes_on) == 2 * hop else ideal
        piece = padded[at : at + 2 * hop]
        out[start : start + len(piece)] += taper[: len(piece)] * piece
    return out[:samples]


def add_noise(wave: Wave, snr_db: float, rng: np.random.Generator, *, colour: float = 1.0, level: float = 0.0) -> Wave:
    """`wave` with noise `snr_db` below `level`, the RMS of its speech (0: the RMS of the whole wave)."""
    scale = (level or rms(wave)) * 10 ** (-snr_db / 20)
    return wave + np.float32(scale) * coloured_noise(len(wave), colour, rng)


def coloured_noise(samples: int, colour: float, rng: np.random.Generator) -> Wave:
    """``(samples,)`` of RMS 1 whose power falls as 1 / frequency**colour: 0 white, 1 pink, 2 brown."""
    size = next_fast_len(max(samples, 16), real=True)
    spectrum = rfft(rng.standard_normal(size, dtype=np.float32))
    # Flat below 1/200 of the sample rate: brown noise would else be a rumble nobody hears, whatever its SNR.
    frequency = np.maximum(np.arange(len(spectrum)), size / 200)
    noise = irfft(spectrum * frequency ** (-colour / 2), size)[:samples]
    return (noise / max(rms(noise), 1e-12)).astype(np.float32)  # type: ignore[no-any-return]


def rms(wave: Wave) -> float:
    return float(np.sqrt(np.mean(np.square(wave), dtype=np.float64))) if len(wave) else 0.0


def spec_augment(features: Tensor, config: Augment, rng: np.random.Generator) -> Tensor:
    """``(t, mels)`` with bands of mels and stretches of time set to the utterance's mean of each mel; a new tensor."""
    frames, mels = features.shape
    hidden = torch.zeros(frames, mels, dtype=torch.bool)
    for _ in range(config.freq_masks):
        hidden[:, _span(mels, config.freq_width, rng)] = True
    for _ in range(config.time_masks):
        hidden[_span(frames, config.time_width, rng)] = True
    return torch.where(hidden, features.mean(dim=0), features)


def warp_frequencies(features: Tensor, factor: float, sample_rate: int) -> Tensor:
    """``(t, mels)`` as a vocal tract shorter by `factor` would have sounded; a new tensor.

    What stood at frequency f stands at ``factor f``, up to `WARPED` (of either), and from there on linearly up to half
    the sample rate (Jaitly and Hinton, 2013, equation 1). They move the filters before energies are taken; here the
    logarithms are interpolated between neighbouring filters, so features are computed once.
    """
    mels, nyquist = features.shape[1], sample_rate / 2
    step = _mel(nyquist) / (mels + 1)
    heard = 700 * (10 ** (step * np.arange(1, mels + 1) / 2595) - 1)  # Hz, the filters' centres
    knee = min(WARPED * min(factor, 1.0), 0.95 * nyquist * min(factor, 1.0))  # of what is heard
    source = np.interp(heard, [0.0, knee, nyquist], [0.0, knee / factor, nyquist])
    place = np.clip(_mel(source) / step - 1, 0, mels - 1)
    low = np.minimum(place.astype(np.int64), max(mels - 2, 0))
    share = torch.from_numpy((place - low).astype(np.float32))
    return torch.lerp(features[:, low], features[:, np.minimum(low + 1, mels - 1)], share)


def _mel(hertz: Any) -> Any:
    """HTK's scale, as the features'."""
    return 2595 * np.log10(1 + np.asarray(hertz) / 700)


def _span(size: int, width: float, rng: np.random.Generator) -> slice:
    """A stretch of 0 to `width` (share or count) of `size` positions, anywhere among them."""
    widest = int(width * size) if width < 1 else min(int(width), size)
    length = int(rng.integers(widest + 1))
    start = int(rng.integers(size - length + 1))
    return slice(start, start + length)
