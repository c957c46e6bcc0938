"""A saved student that hears waves as a recogniser of audio files, of any length."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor
from torch.nn import functional as F

from xmodal_kd.runtime.errors import UserError

from ..data.audio import blocks, duration
from ..evaluate.decode import greedy
from ..models.encoder import EncoderForCTC
from .transcribe import CHUNK, OVERLAP, Backend, Precision, Recogniser


class WaveRecogniser(Recogniser):
    """Transcribes with what a run of a student ``encoder`` left in a folder.

    A recording longer than a chunk is heard in windows that overlap, as usual and not exactly.

    Raises:
        UserError: the folder lacks what is asked for, or is no such student.
    """

    waves: ClassVar[bool] = True
    model: Any

    def __init__(
        self, folder: Path | str, precision: Precision = "fp32", backend: Backend = "auto", *, threads: int = 1
    ) -> None:
        super().__init__(folder, precision, backend, threads=threads)
        if not isinstance(self.model, EncoderForCTC):
            raise UserError(f"{folder}: its {self.card.model!r} hears features")
        self._ears = self.model.front_end(self.features)

    @property
    def rate(self) -> int:
        return self._ears.rate

    def stream(self) -> NoReturn:
        """There is none: raises `UserError`."""
        raise UserError("an encoder of waves hears whole recordings: give files instead of -")

    def said(self, wave: Tensor) -> Tensor:
        """Logits ``(n, classes)`` of a wave ``(samples,)`` at its own rate."""
        batch = {"waves": wave[None], "samples": torch.tensor([len(wave)]), "wave_rate": self.rate}
        with torch.no_grad():
            logits = self._ears.hear(self.model, batch, "clean").logits
        assert logits is not None
        return logits[0]

    def hypothesis(self, wave: Tensor) -> tuple[list[int], float]:
        logits = self.said(wave)
        sure = torch.log_softmax(logits, dim=-1).amax(dim=-1)
        [ids] = greedy(logits[None], torch.tensor([len(logits)]))
        return ids, float(sure.mean()) if len(sure) else 0.0

    def logits(self, path: Path | str, loudness: list[Tensor] | None = None) -> Iterator[Tensor]:
        """As `Recogniser.logits`: a row a frame, of which the last may stand for one that the wave did not fill."""
        if loudness is not None:
            loudness += [features.mean(dim=1) for features in self._frames(path)]
        read = [torch.from_numpy(one) for one in blocks(path, CHUNK, self.rate)]
        wave, step = torch.cat(read), round(self._ears.frame * self.rate)
        if duration(path) <= CHUNK:
            yield _filled(self.said(wave), -(-len(wave) // step))
            return
        inner, margin = round(CHUNK * self.rate) // step * step, round(OVERLAP * self.rate) // step * step
        for start in range(0, len(wave), inner):
            first = max(0, start - margin)
            window = wave[first : start + inner + margin]
            frames = -(-min(inner, len(wave) - start) // step)
            at = (start - first) // step
            yield _filled(self.said(window), -(-len(window) // step))[at : at + frames]


def _filled(rows: Tensor, count: int) -> Tensor:
    """So many rows, the last one repeated: convolutions without padding leave out what is shorter than they are."""
    return F.pad(rows.T[None], (0, max(0, count - len(rows))), mode="replicate")[0].T[:count]


__all__ = ["WaveRecogniser"]
