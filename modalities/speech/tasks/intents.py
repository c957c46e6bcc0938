"""Intents: what an utterance wants, or which word it is; a row is an utterance. A teacher may read it in its place."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from xmodal_kd.adapter.adapter import Adapter, Batch, Evaluation, Input, is_teacher
from xmodal_kd.adapter.panels import Panel
from xmodal_kd.adapter.saved_model import CARD, About
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.runtime.registry import Registry
from xmodal_kd.signals.class_mapping import columns, map_classes
from xmodal_kd.signals.signals import Layout, Signals

from ..data.corpora import SpeechData
from ..data.features import Features
from ..data.intents import UNKNOWN, Intents, IntentSource, build_intents
from ..data.made import made_batch, made_input
from ..data.source import Sample
from ..evaluate.classes import accuracy
from ..export.classifier import about_classifier, export_classifier
from ..export.saved_folder import load_model, save_model
from ..models import MODELS
from ..models.classifier import Classifier
from ..models.front_ends import OwnFeatures, SharedFeatures
from ..models.utterances import ByFeatures, ByText, Found, Said, Says, load_utterances
from ..show.written import Written, glimpse, show


class IntentsAdapter(Adapter):
    """All roles answer for the same utterance, each by what it hears or reads: ``logits`` and ``labels`` a row each.

    A captured vector of an utterance (`utterance` of the students) is such a row too, a block of an encoder has a row a
    frame. A frozen teacher hears the clean features (``data.teacher_view``); a text encoder reads the transcript, and
    of an utterance without one its rows are not valid. Classes of teachers are found by their names.
    """

    Data: ClassVar[type[SpeechData]] = SpeechData
    models: ClassVar[Registry[Any]] = MODELS
    gives: ClassVar[frozenset[str]] = frozenset({"logits", "labels", "features"})
    metric: ClassVar[tuple[str, bool]] = ("accuracy", False)
    quick_export: ClassVar[bool] = False

    def __init__(self, data: SpeechData, streams: Streams, batch_size: int) -> None:
        self.config, self.streams, self.batch_size = data, streams, batch_size
        self._sources: dict[str, IntentSource] = {}
        #: Of a role that is asked otherwise than by the shared features, how.
        self._says: dict[str, Says] = {}
        #: Of a role with classes of its own, which of them each of ours is; of a text encoder without any, none.
        self._columns: dict[str, tuple[int, ...]] = {}
        self._silent: set[str] = set()

    @cached_property
    def intents(self) -> Intents:
        return build_intents(self.config)

    def data(self, split: str) -> IntentSource:
        if split not in self._sources:
            made = IntentSource(self.config, split, self.intents, self.streams, self.batch_size)
            self._sources[split] = made
            for says in self._says.values():
                made.carry_waves(says.rate or 0)
        return self._sources[split]

    def class_names(self, role: str) -> Sequence[str]:
        return self.intents.names

    def describe(self) -> Mapping[str, Any]:
        return {split: self.data(split).describe() for split in ("train", "dev", "test")}

    # ---------------------------------------------------------------- models

    def build(self, role: str, model: str, params: Mapping[str, Any]) -> Classifier:
        kind = MODELS[model]
        if getattr(kind, "task", "ctc") != "intents":
            key = role.replace("-", "s.") if is_teacher(role) else "student"
            raise UserError(
                f"{role}: model {model!r} names no classes: set {key}.model to conv_classifier or "
                "conformer_classifier, or change data.task"
            )
        config = kind.Config.model_validate(params)
        built: Classifier = kind(config, mels=self.config.features.mels, classes=len(self.intents))
        built.card = {"model": model, "params": config.model_dump(mode="json")}
        return built

    def load(self, role: str, folder: Path) -> nn.Module:
        """A classifier that was saved here, or, as a teacher, a text encoder or classifier of waves of transformers."""
        if (spec := self.teachers.get(role)) is not None and spec.signals is not None:
            raise UserError(f"teacher.signals: {folder}: logits by frame are of CTC: give path, a classifier's folder")
        if is_teacher(role) and not (folder / CARD).is_file():
            return self._taught_by(role, folder, load_utterances(folder))
        model, card = load_model(folder, "intents")
        features = self.config.features.model_dump(mode="json")
        other = next((key for key, value in features.items() if card.features.get(key) != value), None)
        theirs = tuple(card.tokens["symbols"])
        if not is_teacher(role):
            if other is not None:
                raise UserError(
                    f"{folder}: its {role} hears features.{other} = {card.features.get(other)!r}, the recipe says "
                    f"{features[other]!r}: set data.features to what the card says"
                )
            if theirs != self.intents.names:
                name = next(iter(sorted(set(theirs) ^ set(self.intents.names))), "their order")
                raise UserError(
                    f"{folder}: its {role} names other intents than the data: they differ in {name!r}: set data.path "
                    "to what it learnt from, or build a student anew"
                )
        model.card = {"model": card.model, "params": card.params}
        if other is None:
            self._maps(role, folder, theirs)
            return model
        says = ByFeatures(OwnFeatures(Features.model_validate(card.features), model.stride))
        return self._taught_by(role, folder, Found(model, says, theirs))

    def _taught_by(self, role: str, folder: Path, found: Found) -> nn.Module:
        if isinstance(found.says, ByText) and not self.data("train").texted:
            raise UserError(
                f"{folder}: its {role} reads what is said, and no training utterance has a text: give transcripts, or "
                "a teacher that hears"
            )
        self._says[role] = found.says
        for source in self._sources.values():
            source.carry_waves(found.says.rate or 0)
        if found.classes is None:
            self._silent.add(role)
        else:
            self._maps(role, folder, found.classes)
        return found.model

    def _maps(self, role: str, folder: Path, theirs: Sequence[str]) -> None:
        if tuple(theirs) != self.intents.names:
            self._columns[role] = columns(self.intents.names, theirs, f"{folder}: its {role}")

    def save(self, role: str, model: nn.Module, folder: Path) -> None:
        card: dict[str, Any] = model.card  # type: ignore[assignment]
        features = self.config.features.model_dump(mode="json")
        save_model(
            folder, card["model"], card["params"], model, features, json.loads(self.intents.to_json()), {"role": role}
        )

    def about(self, role: str, model: nn.Module, folder: Path) -> About:
        return about_classifier(self.config, self.intents)

    # ---------------------------------------------------------------- signals

    def signals(self, role: str, model: nn.Module, batch: Batch, features: Sequence[str] = ()) -> Signals:
        """``logits`` and ``labels`` a row an utterance, captured vectors too; captured frames a row each."""
        teaches = role != "student" and not model.training
        view = "clean" if teaches and self.config.teacher_view == "clean" else "features"
        said = self._asked(role, model, batch, view, features)
        labels = batch["labels"]
        whole = Layout.samples(len(labels), labels.device)
        rows = whole if said.there is None else Layout("sample", said.there, whole.item, len(labels))
        out = Signals(batch["ids"]).add("labels", labels, whole)
        if said.logits is not None:
            out.add("logits", said.logits, rows)
        for name, value in said.features.items():
            if value.ndim == 3 and said.frames is not None:
                out.add(name, value, Layout.padded("frame", said.frames, value.shape[1]))
            elif value.ndim == 2 and len(value) == len(labels):
                out.add(name, value, rows)
            else:
                raise UserError(
                    f"module {name!r} gives {tuple(value.shape)}: a feature here is (b, c), or (b, t, c) of frames: "
                    "capture utterance, or a block of the encoder, as encoder.blocks.1"
                )
        return out

    def _asked(self, role: str, model: nn.Module, batch: Batch, view: str, features: Sequence[str] = ()) -> Said:
        """What a role says, in scores of our classes."""
        says = self._says.get(role)
        if says is None:
            for name in features:
                cast(Classifier, model).axes(name.partition(":")[0])
            says = ByFeatures(SharedFeatures(self.config.features, int(model.stride)))  # type: ignore[arg-type]
        said = says.say(model, batch, view, features)
        if said.logits is None or role not in self._columns:
            return said
        return said._replace(logits=map_classes(said.logits, self._columns[role]))

    def _scores(self, role: str, model: nn.Module, batch: Batch) -> Tensor:
        logits = self._asked(role, model, batch, "clean").logits
        assert logits is not None  # of an encoder without classes nobody asks
        return logits

    def input(self) -> Input | None:
        """Where a role hears waves or reads, there is no map of values that all roles are given."""
        return None if self._says else made_input(self.config.features)

    def given(self, x: Tensor) -> Batch:
        made = made_batch(x)
        return {**made, "labels": torch.full_like(made["ids"], UNKNOWN)}

    def teacher_sees(self, sample: Sample) -> tuple[Tensor, Tensor | None, str]:
        """What it hears, be it features or the wave, and what it reads."""
        return sample.clean if self.config.teacher_view == "clean" else sample.features, sample.wave, sample.text

    def answer(self, role: str, model: nn.Module, batch: Batch) -> Any:
        return self._asked(role, model, batch, "clean")

    # ---------------------------------------------------------------- evaluation and export

    def evaluate(self, role: str, model: nn.Module, split: str) -> Evaluation:
        """Accuracy on `split`; of a text encoder without classes, or where it has nothing to read, it is None."""
        unread = isinstance(self._says.get(role), ByText) and not self.data(split).texted
        if role in self._silent or unread:
            return Evaluation({self.metric[0]: None})
        return self._evaluate(lambda batch: self._scores(role, model, batch), split)

    def _evaluate(self, scores: Callable[[Batch], Tensor], split: str) -> Evaluation:
        return accuracy(self.data(split), self.intents.names, scores)

    def show(self, models: Mapping[str, nn.Module], folder: Path) -> Sequence[Panel]:
        return show(self._shown("test"), {role: model for role, model in models.items() if role not in self._silent})

    def glimpse(self, role: str, model: nn.Module) -> Sequence[Panel]:
        return glimpse(self._shown("dev"), role, model)

    def _shown(self, split: str) -> Written:
        names = self.intents.names

        def write(role: str, model: nn.Module, batch: Batch) -> list[str]:
            return [names[i] for i in self._scores(role, model, batch).argmax(dim=1).tolist()]

        return Written(
            self.data(split), self.config.features.sample_rate, write, self.intents.normalise,
            lambda sample: names[sample.target[0]],
        )  # fmt: skip

    def export(self, model: nn.Module, folder: Path) -> Mapping[str, Any]:
        """ONNX in float32 and int8 beside the weights, scored on the test split in ONNX Runtime.

        Where int8 is worse by more than the noise of the utterances, its ``note`` says so in the report and the card.
        """
        whole = cast(Classifier, model.cpu())
        return export_classifier(
            whole, folder, self.config, self.data("train"), lambda scores: self._evaluate(scores, "test")
        )


__all__ = ["IntentsAdapter"]
