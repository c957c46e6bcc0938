"""A saved transducer as a recogniser of audio files, of any length, and of sound that comes in chunks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor

from xmodal_kd.runtime.errors import UserError

from ..data.audio import duration
from ..data.features import Frontend
from ..evaluate.spans import widened
from ..evaluate.transducer import Greedy, Parts, Spoken, TorchParts, beam
from ..export.saved_folder import Task
from ..export.transducer import OnnxParts
from ..models.transducer import Transducer
from .transcribe import Backend, Precision, Recogniser


class TransducerRecogniser(Recogniser):
    """Transcribes with what a run of ``data.task: transducer`` left in a folder.

    Its `logits` are the states of the encoder.

    Raises:
        UserError: the folder lacks what is asked for, or is no such student.
    """

    task: ClassVar[Task] = "transducer"
    model: Any

    def __init__(
        self, folder: Path | str, precision: Precision = "fp32", backend: Backend = "auto", *, threads: int = 1
    ) -> None:
        super().__init__(folder, precision, backend, threads=threads)
        whole = isinstance(self.model, Transducer)
        self.parts: Parts = TorchParts(self.model) if whole else OnnxParts(Path(folder), threads=threads)

    def words_of(
        self, lm: Path | None, lexicon: Path | None = None, *, size: int = 0, lm_weight: float = 1.0,
        word_score: float = 0.0,
    ) -> NoReturn:  # fmt: skip
        """There is none: raises `UserError`."""
        raise UserError("--lm, --lexicon: a transducer's beam is over symbols: leave them out")

    def transcribe(self, path: Path | str, *, beam_size: int = 0, words: Any = None, n_best: int = 0) -> dict[str, Any]:
        """``text``, ``words`` (``word``, ``start`` and ``end`` in seconds, ``confidence``), ``duration`` and ``rtf``.

        A word stands where its symbols were written, and reaches as far as its sound does; `confidence` is the least
        probability of its symbols. With a beam, a text that is not the greedy one has no words.

        Args:
            beam_size: sequences that torchaudio's beam search keeps; 0: greedy.
            n_best: so many of them are given as ``nbest``: ``text`` and ``score``.
        Raises:
            UserError: the file cannot be read as audio, or a search over words is asked for.
        """
        if words is not None:
            self.words_of(None)
        started = time.perf_counter()
        seconds = duration(path)
        loudness: list[Tensor] = []
        states = list(self.logits(path, loudness))
        search = Greedy(self.parts, 1)
        said = [one for piece in states for one in search.push(piece[None])[0]]
        ids = [one.symbol for one in said]
        found = beam(self.parts, torch.cat(states), beam_size) if beam_size else []
        if found and found[0][0] != ids:
            ids, said = found[0][0], []
        placed = self._of_spoken(said, torch.cat(loudness), seconds)
        rtf = (time.perf_counter() - started) / seconds
        several = [{"text": self.tokens.decode(one), "score": round(score, 4)} for one, score in found[:n_best]]
        return {"text": self.tokens.decode(ids), "words": placed, "duration": seconds, "rtf": rtf} | (
            {"nbest": several} if n_best else {}
        )

    def hypothesis(self, wave: Tensor) -> tuple[list[int], float]:
        """The symbols of one wave ``(samples,)``, and the mean log-probability of them."""
        features = Frontend(self.features)(wave)
        with torch.no_grad():
            states, _ = self.model(features[None], torch.tensor([len(features)]))
        [said] = Greedy(self.parts, 1).push(states)
        sure = torch.tensor([one.probability for one in said]).log()
        return [one.symbol for one in said], float(sure.mean()) if said else 0.0

    def _of_spoken(self, said: Sequence[Spoken], loudness: Tensor, seconds: float) -> list[dict[str, Any]]:
        """Words as far as their sound goes, and how sure they are."""
        groups = self._groups(said)
        cores = [(group[0].frame * self.card.stride, (group[-1].frame + 1) * self.card.stride) for group in groups]
        hop = self.features.hop / self.features.sample_rate
        return [
            {
                "word": self.tokens.decode([one.symbol for one in group]),
                "start": round(start * hop, 3), "end": round(min(end * hop, seconds), 3),
                "confidence": round(min(one.probability for one in group), 3),
            }
            for group, (start, end) in zip(groups, widened(cores, loudness, hop), strict=True)
        ]  # fmt: skip


__all__ = ["TransducerRecogniser"]
