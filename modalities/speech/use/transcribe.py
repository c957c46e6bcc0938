"""A saved student as a recogniser of audio files, of any length, in bounded memory."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import torch
from pydantic import ValidationError
from torch import Tensor

from xmodal_kd.adapter.hub import fetched
from xmodal_kd.adapter.saved_model import CARD, explain
from xmodal_kd.runtime.errors import UserError

from ..data.audio import blocks, duration
from ..data.features import Features, Frontend
from ..data.tokens import Tokens
from ..evaluate.decode import beam, greedy, spikes
from ..evaluate.spans import align, widened
from ..evaluate.word_beam import SIZE, Said, WordBeam
from ..export.onnx import FP32, INT8, OnnxModel
from ..export.onnx_steps import STREAM_FP32, STREAM_INT8, OnnxSteps
from ..export.saved_folder import Task, load_card, load_model
from ..models.encoder import EncoderForCTC
from ..models.frames import AcousticModel
from ..models.streaming import Model, StepModel, Steps, Stream, Windows

Precision = Literal["fp32", "int8"]
Backend = Literal["auto", "onnx", "torch"]
#: A token, its first frame and the one behind its last.
Spike = tuple[int, int, int]
#: Whatever begins with a token.
S = TypeVar("S", bound=tuple[Any, ...])

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

    #: How its model writes.
    task: ClassVar[Task] = "ctc"
    #: Whether its model hears waves.
    waves: ClassVar[bool] = False

    def __init__(
        self, folder: Path | str, precision: Precision = "fp32", backend: Backend = "auto", *, threads: int = 1
    ) -> None:
        self.card = load_card(folder, self.task)
        self.tokens = Tokens.from_json(json.dumps(self.card.tokens))
        try:
            self.features = Features.model_validate(self.card.features)
        except ValidationError as error:
            raise UserError(f"{Path(folder) / CARD}: {explain(error, 'features')}") from error
        self.model = self._model(Path(folder), precision, backend, threads)
        if isinstance(self.model, EncoderForCTC) and not self.waves:
            raise UserError(f"{folder}: it hears waves: give it to xmodal-kd transcribe, or to WaveRecogniser")
        self._steps = _steps(self.model, Path(folder), precision, threads)
        #: Seconds between two output frames.
        self.frame = self.card.stride * self.features.hop / self.features.sample_rate

    @classmethod
    def from_pretrained(
        cls, name: Path | str, revision: str | None = None, *, precision: Precision = "fp32",
        backend: Backend = "auto", threads: int = 1,
    ) -> Recogniser:  # fmt: skip
        """Of a folder, or of a repository of the Hugging Face Hub (``owner/name``), which is fetched once and kept.

        Args:
            revision: a branch, a tag or a commit of the repository.
        """
        return cls(fetched(name, revision), precision, backend, threads=threads)

    def _model(self, folder: Path, precision: str, backend: str, threads: int) -> Model:
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
        return load_model(folder, self.task)[0]

    @property
    def rate(self) -> int:
        """Hz of the waves of `hypothesis`."""
        return self.features.sample_rate

    def words_of(
        self, lm: Path | None, lexicon: Path | None = None, *, size: int = SIZE, lm_weight: float = 1.0,
        word_score: float = 0.0,
    ) -> WordBeam:  # fmt: skip
        """A beam over the words of a list, for `transcribe`: see `evaluate.word_beam.WordBeam`."""
        return WordBeam(self.tokens, lm, lexicon, size=size, lm_weight=lm_weight, word_score=word_score)

    def transcribe(
        self, path: Path | str, *, beam_size: int = 0, words: WordBeam | None = None, n_best: int = 0
    ) -> dict[str, Any]:
        """``text``, ``words`` (``word``, ``start`` and ``end`` in seconds, ``confidence``), ``duration`` and ``rtf``.

        Words are placed by the spikes of the path that spells the text, and reach as far as their sound does
        (`evaluate.spans`); `confidence` is the least probability of a word's symbols at their spikes. With a beam the
        text is the most probable one, found in the recording by forced alignment; a recording longer than a chunk has
        no words where its text is not that of the best path.

        Args:
            beam_size: prefixes of a search over symbols; 0: the best path.
            words: a search over words in its place.
            n_best: so many hypotheses of a search are given beside the best, as ``nbest``: ``text`` and ``score``.
        Raises:
            UserError: the file cannot be read as audio.
        """
        started = time.perf_counter()
        seconds = duration(path)
        loudness: list[Tensor] = []
        logits = torch.cat(list(self.logits(path, loudness)))
        found: list[Spike] | None = spikes(logits)
        tokens = [token for token, _, _ in found or ()]
        hypotheses = self._searched(logits, beam_size, words)
        if hypotheses and hypotheses[0].ids != tokens:
            tokens, found = hypotheses[0].ids, self._aligned(logits, hypotheses[0].ids)
        placed = self._placed(found or [], logits, torch.cat(loudness), seconds)
        rtf = (time.perf_counter() - started) / seconds
        several = [{"text": one.text, "score": round(one.score, 4)} for one in hypotheses[:n_best]]
        return {"text": self.tokens.decode(tokens), "words": placed, "duration": seconds, "rtf": rtf} | (
            {"nbest": several} if n_best else {}
        )

    def hypothesis(self, wave: Tensor) -> tuple[list[int], float]:
        """The symbols of one wave ``(samples,)`` by its best path, and its frames' mean log-probability."""
        features = Frontend(self.features)(wave)
        with torch.no_grad():
            logits, lengths = self.model(features[None], torch.tensor([len(features)]))
        sure = torch.log_softmax(logits[0, : int(lengths[0])], dim=-1).amax(dim=-1)
        [ids] = greedy(logits, lengths)
        return ids, float(sure.mean()) if len(sure) else 0.0

    def _searched(self, logits: Tensor, beam_size: int, words: WordBeam | None) -> list[Said]:
        """Hypotheses of a whole utterance, the best first; none where the best path will do."""
        length = torch.tensor([len(logits)])
        if words is not None:
            return words(logits[None], length)[0]
        if not beam_size:
            return []
        return [
            Said(self.tokens.decode(ids), score, ids)
            for ids, score in beam(logits[None], length, beam_size=beam_size)[0]
        ]

    def logits(self, path: Path | str, loudness: list[Tensor] | None = None) -> Iterator[Tensor]:
        """Logits ``(n, classes)`` of a file, chunk by chunk; joined they are those of the whole.

        Args:
            loudness: takes the mean of each frame's features, which grows with how loud it is.
        """
        if duration(path) <= CHUNK:
            whole = torch.cat(list(self._frames(path)))
            if loudness is not None:
                loudness.append(whole.mean(dim=1))
            with torch.no_grad():
                yield self.model(whole[None], torch.tensor([len(whole)]))[0][0]
            return
        stream = self.stream()
        for features in self._frames(path):
            if loudness is not None:
                loudness.append(features.mean(dim=1))
            yield stream.push(features)
        yield stream.finish()

    def stream(self) -> Stream:
        """For features of an utterance that come in chunks: with a state where the student has one, else by windows."""
        if self._steps is not None:
            return Steps(self._steps)
        return Windows(self.model, *self.context, stride=self.card.stride)

    @property
    def context(self) -> tuple[int, int]:
        """Feature frames that a frame of logits is given before and after it where a recording comes in chunks."""
        overlap = round(OVERLAP * self.features.sample_rate / self.features.hop)
        return self.card.receptive_field or (overlap, overlap)

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

    def _aligned(self, logits: Tensor, tokens: list[int]) -> list[Spike] | None:
        """Where a text is said that is not the best path's; its memory grows with the square of a recording."""
        if len(logits) * self.frame > CHUNK:
            return None
        spans = align(logits, tokens)
        return None if spans is None else [(k, *span) for k, span in zip(tokens, spans, strict=True)]

    def _groups(self, found: Sequence[S]) -> list[list[S]]:
        """The spikes of each word: one, characters between two spaces, or pieces up to one that begins a word."""
        groups: list[list[S]] = [[]]
        for spike in found:
            if self.tokens.begins_word(spike[0]) or self.tokens.ends_word(spike[0]):
                groups.append([])
            if self.tokens.decode([spike[0]]):  # a space alone says nothing
                groups[-1].append(spike)
        return [group for group in groups if group]

    def _words(self, found: list[Spike]) -> list[dict[str, Any]]:
        """Words from their first spike to their last."""
        return [
            {
                "word": self.tokens.decode([token for token, _, _ in group]),
                "start": round(group[0][1] * self.frame, 3),
                "end": round(group[-1][2] * self.frame, 3),
            }
            for group in self._groups(found)
        ]

    def _placed(self, found: list[Spike], logits: Tensor, loudness: Tensor, seconds: float) -> list[dict[str, Any]]:
        """Words as far as their sound goes, and how sure they are."""
        groups, hop = self._groups(found), self.features.hop / self.features.sample_rate
        cores = [(group[0][1] * self.card.stride, group[-1][2] * self.card.stride) for group in groups]
        return [
            word | {
                "start": round(start * hop, 3), "end": round(min(end * hop, seconds), 3),
                "confidence": round(self._confidence(group, logits), 3),
            }
            for word, group, (start, end) in zip(
                self._words(found), groups, widened(cores, loudness, hop), strict=True
            )
        ]  # fmt: skip

    @staticmethod
    def _confidence(group: list[Spike], logits: Tensor) -> float:
        return min(float(torch.softmax(logits[start:end], dim=-1)[:, token].max()) for token, start, end in group)


def _steps(model: Model, folder: Path, precision: str, threads: int) -> StepModel | None:
    """The model with a state: of torch its own, of ONNX its file, if it was exported."""
    if isinstance(model, AcousticModel):
        return model.steps()
    path = folder / (STREAM_INT8 if precision == "int8" else STREAM_FP32)
    return OnnxSteps(path, threads=threads) if path.is_file() else None


def _stream(path: Path | str, features: Features) -> Iterator[Tensor]:
    stream = Frontend(features).stream()
    for block in blocks(path, CHUNK, features.sample_rate):
        yield stream.push(torch.from_numpy(block))
    yield stream.finish()
