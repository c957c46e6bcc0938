"""Speech: audio and transcripts to rows of frames, CTC models, word errors, exported recognisers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn

from xmodal_kd.adapter.adapter import Adapter, Batch, Evaluation, is_teacher
from xmodal_kd.adapter.listed import Listed
from xmodal_kd.adapter.panels import Panel
from xmodal_kd.adapter.saved_model import About
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.runtime.registry import Registry
from xmodal_kd.signals.capture import capture, only_call
from xmodal_kd.signals.class_mapping import columns, map_classes
from xmodal_kd.signals.signals import Layout, Signals

from .data.audio import look
from .data.corpora import SPLITS, SpeechData, build_tokens, utterances
from .data.source import Sample, SpeechSource
from .evaluate.decode import greedy
from .evaluate.score import score
from .export.card import about
from .export.onnx import FP32, INT8, OnnxModel, export_onnx, quantise
from .export.saved_folder import load_model, save_model
from .losses.ctc import ctc  # noqa: F401 - registers the loss
from .losses.frame_alignment import fit_frames, pool_features, pool_posteriors
from .models import MODELS, AcousticModel
from .show.panels import show

#: Utterances whose features set the ranges of int8 activations.
CALIBRATION = 64


class SpeechAdapter(Adapter):
    """Teacher and student hear the same utterance, meet on the student's frame grid, and share one vocabulary.

    A frozen teacher hears the clean features (``data.teacher_view``), whatever learns hears the augmented ones.
    """

    Data: ClassVar[type[SpeechData]] = SpeechData
    models: ClassVar[Registry[Any]] = MODELS
    metric: ClassVar[tuple[str, bool]] = ("wer", True)
    blank: ClassVar[int | None] = 0
    quick_export: ClassVar[bool] = False
    datasets: ClassVar[Mapping[str, str]] = {
        "fsdd": "Free Spoken Digit Dataset's layout: recordings/{digit}_{speaker}_{take}.wav",
        "librispeech": "LibriSpeech's layout: <split>/<speaker>/<chapter>/*.flac with *.trans.txt",
        "manifest": "JSON lines with audio_filepath, text, and if known duration and speaker (NeMo's layout)",
    }

    def __init__(self, data: SpeechData, streams: Streams, batch_size: int) -> None:
        self.config, self.streams, self.batch_size = data, streams, batch_size
        self.tokens = build_tokens(data)
        self.stride = 4
        self._sources: dict[str, SpeechSource] = {}
        self._names: dict[str, Sequence[str]] = {}
        #: Of a role with a vocabulary of its own, which of its classes each of ours is.
        self._columns: dict[str, tuple[int, ...]] = {}

    @classmethod
    def files(cls, data: SpeechData) -> Iterator[Listed]:
        for split in SPLITS:
            for utterance in utterances(data, split):
                yield Listed(utterance.key, utterance.path, look)

    def data(self, split: str) -> SpeechSource:
        if split not in self._sources:
            self._sources[split] = SpeechSource(
                self.config, split, self.tokens, self.streams, self.batch_size, self.stride
            )
        return self._sources[split]

    # ---------------------------------------------------------------- models

    def build(self, role: str, model: str, params: Mapping[str, Any]) -> AcousticModel:
        kind = MODELS[model]
        config = kind.Config.model_validate(params)
        built = kind(config, mels=self.config.features.mels, classes=len(self.tokens))
        built.card = {"model": model, "params": config.model_dump(mode="json")}
        return self._registered(role, built, self.tokens.symbols)

    def load(self, role: str, folder: Path) -> AcousticModel:
        model, card = load_model(folder)
        features = self.config.features.model_dump(mode="json")
        for key, value in features.items():
            if card.features.get(key) != value:
                raise UserError(
                    f"{folder}: its {role} hears features.{key} = {card.features.get(key)!r}, the recipe says {value!r}"
                )
        symbols = tuple(card.tokens["symbols"])
        if symbols != self.tokens.symbols and is_teacher(role) and self.config.vocabulary == "by_name":
            self._columns[role] = columns(self.tokens.symbols, symbols, f"{folder}: its {role}")
        elif symbols != self.tokens.symbols:
            at = next((i for i, (a, b) in enumerate(zip(symbols, self.tokens.symbols, strict=False)) if a != b), None)
            where = f"class {at} is {symbols[at]!r} there, {self.tokens.symbols[at]!r} here" if at is not None else (
                f"{len(symbols)} classes there, {len(self.tokens)} here"
            )  # fmt: skip
            raise UserError(f"{folder}: its {role} writes another vocabulary than the training texts: {where}")
        model.card = {"model": card.model, "params": card.params}
        return self._registered(role, model, self.tokens.symbols)

    def _registered(self, role: str, model: AcousticModel, symbols: Sequence[str]) -> AcousticModel:
        self._names[role] = symbols
        if not is_teacher(role):
            self.stride = model.stride
        return model

    def shared(self) -> dict[str, int]:
        """Teachers learn on the student's frames."""
        return {"stride": self.stride}

    def class_names(self, role: str) -> Sequence[str]:
        """Symbols by class, as what `role` says is brought to; the blank is class 0."""
        return self._names[role]

    def save(self, role: str, model: nn.Module, folder: Path) -> None:
        card: dict[str, Any] = model.card  # type: ignore[assignment]
        tokens = json.loads(self.tokens.to_json())
        features = self.config.features.model_dump(mode="json")
        save_model(folder, card["model"], card["params"], model, features, tokens, {"role": role})

    # ---------------------------------------------------------------- signals

    def signals(self, role: str, model: nn.Module, batch: Batch, features: Sequence[str] = ()) -> Signals:
        """``logits`` and captured features as rows of frames on the student's grid, ``labels`` as rows of tokens."""
        teaches = role != "student" and not model.training
        view = batch["clean"] if teaches and self.config.teacher_view == "clean" else batch["features"]
        with capture(model, features) as taken:
            logits, lengths = model(view, batch["lengths"])
        grid = _output_frames(batch["lengths"], self.stride)
        factor = self._factor(role, model)
        if factor > 1:
            logits, lengths = pool_posteriors(logits, lengths, factor)
        logits = self._ours(role, fit_frames(logits, lengths, grid))
        layout = Layout.padded("frame", grid, int(grid.max()))
        out = Signals(batch["ids"]).add("logits", logits, layout)
        for name, calls in taken.items():
            rows = rearrange(only_call(name, calls), f"{model.axes(name.partition(':')[0])} -> b t c")  # type: ignore[operator]
            out.add(name, fit_frames(pool_features(rows, batch["lengths"], grid), grid, grid), layout)
        targets = batch["targets"]
        out.add("labels", targets.reshape(-1), Layout.padded("token", batch["target_lengths"], targets.shape[1]))
        return out

    def _ours(self, role: str, logits: Tensor) -> Tensor:
        """Scores of our symbols, -inf of those that a role does not know."""
        return map_classes(logits, self._columns[role]) if role in self._columns else logits

    def _factor(self, role: str, model: nn.Module) -> int:
        """How many of a teacher's frames one of the student's covers."""
        stride = int(model.stride)  # type: ignore[arg-type]
        if self.stride % stride:
            raise UserError(
                f"the {role} gives a frame every {stride} feature frames, the student one every {self.stride}: "
                "frames that do not nest cannot be compared; distil sequences, or change a stride"
            )
        return self.stride // stride

    def teacher_sees(self, sample: Sample) -> tuple[int, Tensor]:
        """The view that it hears, and the stride of the grid that its frames are brought to."""
        return self.stride, sample.clean if self.config.teacher_view == "clean" else sample.features

    def views_differ(self) -> str | None:
        return None if self.config.augment.speed is None else "data.augment.speed changes their frames: leave it out"

    def answer(self, role: str, model: nn.Module, batch: Batch) -> Any:
        """The forward pass on features that are there."""
        return model(batch["clean"], batch["lengths"])

    # ---------------------------------------------------------------- evaluation and export

    def evaluate(self, role: str, model: nn.Module, split: str) -> Evaluation:
        """Greedy word errors on `split`, and ``rtf``: seconds of computing, features excluded, a second of audio."""
        device = next(model.parameters()).device

        def recognise(features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
            logits, frames = model(features.to(device), lengths.to(device))
            return self._ours(role, logits), frames

        return self._evaluate(recognise, split)

    def _evaluate(self, recognise: Any, split: str) -> Evaluation:
        source = self.data(split)
        references: list[str] = []
        hypotheses: list[str] = []
        keys: list[str] = []
        speakers: list[str] = []
        seconds = 0.0
        for batch in _batches(source):
            start = perf_counter()
            with torch.no_grad():
                logits, lengths = recognise(batch["clean"], batch["lengths"])
                found = greedy(logits, lengths)
            seconds += perf_counter() - start
            hypotheses += [self.tokens.decode(ids) for ids in found]
            references += batch["texts"]
            keys += batch["keys"]
            speakers += batch["speakers"]
        evaluation = score(references, hypotheses, keys, speakers)
        audio = sum(item.seconds for item in source.items)
        return Evaluation(evaluation.metrics | {"rtf": seconds / audio}, evaluation.scores, evaluation.examples)

    def show(self, models: Mapping[str, nn.Module], folder: Path) -> Sequence[Panel]:
        return show(self, models)

    def about(self, role: str, model: nn.Module, folder: Path) -> About:
        return about(model, self.config, self.tokens)

    def export(self, model: nn.Module, folder: Path) -> Mapping[str, Any]:
        """ONNX in float32 and int8 beside the weights, both scored on the test split in ONNX Runtime."""
        export_onnx(model.cpu(), folder, self.config.features.mels)
        train = self.data("train")
        calibration = [train.sample(i, 0).clean.numpy() for i in range(min(CALIBRATION, len(train)))]
        cost = quantise(folder, calibration)
        found: dict[str, Any] = {}
        for name, key in ((FP32, "fp32"), (INT8, "int8")):
            onnx = OnnxModel(folder / name, threads=torch.get_num_threads())
            metrics = self._evaluate(onnx, "test").metrics
            found[name] = {"bytes": cost[f"bytes_{key}"], "metrics": metrics}
        found["int8_against_fp32"] = {key: cost[key] for key in ("logit_error", "agreement")}
        return found

    def describe(self) -> Mapping[str, Any]:
        return {split: self.data(split).describe() for split in ("train", "dev", "test")}


def _output_frames(lengths: Tensor, stride: int) -> Tensor:
    return (lengths + stride - 1) // stride


def _batches(source: SpeechSource) -> Iterator[Batch]:
    for indexes in source.plan(0):
        yield source.collate([source.sample(i, 0) for i in indexes])
