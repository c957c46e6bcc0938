"""A recogniser that hears a wave as it comes, from a microphone or a pipe, and says each word when it is final."""

from __future__ import annotations

import wave as wav
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from xmodal_kd.runtime.errors import UserError

from ..data.audio import Wave, resampled
from ..data.features import Frontend
from ..evaluate.transducer import Greedy
from ..models.streaming import CHUNK
from .transcribe import Recogniser
from .transducer import TransducerRecogniser

#: Bytes of a sample of raw sound, and what a full one counts.
WIDTH, FULL = 2, 32768.0
#: Hz beyond which nobody records speech: a mistyped rate.
FASTEST = 1_000_000


class Live:
    """The words of one endless utterance.

    A word is final when the frame behind it is: of a convolutional student after its look-ahead, of one that would
    see the whole utterance after five seconds, by overlapping windows (an approximation). Its times are those of its
    spikes.

    Raises:
        UserError: the student's features need the whole recording.
    """

    def __init__(self, recogniser: Recogniser) -> None:
        self.recogniser, self.frontend = recogniser, Frontend(recogniser.features).stream()
        self.stream, self._any = recogniser.stream(), False
        self.search = Greedy(recogniser.parts, 1) if isinstance(recogniser, TransducerRecogniser) else None
        #: Frames of logits so far; the token that is being said, since which frame, and how surely.
        self._frames, self._token, self._start, self._sure = 0, 0, 0, 0.0
        #: Tokens of the word that has begun: each with its first frame, the one behind its last, and its probability.
        self._begun: list[tuple[int, int, int, float]] = []
        self._samples = 0

    def push(self, wave: Wave) -> Iterator[dict[str, Any]]:
        """Words that a chunk of any length, at the student's sample rate, makes final.

        ``word``, ``start`` and ``end`` in seconds, ``confidence``.
        """
        self._samples += len(wave)
        yield from self._heard(self.frontend.push(torch.from_numpy(wave)))

    def finish(self) -> Iterator[dict[str, Any]]:
        """The last words."""
        yield from self._heard(self.frontend.finish())
        if self._any:
            yield from self._spoken(self.stream.finish())
        yield from self._said(0, 0.0)
        yield from self._word()

    def _heard(self, features: Tensor) -> Iterator[dict[str, Any]]:
        if len(features):
            self._any = True
            yield from self._spoken(self.stream.push(features))

    def _spoken(self, logits: Tensor) -> Iterator[dict[str, Any]]:
        if self.search is not None:
            for one in self.search.push(logits[None])[0]:
                yield from self._ended((one.symbol, one.frame, one.frame + 1, one.probability))
            return
        sure, best = torch.softmax(logits, dim=-1).max(dim=-1)
        for token, p in zip(best.tolist(), sure.tolist(), strict=True):
            yield from self._said(token, p)
            self._frames += 1

    def _said(self, token: int, p: float) -> Iterator[dict[str, Any]]:
        """A frame's token: a repeat goes on, another one ends what was being said."""
        if token == self._token:
            self._sure = max(self._sure, p)
            return
        ended = self._token, self._start, self._frames, self._sure
        self._token, self._start, self._sure = token, self._frames, p
        if ended[0]:
            yield from self._ended(ended)

    def _ended(self, ended: tuple[int, int, int, float]) -> Iterator[dict[str, Any]]:
        """A token that was said whole."""
        tokens = self.recogniser.tokens
        if tokens.begins_word(ended[0]):
            yield from self._word()
        if tokens.decode([ended[0]]):  # a gap alone says nothing
            self._begun.append(ended)
        if tokens.ends_word(ended[0]):
            yield from self._word()

    def _word(self) -> Iterator[dict[str, Any]]:
        begun, self._begun = self._begun, []
        if begun:
            heard = self._samples / self.recogniser.features.sample_rate
            yield {
                "word": self.recogniser.tokens.decode([token for token, *_ in begun]),
                "start": round(begun[0][1] * self.recogniser.frame, 3),
                "end": round(min(begun[-1][2] * self.recogniser.frame, heard), 3),
                "confidence": round(min(p for *_, p in begun), 3),
            }


def words(recogniser: Recogniser, waves: Iterable[Wave], rate: int) -> Iterator[dict[str, Any]]:
    """The words of a wave of `rate` Hz that comes in chunks."""
    live = Live(recogniser)
    for wave in resampled(waves, rate, recogniser.features.sample_rate):
        yield from live.push(wave)
    yield from live.finish()


def heard(stream: BinaryIO, raw: int | None, name: str = "standard input") -> tuple[Iterator[Wave], int]:
    """Chunks of what a pipe brings, mono, and its sample rate.

    Args:
        raw: Hz of headerless 16-bit little-endian mono samples; None: the stream is a WAV file of 16-bit samples.

    Raises:
        UserError: it is neither.
    """
    if raw is not None:
        if not 0 < raw <= FASTEST:
            raise UserError(f"--raw {raw}: it is the sample rate in Hz, as 16000")
        return _mono(lambda count: stream.read(count * WIDTH), 1, raw), raw
    try:
        file = wav.open(stream, "rb")  # noqa: SIM115 - the pipe is the caller's
    except (wav.Error, EOFError) as error:
        why = str(error) or "it ends within its header"
        raise UserError(
            f"{name}: no WAV stream ({why}): send one, or 16-bit little-endian samples with their rate: --raw 16000"
        ) from error
    if file.getsampwidth() != WIDTH:
        raise UserError(f"{name}: a WAV of {8 * file.getsampwidth()} bits: send 16-bit samples")
    return _mono(file.readframes, file.getnchannels(), file.getframerate()), file.getframerate()


def _mono(read: Any, channels: int, rate: int) -> Iterator[Wave]:
    left = b""
    while block := read(max(1, round(CHUNK * rate))):
        block = left + block
        whole = len(block) - len(block) % (WIDTH * channels)
        left = block[whole:]
        frames = np.frombuffer(block[:whole], "<i2").reshape(-1, channels).astype(np.float32)
        yield (frames.mean(axis=1) / FULL).astype(np.float32)


__all__ = ["Live", "heard", "words"]
