"""Audio files as mono float32 waves, through soundfile only: torchaudio's own load needs FFmpeg.

A wave is a 1-D float32 array in [-1, 1]. A file that cannot be trusted (cut, empty, not finite) is a `UserError` of
one line that names it: half a recording beside a whole transcript would teach a recogniser to invent words.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from math import gcd
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from xmodal_kd.adapter.packed.member import Member
from xmodal_kd.runtime.allocation import room
from xmodal_kd.runtime.binary_packages import loading
from xmodal_kd.runtime.errors import UserError

from .unread import HEAD, TOLD, advice, elsewhere, unpromised

with loading("soundfile"):
    import soundfile as sf

Wave = NDArray[np.float32]
#: Where audio lies: in a file, or within one.
Place = Path | str | Member

#: Taps of the resampling filter on either side of its centre, in periods of the slower of the two rates.
HALF_TAPS = 10
#: Seconds by which a segment may end behind its file: lists round.
PLAY = 0.1
#: Floats beyond this are no wave in [-1, 1] that was driven too hard, but 16-bit numbers written as floats.
LOUDEST = 100.0
#: Hz below which nothing was recorded: a header is damaged that says less.
LOWEST = 1000
#: Power of the mean of several channels, as a share of theirs, below which they cancel each other out.
CANCELLED = 1e-3
#: An Ogg page is no longer than this.
OGG_PAGE = 65307
#: Bytes behind the samples of a WAV that may be notes; of more it is looked what they are.
TAGS = 256
#: A WAV writer that cannot seek back (a pipe) leaves about this in the header: no promise, so nothing is missing.
UNKNOWN_SIZE = 0x7FFF0000


def read(path: Place, offset: float = 0.0, seconds: float | None = None) -> tuple[Wave, int]:
    """A file, or a segment of it, as ``(samples,)`` float32 mono (channels are averaged), and its sample rate in Hz.

    Args:
        offset: where the segment begins, in seconds.
        seconds: how long it is; None: to the end.
    Raises:
        UserError: the file is missing, not audio, cut short, empty, holds NaN or Inf or integers written as floats, or
            ends before the segment does.
    """
    with _opened(path) as file:
        rate = int(file.samplerate)
        start = round(offset * rate)
        count = file.frames - start if seconds is None else min(round(seconds * rate), file.frames - start)
        check_within(path, file.frames / rate, offset, seconds)
        if count <= 0:
            raise UserError(f"{path}: its segment at {offset:.2f} s holds no sample")
        if count * file.channels * 4 > room() // 4:
            raise UserError(f"{path}: {count / rate / 3600:,.0f} hours are more than the memory holds: cut it")
        if start:
            file.seek(start)
        wave = _mono(file.read(count, dtype="float32", always_2d=True), path)
        _check_count(len(wave), count, path)
        return wave, rate


def check_within(path: Place, held: float, offset: float, seconds: float | None) -> None:
    """Raises `UserError` for a segment that a file of `held` seconds does not hold."""
    if offset >= held or (seconds is not None and offset + seconds > held + PLAY):
        end = "its end" if seconds is None else f"{offset + seconds:.2f} s"
        raise UserError(f"{path}: it holds {held:.2f} s: no segment from {offset:.2f} s to {end}")


def duration(path: Place) -> float:
    """Seconds of audio by the header, without decoding. Raises `UserError` as `read` does, NaN excepted."""
    with _opened(path) as file:
        return float(file.frames / file.samplerate)


def rate_of(path: Place) -> int:
    """Hz by the header. Raises `UserError` as `duration` does."""
    with _opened(path) as file:
        return int(file.samplerate)


def look(path: Place) -> None:
    """Raises `UserError` as `duration` does, and for a stream whose header promises more than there is to its end."""
    if _plain_wav(path):
        return
    with _opened(path) as file:
        if file.seekable():
            file.seek(max(0, file.frames - 1))
            _check_count(len(file.read(1, dtype="float32", always_2d=True)), 1, path)


def _plain_wav(path: Place) -> bool:
    """Whether a file is a WAV whose samples are all there, by its first bytes: a hundred thousand take seconds so."""
    if isinstance(path, Member):
        return False
    try:
        with Path(path).open("rb", buffering=0) as file:
            head, size = file.read(64), file.seek(0, 2)
    except OSError:
        return False
    if head[:4] != b"RIFF" or head[8:16] != b"WAVEfmt " or len(head) < 44:
        return False
    kind, channels, rate = struct.unpack_from("<HHI", head, 20)
    at = 20 + int.from_bytes(head[16:20], "little")
    samples = int.from_bytes(head[at + 4 : at + 8], "little")
    whole = head[at : at + 4] == b"data" and kind in (1, 3) and channels > 0 and rate >= LOWEST
    return whole and 0 < samples <= size - at - 8 < samples + TAGS


def blocks(path: Place, seconds: float, sample_rate: int | None = None) -> Iterator[Wave]:
    """Chunks of about `seconds` of a long file, never the whole in memory; at `sample_rate` Hz if one is given.

    Joined, they are what `read` (and `resample`) give.
    """
    with _opened(path) as file:
        rate = int(file.samplerate)
        yield from resampled(_decoded(file, path, max(1, round(seconds * rate))), rate, sample_rate or rate)


def _decoded(file: Any, path: Place, size: int) -> Iterator[Wave]:
    done = 0
    while len(block := file.read(size, dtype="float32", always_2d=True)):
        done += len(block)
        yield _mono(block, path)
    _check_count(done, file.frames, path)


def resampled(waves: Iterable[Wave], old: int, new: int) -> Iterator[Wave]:
    """Chunks of a wave of `old` Hz at `new` Hz, as they come; joined, they are what `resample` gives of the whole.

    Each is resampled with its neighbours' edges in view, so the last samples of one are given with the next.
    """
    up, down = _ratio(old, new)
    # What is given out ends at multiples of `down` input samples, where an input and an output sample coincide.
    context = 0 if up == down else (HALF_TAPS * max(up, down) // (up * down) + 1) * down
    held, head = np.zeros(0, np.float32), 0
    for wave in waves:
        held = np.concatenate([held, wave])
        # The last `context` samples wait for what follows them; those before are final.
        ready = (len(held) - head - context) // down * down
        if ready > 0:
            yield _resampled(held, up, down)[head * up // down : (head + ready) * up // down]
            # what is forgotten is a multiple, too
            start = max(0, head + ready - context)
            held, head = held[start:], head + ready - start
    if len(held) > head:
        yield _resampled(held, up, down)[head * up // down :]


def resample(wave: Wave, old: int, new: int) -> Wave:
    """`wave` of `old` Hz at `new` Hz, by a polyphase low-pass filter; ``ceil(samples * new / old)`` samples."""
    return _resampled(wave, *_ratio(old, new))


def _resampled(wave: Wave, up: int, down: int) -> Wave:
    if up == down or not len(wave):
        return wave
    from scipy.signal import resample_poly  # a second of CPU, which audio of the right rate need not wait for

    out: Wave = resample_poly(wave, up, down, window=_filter(up, down)).astype(np.float32, copy=False)
    return out


def _ratio(old: int, new: int) -> tuple[int, int]:
    divisor = gcd(old, new)
    return new // divisor, old // divisor


@lru_cache(maxsize=64)
def _filter(up: int, down: int) -> Wave:
    """The low-pass filter that `resample_poly` would design anew on every call (Kaiser, beta 5)."""
    from scipy.signal import firwin

    widest = max(up, down)
    taps: Wave = firwin(2 * HALF_TAPS * widest + 1, 1 / widest, window=("kaiser", 5.0)).astype(np.float32)
    return taps


@contextmanager
def _opened(path: Place) -> Iterator[Any]:
    """A soundfile reader of a file that is there, is audio, is not empty and whose header keeps its promise."""
    if not isinstance(path, Member) and not Path(path).is_file():
        what = "a folder" if Path(path).is_dir() else f"no such file{elsewhere(Path(path))}"
        raise UserError(f"{path}: {what}: an audio file is expected")
    if (path.size if isinstance(path, Member) else Path(path).stat().st_size) == 0:
        raise UserError(f"{path}: empty: it holds no bytes")
    try:
        content = path.read() if isinstance(path, Member) else None
        with sf.SoundFile(path if content is None else io.BytesIO(content)) as file:
            _check_header(file, path, content)
            yield file
    except sf.LibsndfileError as error:
        reason = str(error.error_string).rstrip(".")
        if "lost sync" in reason or "unknown error" in reason:
            raise UserError(f"{path}: truncated or corrupt audio ({reason})") from error
        raise UserError(f"{path}: not an audio file that can be read ({reason}): {advice(_head(path))}") from error
    except TypeError as error:  # of a name in .raw it wants to be told what is in it
        raise UserError(f"{path}: samples without a header: {advice(b'')}") from error


def _head(path: Place) -> bytes:
    with _raw(path) as file:
        return file.read(HEAD)


def _raw(path: Place) -> BinaryIO:
    """The bytes of a file."""
    return io.BytesIO(path.read()) if isinstance(path, Member) else Path(path).open("rb")


def _check_header(file: Any, path: Place, content: bytes | None) -> None:
    # libsndfile shrinks the frame count of a cut WAV or AIFF to what is there, and tells only in its log.
    found = re.search(r"(?:data|SSND) *: (\d+) \(should be (\d+)\)", file.extra_info)
    if found and int(found[2]) < int(found[1]) < UNKNOWN_SIZE:
        raise UserError(f"{path}: truncated: its header promises {found[1]} bytes of audio, it holds {found[2]}")
    # an Ogg file may end without its mark (a recorded broadcast), but then it ends with a whole page
    cut_page = "lacks an end-of-stream bit" in file.extra_info and "Junk after the last page" in file.extra_info
    if cut_page or "ended unexpectedly" in file.extra_info:
        raise UserError(f"{path}: truncated: the stream has no end")
    if file.format == "OGG":
        _check_last_page(file, path)
    if file.format in TOLD:
        with _raw(path) if content is None else io.BytesIO(content) as raw:
            behind = unpromised(raw, file.format)
        if behind:
            raise UserError(
                f"{path}: {behind:,} bytes follow the {file.frames / file.samplerate:.2f} s that its header tells of: "
                "a recorder was stopped, or files were joined: write it anew (sox --ignore-length FILE "
                "FILE.flac, or ffmpeg -i FILE FILE.flac), or cut it off there"
            )
    if file.samplerate < LOWEST:
        raise UserError(f"{path}: a sample rate of {file.samplerate} Hz: its header is damaged: write it anew")
    if file.frames == 0:
        raise UserError(f"{path}: empty: it holds no samples")


def _check_last_page(file: Any, path: Place) -> None:
    """An Ogg file ends with a whole page: libsndfile plays what comes before a cut one, and says nothing."""
    if isinstance(path, Member):
        tail = path.read()[-OGG_PAGE - 27 :]
    else:
        with Path(path).open("rb") as raw:
            raw.seek(max(0, Path(path).stat().st_size - OGG_PAGE - 27))
            tail = raw.read()
    at = tail.rfind(b"OggS\0")
    if at < 0:
        return
    page = tail[at:]
    lengths = page[27 : 27 + page[26]] if len(page) > 26 else b""
    whole = 27 + page[26] + sum(lengths) if len(page) > 26 and len(lengths) == page[26] else len(page) + 1
    if whole <= len(page):
        return
    # the cut page itself says at which sample it would have ended; Opus counts at 48 kHz
    clock = 48000 if file.subtype == "OPUS" else file.samplerate
    ends = int.from_bytes(page[6:14], "little", signed=True) / clock if len(page) >= 14 else 0.0
    held = file.frames / file.samplerate
    missing = f"{ends - held:.2f} s or more are missing behind {held:.2f} s" if ends > held else "its end is missing"
    raise UserError(f"{path}: truncated: {missing}")


def _check_count(samples: int, promised: int, path: Place) -> None:
    if samples < promised:
        raise UserError(f"{path}: truncated: its header promises {promised} samples, it holds {samples}")


def _mono(frames: NDArray[np.float32], path: Place) -> Wave:
    """``(samples, channels)`` averaged over channels. Raises `UserError` where nothing is left of them."""
    wave: Wave = frames[:, 0] if frames.shape[1] == 1 else frames.mean(axis=1, dtype=np.float32)
    if frames.shape[1] > 1 and np.square(wave).mean() < CANCELLED * np.square(frames).mean():
        raise UserError(
            f"{path}: its {frames.shape[1]} channels cancel each other out, for one is turned over: write one of them "
            "(sox FILE FILE.flac remix 1)"
        )
    if not np.isfinite(wave).all():
        raise UserError(f"{path}: sample {int(np.argmin(np.isfinite(wave)))} is NaN or Inf")
    if len(wave) and (loudest := float(np.abs(wave).max())) > LOUDEST:
        raise UserError(
            f"{path}: floats up to {loudest:.0f}, where a wave lies within [-1, 1]: 16-bit numbers written as floats? "
            "divide by 32768, or write integers"
        )
    return wave
