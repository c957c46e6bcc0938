"""Transducers: teacher and student go through one text's lattice, and every node of it is a row."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from xmodal_kd.adapter.adapter import Batch, Evaluation, is_teacher
from xmodal_kd.adapter.saved_model import CARD, About
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.signals.capture import capture, only_call
from xmodal_kd.signals.signals import Layout, Signals

from ..data.corpora import SpeechData, build_tokens
from ..data.features import Features
from ..data.source import Sample
from ..data.symbols import check_same
from ..data.text_source import TextSource
from ..evaluate.measure import measured
from ..evaluate.transducer import Parts, TorchParts, beam, greedy
from ..export.card import about_transducer
from ..export.saved_folder import load_model, save_model
from ..export.scored import check_streams, export_scored
from ..export.transducer import JOINT, PREDICTOR, OnnxParts, export_transducer
from ..losses import transducer  # noqa: F401 - registers the losses
from ..models.front_ends import OwnFeatures, SharedFeatures
from ..models.transducer import Lattice, Transducer
from ..show.written import Written
from .texts import TextAdapter

#: Of features, what may differ between a teacher and the recipe: their frames stay where they are.
MAY_DIFFER = frozenset({"mels", "normalise"})


class TransducerAdapter(TextAdapter):
    """Teacher and student hear the same utterance and stand in the same lattice: frames by what of the text is written.

    A row is a node of it: ``logits`` of what comes next, ``labels`` the text's next symbol, or the blank where all are
    written. No row is padding. Captured modules of the encoder have a row a frame, those of the predictor a row a
    position of the text. A frozen teacher hears the clean features (``data.teacher_view``).
    """

    task: ClassVar[str] = "transducer"
    noun: ClassVar[str] = "transducer"
    along: ClassVar[str] = "a transducer's lattice lies along"
    fitting: ClassVar[str] = "conv_transducer or conformer_transducer"

    def __init__(self, data: SpeechData, streams: Streams, batch_size: int) -> None:
        super().__init__(data, streams, batch_size)
        self.tokens = build_tokens(data)
        self.stride = 4
        self._sources: dict[str, TextSource] = {}
        #: Of a teacher with other features than the recipe's, how it hears.
        self._own: dict[str, OwnFeatures] = {}

    def data(self, split: str) -> TextSource:
        if split not in self._sources:
            made = TextSource(self.config, split, self.tokens, self.streams, self.batch_size, self.stride)
            self._sources[split] = made
            for front_end in self._own.values():
                made.carry_waves(front_end.rate)
        return self._sources[split]

    # ---------------------------------------------------------------- models

    def build(self, role: str, model: str, params: Mapping[str, Any]) -> Transducer:
        kind = self.kind(role, model)
        config = kind.Config.model_validate(params)
        built: Transducer = kind(config, mels=self.config.features.mels, classes=len(self.tokens))
        built.card = {"model": model, "params": config.model_dump(mode="json")}
        return self._registered(role, built)

    def load(self, role: str, folder: Path) -> nn.Module:
        """A transducer that was saved here, of the same symbols and frames."""
        self.check_live(role, folder)
        if not (folder / CARD).is_file():
            raise UserError(
                f"{folder}: a transducer's teacher is a transducer that was saved here, with its {CARD}: others teach "
                "CTC students (data.task: ctc), or by their texts (xmodal-kd pseudolabel)"
            )
        model, card = load_model(folder, "transducer")
        features = self.config.features.model_dump(mode="json")
        other = {key for key, value in features.items() if card.features.get(key) != value}
        if key := next(iter(sorted(other if not is_teacher(role) else other - MAY_DIFFER)), None):
            raise UserError(
                f"{folder}: its {role} hears features.{key} = {card.features.get(key)!r}, the recipe says "
                f"{features[key]!r}: nodes meet on one grid of frames: set data.features to what the card says"
            )
        if other:
            self._own[role] = OwnFeatures(Features.model_validate(card.features), model.stride)
            for source in self._sources.values():
                source.carry_waves(self._own[role].rate)
        advice = "give data.symbols, or the texts that it learnt from"
        check_same(card.tokens["symbols"], self.tokens.symbols, f"{folder}: its {role}", advice)
        model.card = {"model": card.model, "params": card.params}
        return self._registered(role, cast(Transducer, model))

    def _registered(self, role: str, model: Transducer) -> Transducer:
        if not is_teacher(role):
            self.stride = model.stride
        if role == "student":
            check_streams(model, self.config)
        return model

    def shared(self) -> dict[str, int]:
        """Teachers learn on the student's frames."""
        return {"stride": self.stride}

    def class_names(self, role: str) -> Sequence[str]:
        return self.tokens.symbols

    def save(self, role: str, model: nn.Module, folder: Path) -> None:
        card: dict[str, Any] = model.card  # type: ignore[assignment]
        tokens, own = json.loads(self.tokens.to_json()), self._own.get(role)
        features = (self.config.features if own is None else own.frontend.config).model_dump(mode="json")
        save_model(folder, card["model"], card["params"], model, features, tokens, {"role": role})

    # ---------------------------------------------------------------- signals

    def signals(self, role: str, model: nn.Module, batch: Batch, features: Sequence[str] = ()) -> Signals:
        """``logits`` and ``labels`` by node, and captured features.

        Raises `UserError` where a role's frames are others than the student's: then no node stands beside one.
        """
        with capture(model, features) as taken:
            heard = self._heard(role, model, batch, self.view(role, model))
            said: Lattice = model(*heard, batch["targets"], batch["target_lengths"])
        grid = (batch["lengths"] + self.stride - 1) // self.stride
        if not torch.equal(said.frames, grid):
            raise UserError(
                f"{role}: {int(said.frames[0])} frames of an utterance stand against the student's {int(grid[0])}: "
                "nodes meet at one frame rate only: take a teacher of the student's stride"
            )
        layout = Layout.ragged("token", said.item, len(grid))
        out = Signals(batch["ids"]).add("logits", said.logits, layout).add("labels", said.labels, layout)
        for name, calls in taken.items():
            axes = model.axes(name.partition(":")[0])  # type: ignore[operator]
            rows = only_call(name, calls)
            self._add_feature(out, name, rows.transpose(0, 1) if axes == "t b c" else rows, batch, grid)
        return out

    @staticmethod
    def _add_feature(out: Signals, name: str, rows: Tensor, batch: Batch, grid: Tensor) -> None:
        """A captured module's rows ``(b, t, c)``: frames of the encoder, or positions of the text."""
        kind: Literal["frame", "token"] = "frame" if name.startswith("encoder") else "token"
        lengths = grid if kind == "frame" else batch["target_lengths"] + 1
        if rows.ndim != 3 or rows.shape[:2] != (len(grid), int(lengths.max())):
            raise UserError(
                f"module {name!r} gives {tuple(rows.shape)}: a feature here is (b, t, c), a row for each frame of the "
                "encoder's answer or position of the text: capture a block as encoder.blocks.1, or predictor"
            )
        out.add(name, rows, Layout.padded(kind, lengths, rows.shape[1]))

    def _heard(self, role: str, model: nn.Module, batch: Batch, view: str) -> tuple[Tensor, Tensor]:
        own = self._own.get(role)
        front_end = SharedFeatures(self.config.features, self.stride) if own is None else own
        return front_end.given(model, batch, view)

    def teacher_sees(self, sample: Sample) -> tuple[int, Tensor, Tensor, Tensor | None]:
        """The stride of the grid, what it hears, be it features or the wave, and the text of its lattice."""
        heard = sample.clean if self.config.teacher_view == "clean" else sample.features
        return self.stride, heard, torch.tensor(sample.target), sample.wave

    # ---------------------------------------------------------------- evaluation and export

    def states(self, role: str, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """``(b, t, c)`` states of the encoder and their lengths ``(b,)``, of the clean features."""
        states, frames = model(*self._heard(role, model, batch, "clean"))
        return states, frames

    def written(self, role: str, model: nn.Module, batch: Batch) -> list[str]:
        """What a role writes of each utterance, greedily."""
        return self._texts(TorchParts(model), *self.states(role, model, batch))

    def _texts(self, parts: Parts, states: Tensor, frames: Tensor) -> list[str]:
        return [self.tokens.decode(ids) for ids in greedy(parts, states, frames)]

    def evaluate(self, role: str, model: nn.Module, split: str) -> Evaluation:
        """Greedy word errors on `split`, and ``rtf``; on test also ``wer_beam`` and ``cer_beam`` by ``data.beam``."""
        return self._evaluate(lambda batch: self.states(role, model, batch), TorchParts(model), split)

    def _evaluate(self, hear: Callable[[Batch], tuple[Tensor, Tensor]], parts: Parts, split: str) -> Evaluation:
        size = self.config.beam.size if self.config.beam is not None and split == "test" else 0

        def write(batch: Batch) -> tuple[list[str], Callable[[], list[str]] | None]:
            states, frames = hear(batch)

            def search() -> list[str]:
                rows = zip(states, frames.tolist(), strict=True)
                return [self.tokens.decode(beam(parts, row[:count], size)[0][0]) for row, count in rows]

            return self._texts(parts, states, frames), search if size else None

        return measured(self.data(split), write, self.config.metric)

    def shown(self, split: str) -> Written:
        rate = self.config.features.sample_rate
        return Written(self.data(split), rate, self.written, self.tokens.normalise)

    def about(self, role: str, model: nn.Module, folder: Path) -> About:
        return about_transducer(model, self.config, self.tokens)

    def export(self, model: nn.Module, folder: Path) -> Mapping[str, Any]:
        """ONNX beside the weights: the encoder in float32 and int8, with its state too if the recipe says so, and what
        goes along with the text; scored on the test split in ONNX Runtime. A program for them."""
        whole = cast(Transducer, model.cpu())
        export_transducer(whole, folder, self.config.features.mels)
        parts = OnnxParts(folder, threads=torch.get_num_threads())
        found = export_scored(
            whole, folder, self.config, self.data("train"), lambda hear: self._evaluate(hear, parts, "test")
        )
        del found["int8_against_fp32"]["agreement"]  # states have no best symbol
        return found | {name: {"bytes": (folder / name).stat().st_size} for name in (PREDICTOR, JOINT)}


__all__ = ["TransducerAdapter"]
