"""A saved student that writes by a decoder, as a recogniser of audio files of any length."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from xmodal_kd.runtime.errors import UserError

from ..data.audio import Wave, blocks, duration
from ..export.decoder_folder import load_decoder_card
from ..models.processor import MelFrames, Processor, padded
from ..models.whisper import greedy, load_whisper

#: The last part of what is heard at once within which a long recording is cut, where it is most quiet, and the seconds
#: over which that is measured.
WITHIN, QUIET = 1 / 3, 0.1


class DecoderRecogniser:
    """Transcribes with what a run of ``data.task: seq2seq`` left in a folder, greedily.

    Raises:
        UserError: the folder is no such student.
    """

    def __init__(self, folder: Path | str) -> None:
        self.card = load_decoder_card(Path(folder))
        self.processor = Processor(Path(folder), self.card.language, leading_space=self.card.leading_space)
        self.model = load_whisper(Path(folder))
        self._hear = MelFrames(self.processor)

    def transcribe(self, path: Path | str, **search: Any) -> dict[str, Any]:
        """``text``, ``duration`` and ``rtf`` of a recording; a long one is heard in pieces, cut where it is quiet.

        Raises:
            UserError: the file cannot be read as audio, or a search is asked for.
        """
        if asked := next((name for name, value in search.items() if value), None):
            raise UserError(f"{asked}: a student with a decoder writes greedily: leave it out")
        started, seconds = time.perf_counter(), duration(path)
        most = int(self.processor.seconds * self.processor.rate)
        found = blocks(path, self.processor.seconds, self.processor.rate)
        texts = [self.write(piece) for piece in pieces(found, most, self.processor.rate)]
        text = " ".join(one for one in texts if one)
        return {"text": text, "duration": seconds, "rtf": (time.perf_counter() - started) / seconds}

    def write(self, wave: Wave) -> str:
        """The text of a wave ``(samples,)`` that is heard at once."""
        heard = self._hear(torch.from_numpy(wave))
        features = padded(heard[None], torch.tensor([len(heard)]), heard[-1:], self.processor.frames)
        return self.processor.decode(greedy(self.model, self.processor, features)[0])


def pieces(blocks: Iterable[Wave], most: int, rate: int) -> Iterator[Wave]:
    """A recording that comes in blocks, in pieces of at most so many samples, cut where it is most quiet."""
    held = np.zeros(0, np.float32)
    for block in blocks:
        held = np.concatenate([held, block])
        while len(held) > most:
            at = _quietest(held[:most], rate)
            yield held[:at]
            held = held[at:]
    if len(held):
        yield held


def _quietest(wave: Wave, rate: int) -> int:
    """The middle of the most quiet moment in the last part of a wave."""
    size = max(1, int(QUIET * rate))
    first = int(len(wave) * (1 - WITHIN))
    moments = wave[first : first + (len(wave) - first) // size * size].reshape(-1, size)
    return first + int(np.square(moments).mean(axis=1).argmin()) * size + size // 2


__all__ = ["DecoderRecogniser", "pieces"]
