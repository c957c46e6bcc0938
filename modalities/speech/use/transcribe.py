"""A saved student as a recogniser of audio files, of any length, in bounded memory."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from torch import Tensor

from xmodal_kd.adapter.saved_model import CARD, explain
from xmodal_kd.runtime.errors import UserError

from ..data.audio import blocks, duration
from ..data.features import Features, Frontend
from ..data.tokens import SPACE, Tokens
from ..evaluate.decode import beam, spikes
from ..export.onnx import FP32, INT8, OnnxModel
from ..export.saved_folder import load_card, load_model
from ..models.streaming import Model, Stream

Precision = Literal["fp32", "int8"]
Backend = Literal["auto", "onnx", "torch"]

#: Audio is read in chunks of so many seconds: the memory of a transcription.
CHUNK = 30.0
#: Context of a model that would see the whole utterance, at either side of a chunk: an approximation, and the usual
#: one. What such a model says of recordings shorter than a chunk is exact.
OVERLAP = 5.0


class Recogniser:
    """Transcribes with what ``save_model`` and ``export_onnx`` left in a folder, and with nothing else.

    Args:
        precision: ``int8`` needs ``model.int8.onnx``.
        backend: ``onnx``, ``torch``, or ``auto``: ONNX where its file is there.
        threads: of ONNX Runtime; torch's are the process's own.

    Raises:
        UserError: the folder lacks what is asked for, or is not a saved recogniser.
    """

    def __init__(
        self, folder: Path | str, precision: Precision = "fp32", backend: Backend = "auto", *, threads: int = 1
    ) -> None:
        self.card = load_card(folder)
        self.tokens = Tokens.from_json(json.dumps(self.card.tokens))
        try:
            self.features = Features.model_validate(self.card.features)
        except ValidationError as error:
            raise UserError(f"{Path(folder) / CARD}: features.{explain(error)}") from error
        self.model = _model(Path(folder), precision, backend, threads)
        #: Seconds between two output frames.
        self.frame = self.card.stride * self.features.hop / self.features.sample_rate

    def transcribe(self, path: Path | str, *, beam_size: int = 0) -> dict[str, Any]:
        """``text``, ``words`` (``word``, ``start``, ``end`` in seconds), ``duration`` and ``rtf`` of an audio file.

        Word times come from the spikes of the best path: a CTC model places a word late and short, within its span.
        With a beam the text is the most probable one, and only words of the best path could be timed: none are given
        where the two differ.

        Raises:
            UserError: the file cannot be read as audio.
        """
        started = time.perf_counter()
        seconds = duration(path)
        logits = torch.cat(list(self.logits(path)))
        found = spikes(logits)
        words = self._words(found)
        text = self.tokens.decode([token for token, _, _ in found])
        if beam_size:
            best = beam(logits[None], torch.tensor([len(logits)]), beam_size=beam_size)[0][0][0]
            text, words = self._prefer(self.tokens.decode(best), text, words)
        rtf = (time.perf_counter() - started) / seconds
        return {"text": text, "words": words, "duration": seconds, "rtf": rtf}

    def logits(self, path: Path | str) -> Iterator[Tensor]:
        """Logits ``(n, classes)`` of a file, chunk by chunk; joined they are those of the whole."""
        if duration(path) <= CHUNK:
            whole = torch.cat(list(self._frames(path)))
            with torch.no_grad():
                yield self.model(whole[None], torch.tensor([len(whole)]))[0][0]
            return
        left, right = self.card.receptive_field or (self._overlap, self._overlap)
        stream = Stream(self.model, left, right, stride=self.card.stride)
        for features in self._frames(path):
            yield stream.push(features)
        yield stream.finish()

    @property
    def _overlap(self) -> int:
        return round(OVERLAP * self.features.sample_rate / self.features.hop)

    def _frames(self, path: Path | str) -> Iterator[Tensor]:
        """Features ``(t, mels)`` of a file, chunk by chunk."""
        if self.features.normalise != "utterance":
            yield from _stream(path, self.features)
            return
        # the mean of the whole recording comes first: reading it twice costs less than holding an hour of it
        plain = self.features.model_copy(update={"normalise": "none"})
        total, count = torch.zeros(plain.mels, dtype=torch.float64), 0
        for chunk in _stream(path, plain):
            total, count = total + chunk.double().sum(dim=0), count + len(chunk)
        mean = (total / max(count, 1)).float()
        for chunk in _stream(path, plain):
            yield chunk - mean

    def _words(self, found: list[tuple[int, int, int]]) -> list[dict[str, Any]]:
        """Spikes as words with times: one each, or the characters between two spaces."""
        groups: list[list[tuple[int, int, int]]] = [[]]
        for spike in found:
            if self.tokens.kind == "words" or self.tokens.symbols[spike[0]] == SPACE:
                groups.append([])
            if self.tokens.decode([spike[0]]):  # a space alone says nothing
                groups[-1].append(spike)
        return [
            {
                "word": self.tokens.decode([token for token, _, _ in group]),
                "start": round(group[0][1] * self.frame, 3),
                "end": round(group[-1][2] * self.frame, 3),
            }
            for group in groups
            if group
        ]

    @staticmethod
    def _prefer(best: str, text: str, words: list[dict[str, Any]]) -> tuple[str, list[dict[str, Any]]]:
        return (text, words) if best == text else (best, [])


def _model(folder: Path, precision: str, backend: str, threads: int) -> Model:
    """The callable that a folder, a precision and a backend amount to."""
    if precision not in ("fp32", "int8") or backend not in ("auto", "onnx", "torch"):
        raise UserError(f"precision {precision!r}, backend {backend!r}: use fp32 or int8; auto, onnx or torch")
    if precision == "int8" and backend == "torch":
        raise UserError("int8 runs on ONNX Runtime only: leave the backend on auto")
    path = folder / (INT8 if precision == "int8" else FP32)
    if backend != "torch" and path.is_file():
        return OnnxModel(path, threads=threads)
    if precision == "int8" or backend == "onnx":
        raise UserError(f"{folder}: {path.name} is missing: export the student to ONNX, or use fp32 on torch")
    return load_model(folder)[0]


def _stream(path: Path | str, features: Features) -> Iterator[Tensor]:
    stream = Frontend(features).stream()
    for block in blocks(path, CHUNK, features.sample_rate):
        yield stream.push(torch.from_numpy(block))
    yield stream.finish()
