"""Log-mel features whose streaming form equals the offline one.

Frame t covers the samples ``[t * hop, t * hop + window)`` and no others, and the running mean looks back only, so a
recogniser may hear a microphone and be trained on files.
"""

from __future__ import annotations

import warnings
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from xmodal_kd.adapter.adapter import Strict
from xmodal_kd.runtime.binary_packages import loading
from xmodal_kd.runtime.errors import UserError

with loading("torchaudio"):
    from torchaudio.functional import melscale_fbanks

#: Energies below this are silence: above the rounding noise of 16 bits, below any room.
FLOOR = 1e-6
#: What the running mean believes before it has heard anything, and the number of frames that this belief counts for.
#: Over all mels, the average is -5.4 on FSDD and -4.9 on Kathleen at 16 kHz, -4.9 and -6.0 at 8 kHz.
PRIOR, PRIOR_FRAMES = -5.0, 50


class Features(Strict):
    """How audio becomes frames. ``running`` and ``none`` can stream; ``utterance`` needs the whole recording."""

    sample_rate: int = Field(default=16000, gt=0, le=1_000_000)
    mels: int = Field(default=40, gt=0, le=4096)
    window_ms: float = Field(default=25.0, gt=0, le=10_000)
    hop_ms: float = Field(default=10.0, gt=0, le=10_000)
    normalise: Literal["utterance", "running", "none"] = "running"

    @model_validator(mode="after")
    def _resolution(self) -> Features:
        if not 1 <= self.hop <= self.window:
            raise ValueError(
                f"features.hop_ms: {self.hop_ms} is not between one sample and window_ms ({self.window_ms})"
            )
        return self

    @property
    def window(self) -> int:
        """Samples of a frame."""
        return round(self.sample_rate * self.window_ms / 1000)

    @property
    def hop(self) -> int:
        """Samples between the beginnings of two frames."""
        return round(self.sample_rate * self.hop_ms / 1000)


class Frontend:
    """Features of waves at ``config.sample_rate``.

    >>> frontend = Frontend(Features())
    >>> frontend(torch.zeros(16000)).shape, frontend.frames(16000)
    (torch.Size([98, 40]), 98)
    """

    def __init__(self, config: Features) -> None:
        self.config = config
        self.fft = 1 << (config.window - 1).bit_length()
        self.taper = torch.hann_window(config.window)
        self.bank = _mel_bank(config, self.fft)

    def __call__(self, wave: Tensor) -> Tensor:
        """``(samples,)`` float32 to ``(t, mels)`` float32; a wave shorter than one window gives one frame."""
        if wave.ndim != 1:
            raise ValueError(f"a wave is 1-D, got {tuple(wave.shape)}")
        x = self.log_mel(F.pad(wave, (0, max(0, self.config.window - len(wave)))))
        match self.config.normalise:
            case "utterance":
                return x - x.mean(dim=0)
            case "running":
                return RunningMean()(x)
            case "none":
                return x

    def log_mel(self, wave: Tensor) -> Tensor:
        """``(samples,)`` to ``(t, mels)`` natural logarithms of mel energies, whole windows only."""
        frames = wave.unfold(0, self.config.window, self.config.hop) * self.taper  # t window
        power = torch.fft.rfft(frames, n=self.fft).abs().square()  # t bins
        energy: Tensor = power @ self.bank  # t mels
        return energy.clamp(min=FLOOR).log()

    def frames(self, samples: int) -> int:
        """Frames of a wave of so many samples."""
        return 1 + max(0, samples - self.config.window) // self.config.hop

    def frames_of(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """`frames` of each."""
        found: NDArray[np.int64] = 1 + np.maximum(0, samples - self.config.window) // self.config.hop
        return found

    def stream(self) -> FeatureStream:
        """A new stream. Raises `UserError` if the features need the whole recording."""
        return FeatureStream(self)


class FeatureStream:
    """The features of a wave that arrives in chunks of any size."""

    def __init__(self, frontend: Frontend) -> None:
        if frontend.config.normalise == "utterance":
            raise UserError("features.normalise: 'utterance' needs the whole recording; 'running' or 'none' can stream")
        self.frontend = frontend
        self.held = torch.zeros(0)
        self.mean = RunningMean() if frontend.config.normalise == "running" else None
        self.emitted = 0

    def push(self, chunk: Tensor) -> Tensor:
        """``(samples,)`` float32, the next of the wave, to the ``(t, mels)`` frames that it completes."""
        config = self.frontend.config
        self.held = torch.cat([self.held, chunk])
        if len(self.held) < config.window:
            return torch.zeros(0, config.mels)
        x = self.frontend.log_mel(self.held)
        self.held = self.held[len(x) * config.hop :]
        self.emitted += len(x)
        return x if self.mean is None else self.mean(x)

    def finish(self) -> Tensor:
        """What the end of the wave completes: one padded frame if all of it was shorter than a window, else none."""
        if self.emitted:
            return torch.zeros(0, self.frontend.config.mels)
        return self.push(torch.zeros(self.frontend.config.window - len(self.held)))


class RunningMean:
    """Subtracts from frame t the mean ``m_t = (k prior + sum_{tau <= t} x_tau) / (k + t + 1)`` of each mel."""

    def __init__(self) -> None:
        self.total: Tensor | float = PRIOR_FRAMES * PRIOR
        self.count = PRIOR_FRAMES

    def __call__(self, x: Tensor) -> Tensor:
        """``(t, mels)``, the next frames, to the same, normalised."""
        # float64: the sum of an hour must come out the same whichever chunks it was added in
        total = self.total + x.double().cumsum(dim=0)  # t mels
        count = self.count + torch.arange(1, len(x) + 1, dtype=torch.float64)
        if len(x):
            self.total, self.count = total[-1], self.count + len(x)
        return (x - total / count[:, None]).float()


def _mel_bank(config: Features, fft: int) -> Tensor:
    """``(bins, mels)`` triangular filters (HTK scale) from 0 Hz to half the sample rate."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchaudio warns of an empty filter; here it is an error with a remedy
        bank: Tensor = melscale_fbanks(
            fft // 2 + 1, 0.0, config.sample_rate / 2, config.mels, config.sample_rate, norm=None, mel_scale="htk"
        )
    if bool((bank.sum(dim=0) == 0).any()):
        raise UserError(
            f"features.mels: {config.mels} is too many for windows of {config.window_ms} ms: some stay empty"
        )
    return bank
