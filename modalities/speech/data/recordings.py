"""Noise and rooms as somebody recorded them: folders of files that training utterances are mixed with."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
from scipy.fft import irfft, next_fast_len, rfft

from xmodal_kd.runtime.bounded_cache import BoundedCache
from xmodal_kd.runtime.errors import UserError

from .audio import Wave, duration, read, resample
from .augment import rms
from .suffixes import SUFFIXES, is_sound

#: Bytes of impulse responses that are kept.
MEMORY = 64 << 20
#: Seconds of an impulse response: what is longer is a recording of something else.
LONGEST = 20.0


class Recordings:
    """The audio files under a folder, in the order of their names.

    Args:
        key: of the recipe, for messages.
    Raises:
        UserError: no such folder, or no audio in it.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.key, self.folder = key, folder.expanduser()
        if not self.folder.is_dir():
            raise UserError(f"{key}: {folder} is no folder: name one that holds recordings")
        self.files = sorted(filter(is_sound, self.folder.rglob("*")))
        if not self.files:
            raise UserError(f"{key}: {folder} holds no audio (such as {', '.join(SUFFIXES[:3])}): name another folder")

    def _drawn(self, rng: np.random.Generator) -> Path:
        return self.files[int(rng.integers(len(self.files)))]


class Noises(Recordings):
    """Recordings of noise, of any length and rate."""

    @cached_property
    def _seconds(self) -> dict[Path, float]:
        return {}

    def add(self, wave: Wave, rate: int, snr_db: float, rng: np.random.Generator) -> Wave:
        """`wave` with a stretch of a recording, begun anywhere in it and repeated where it ends too soon, whose level
        over the whole wave is `snr_db` below the wave's. A stretch that is silent adds nothing."""
        path, start = self._drawn(rng), rng.random()
        if path not in self._seconds:
            self._seconds[path] = duration(path)
        wanted, there = len(wave) / rate, self._seconds[path]
        offset = start * max(0.0, there - wanted)
        piece, own = read(path, offset, min(wanted, there - offset))
        noise = np.resize(resample(piece, own, rate), len(wave))
        loud = rms(noise)
        return wave + np.float32(rms(wave) * 10 ** (-snr_db / 20) / loud) * noise if loud > 0 else wave


class Rooms(Recordings):
    """Impulse responses of rooms."""

    @cached_property
    def _kept(self) -> BoundedCache[Wave]:
        return BoundedCache(MEMORY)

    def echo(self, wave: Wave, rate: int, rng: np.random.Generator) -> Wave:
        """`wave` as it sounds in a room, as long and as loud as it was.

        What reaches the microphone first and loudest stays where it was, so frames keep their words.
        """
        path = self._drawn(rng)
        response = self._kept.get((path, rate), lambda: self._response(path, rate))
        size = next_fast_len(len(wave) + len(response) - 1, real=True)
        heard = irfft(rfft(wave, size) * rfft(response, size), size)[: len(wave)].astype(np.float32)
        loud = rms(heard)
        return heard * np.float32(rms(wave) / loud) if loud > 0 else wave

    def _response(self, path: Path, rate: int) -> Wave:
        if (seconds := duration(path)) > LONGEST:
            raise UserError(f"{self.key}: {path} is {seconds:.0f} s long: a room's echo ends within {LONGEST:g} s")
        wave, own = read(path)
        response = resample(wave, own, rate)
        if not rms(response) > 0:
            raise UserError(f"{self.key}: {path} is silent: an impulse response begins with a click")
        return response[int(np.abs(response).argmax()) :]


__all__ = ["Noises", "Rooms"]
