"""Speech: audio and transcripts to rows of frames, CTC models, word errors, exported recognisers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from xmodal_kd.adapter.adapter import Adapter, Batch, Evaluation, Input, is_teacher
from xmodal_kd.adapter.listed import Listed
from xmodal_kd.adapter.panels import Panel
from xmodal_kd.adapter.saved_model import CARD, About
from xmodal_kd.models.no_model import NoModel
from xmodal_kd.models.onnx_teacher import is_onnx, said_of
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.runtime.registry import Registry
from xmodal_kd.signals.signals import Layout, Signals

from .data.corpora import SPLITS, SpeechData, build_tokens, utterances
from .data.features import Features
from .data.listed import listed_file
from .data.made import made_batch, made_input
from .data.source import Sample, SpeechSource
from .data.stored_logits import StoredLogits
from .data.symbols import SymbolMap, Vocabulary, check_same, left_out, listed, match
from .evaluate.decode import greedy
from .evaluate.measure import measured
from .evaluate.ngram import Ngram
from .evaluate.word_beam import WordBeam
from .export.card import about
from .export.onnx import export_onnx
from .export.saved_folder import load_model, save_model
from .export.scored import check_streams, export_scored
from .losses import ctc, delayed, sequence, transducer  # noqa: F401 - registers the losses
from .losses.frame_alignment import fit_frames, pool_features, regrid_features, regrid_posteriors
from .methods import GKD, ContrastivePair  # noqa: F401 - registers the methods
from .models import MODELS, AcousticModel, EncoderForCTC
from .models.bundle import described_bundle, is_bundle, load_bundle
from .models.front_ends import FrontEnd, Heard, OwnFeatures, SharedFeatures
from .models.onnx_teacher import OnnxAnswers, onnx_vocabulary
from .models.pretrained import check_folder, is_pretrained, load_pretrained, traps, vocabulary_of
from .models.stored import StoredAnswers
from .show.panels import Shown, glimpse, show

OTHER_VOCABULARY = "set data.vocabulary to by_name and compare by the term uhc, or change the texts"


class SpeechAdapter(Adapter):
    """Teacher and student hear the same utterance, meet on the student's frame grid, and share one vocabulary.

    A frozen teacher hears the clean features (``data.teacher_view``), whatever learns hears the augmented ones.
    """

    Data: ClassVar[type[SpeechData]] = SpeechData
    models: ClassVar[Registry[Any]] = MODELS
    gives: ClassVar[frozenset[str]] = frozenset({"logits", "item_labels", "features"})
    metric: ClassVar[tuple[str, bool]] = ("wer", True)
    blank: ClassVar[int | None] = 0
    quick_export: ClassVar[bool] = False
    saves_low_rank: ClassVar[bool] = True
    datasets: ClassVar[Mapping[str, str]] = {
        "common_voice": "Common Voice's layout: train.tsv, dev.tsv, test.tsv of a language, and clips/",
        "fsdd": "Free Spoken Digit Dataset's layout: recordings/{digit}_{speaker}_{take}.wav",
        "fluent_speech_commands": "Fluent Speech Commands' layout: data/{train,valid,test}_data.csv and wavs/; intents",
        "kaldi": "Kaldi's data folders train, dev, test: wav.scp (files), text, segments, utt2spk",
        "lhotse": "Lhotse's cuts as JSON lines: train.jsonl.gz or cuts_train.jsonl.gz, dev and test alike",
        "librispeech": "LibriSpeech's layout: <split>/<speaker>/<chapter>/*.flac with *.trans.txt",
        "manifest": "JSON lines with audio_filepath, text, and if known duration, speaker, intent (NeMo's layout)",
        "datasets": "a DatasetDict of Hugging Face's datasets, as save_to_disk writes it: an Audio column and text",
        "speech_commands": "Speech Commands' layout: {word}/{speaker}_nohash_{take}.wav and its lists of dev and test",
        "webdataset": "WebDataset's shards, train-*.tar, dev-*.tar, test-*.tar: audio with .txt or .json of one name",
    }

    def __init__(self, data: SpeechData, streams: Streams, batch_size: int) -> None:
        self.config, self.streams, self.batch_size = data, streams, batch_size
        self.metric = (data.metric, True)  # type: ignore[misc]
        self.tokens = build_tokens(data)
        self.stride = 4
        self._sources: dict[str, SpeechSource] = {}
        self._names: dict[str, Sequence[str]] = {}
        #: Of a role with a vocabulary of its own, which of its classes each of ours is.
        self._maps: dict[str, SymbolMap] = {}
        #: Of a role that hears otherwise than by the shared features, how.
        self._front_ends: dict[str, FrontEnd] = {}

    @classmethod
    def of(cls, data: SpeechData) -> type[Adapter]:
        if data.task == "seq2seq":
            from .tasks.seq2seq import Seq2SeqAdapter

            return Seq2SeqAdapter
        if data.task == "transducer":
            from .tasks.transducer import TransducerAdapter

            return TransducerAdapter
        if data.task == "intents":
            from .tasks.intents import IntentsAdapter

            return IntentsAdapter
        return cls

    @classmethod
    def files(cls, data: SpeechData) -> Iterator[Listed]:
        if data.symbols is not None:
            yield Listed("data.symbols", data.symbols.expanduser(), lambda _: build_tokens(data))
        if data.beam is not None and data.beam.lm is not None:
            yield Listed("data.beam.lm", data.beam.lm.expanduser(), Ngram)
        for split in SPLITS:
            for utterance in utterances(data, split):
                yield listed_file(utterance)

    @classmethod
    def metric_of(cls, data: Mapping[str, Any]) -> tuple[str, bool]:
        return ("accuracy", False) if data.get("task") == "intents" else (data.get("metric", "wer"), True)

    def data(self, split: str) -> SpeechSource:
        if split not in self._sources:
            made = SpeechSource(self.config, split, self.tokens, self.streams, self.batch_size, self.stride)
            for front_end in self._front_ends.values():
                made.carry_waves(front_end.rate or 0)
            self._sources[split] = made
        return self._sources[split]

    # ---------------------------------------------------------------- models

    def build(self, role: str, model: str, params: Mapping[str, Any]) -> AcousticModel:
        kind = MODELS[model]
        if (task := getattr(kind, "task", "ctc")) != "ctc":
            writes = {"seq2seq": "writes by a decoder", "intents": "names classes"}.get(task, "is a transducer")
            raise UserError(f"{role}: model {model!r} {writes}: set data.task to {task}")
        built = kind(config := self._started(kind, params), mels=self.config.features.mels, classes=len(self.tokens))
        built.card = {"model": model, "params": config.model_dump(mode="json")}
        if isinstance(built, EncoderForCTC):
            built.start_head(self.tokens.symbols)
            built.card["params"] = built.described()
        return self._registered(role, built, self.tokens.symbols)

    def _started(self, kind: type[AcousticModel], params: Mapping[str, Any]) -> Any:
        """Checked parameters; an encoder that names no folder starts as the teacher's."""
        config: Any = kind.Config.model_validate(params)
        unnamed = kind is EncoderForCTC and config.folder is None and "teacher" in self.teachers
        return config.model_copy(update={"folder": self.teachers["teacher"].path}) if unnamed else config

    def load(self, role: str, folder: Path) -> nn.Module:
        """A recogniser that was saved here, or, as a teacher, a CTC model or encoder as transformers saves it."""
        if is_teacher(role) and not (folder / CARD).is_file():
            return self._load_pretrained(role, folder)
        model, card = load_model(folder)
        features = self.config.features.model_dump(mode="json")
        other = [key for key, value in features.items() if card.features.get(key) != value]
        if other and not is_teacher(role):
            key = other[0]
            raise UserError(
                f"{folder}: its {role} hears features.{key} = {card.features.get(key)!r}, the recipe says "
                f"{features[key]!r}: set data.features to what the card says"
            )
        if other:
            self._hears(role, OwnFeatures(Features.model_validate(card.features), model.stride))
        symbols = tuple(card.tokens["symbols"])
        if symbols != self.tokens.symbols and is_teacher(role) and self.config.vocabulary == "by_name":
            theirs = Vocabulary(symbols, blank=0)
            self._maps[role] = match(self.tokens.symbols, theirs, f"{folder}: its {role}", partial=True)
        else:
            check_same(symbols, self.tokens.symbols, f"{folder}: its {role}", OTHER_VOCABULARY)
        model.card = {"model": card.model, "params": card.params}
        return self._registered(role, model, self.tokens.symbols)

    def _load_pretrained(self, role: str, folder: Path) -> nn.Module:
        if (stored := self.teachers.get(role)) is not None and stored.signals is not None:
            return self._load_stored(role, folder, stored.on_missing)
        if is_onnx(folder):
            return self._load_onnx(role, folder)
        if is_bundle(folder):
            found = load_bundle(folder)
        else:
            check_folder(folder)
            found = load_pretrained(folder)
        partial = self.config.vocabulary == "by_name"
        if found.vocabulary is not None:
            self._maps[role] = match(self.tokens.symbols, found.vocabulary, f"{folder}: its {role}", partial=partial)
        self._hears(role, found.front_end)
        self._names[role] = self.tokens.symbols
        return found.model

    def _load_onnx(self, role: str, folder: Path) -> nn.Module:
        found = OnnxAnswers(folder, said_of(self.teachers.get(role)))
        partial = self.config.vocabulary == "by_name"
        self._maps[role] = match(self.tokens.symbols, found.vocabulary, f"{folder}: its {role}", partial=partial)
        self._hears(role, found)
        self._names[role] = self.tokens.symbols
        return found.placeholder()

    def _load_stored(self, role: str, folder: Path, on_missing: str) -> nn.Module:
        if self.config.augment.speed is not None:
            raise UserError(
                f"data.augment.speed: the logits in {folder} are of the recordings as they are, and speed moves their "
                "frames: leave it out (--set data.augment.speed=null)"
            )
        stored = StoredLogits(folder, on_missing)
        seconds = {item.key: item.seconds for item in self.data("train").items}
        partial = self.config.vocabulary == "by_name"
        self._maps[role] = match(self.tokens.symbols, stored.vocabulary, f"{folder}: its logits", partial=partial)
        self._hears(role, StoredAnswers(stored, seconds))
        self._names[role] = self.tokens.symbols
        return NoModel(stored.stored.origin)

    def _hears(self, role: str, front_end: FrontEnd) -> None:
        """From now on batches carry what this role hears."""
        self._front_ends[role] = front_end
        for source in self._sources.values():
            source.carry_waves(front_end.rate or 0)

    def lint(self, folder: Path) -> Iterable[tuple[Literal["warn", "fail"], str, str]]:
        """Of a teacher of transformers: which class is its blank, and what it writes that the student does not."""
        if (folder / CARD).is_file() or not (is_pretrained(folder) or is_onnx(folder) or is_bundle(folder)):
            return
        if is_bundle(folder):
            theirs = described_bundle(folder).vocabulary
        elif is_onnx(folder):
            theirs = onnx_vocabulary(folder, said_of(self.teachers.get("teacher")))
        else:
            yield from (("warn", what, advice) for what, advice in traps(folder))
            theirs = vocabulary_of(folder)
        if theirs is not None and (unused := left_out(self.tokens.symbols, theirs)):
            advice = "its probability is shared among the others; letters that no training text holds do no harm"
            yield "warn", f"it also writes {listed(unused)}, which the student does not", advice

    def _registered(self, role: str, model: AcousticModel, symbols: Sequence[str]) -> AcousticModel:
        self._names[role] = symbols
        if isinstance(model, EncoderForCTC):
            self._hears(role, model.front_end(self.config.features))
        self.stride = self.stride if is_teacher(role) else model.stride
        if role == "student":
            check_streams(model, self.config)
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
        view = "clean" if teaches and self.config.teacher_view == "clean" else "features"
        heard = self._front_end(role, model).hear(model, batch, view, features)
        grid = (batch["lengths"] + self.stride - 1) // self.stride
        ratio = self._front_end(role, model).frame / self._grid
        silent = heard.lengths == 0  # of whom nothing is known: no row of theirs is valid
        layout = Layout.padded("frame", torch.where(silent, 0, grid), int(grid.max()))
        out = Signals(batch["ids"])
        if heard.logits is not None:
            logits, lengths = regrid_posteriors(heard.logits, heard.lengths, ratio)
            logits = fit_frames(logits, torch.where(silent, grid, lengths), grid)
            out.add("logits", self._ours(role, logits), layout)
        for name, rows in heard.features.items():
            out.add(name, self._features_on(rows, heard, batch["lengths"], grid, ratio), layout)
        targets = batch["targets"]
        out.add("labels", targets.reshape(-1), Layout.padded("token", batch["target_lengths"], targets.shape[1]))
        return out

    @staticmethod
    def _features_on(rows: Tensor, heard: Heard, inputs: Tensor, grid: Tensor, ratio: Fraction) -> Tensor:
        """Captured rows on the student's grid, be they of the answer's frame rate or of another within the model."""
        if rows.shape[1] == (heard.lengths.max() if heard.logits is None else heard.logits.shape[1]):
            return fit_frames(*regrid_features(rows, heard.lengths, ratio), grid)
        return fit_frames(pool_features(rows, inputs, grid), grid, grid)

    @property
    def _grid(self) -> Fraction:
        """Seconds between two of the student's frames."""
        features = self.config.features
        return Fraction(self.stride * features.hop, features.sample_rate)

    def _front_end(self, role: str, model: nn.Module) -> FrontEnd:
        own = self._front_ends.get(role)
        return own if own is not None else SharedFeatures(self.config.features, int(model.stride))  # type: ignore[arg-type]

    def _ours(self, role: str, logits: Tensor) -> Tensor:
        """Scores of our symbols, -inf of those that a role does not know."""
        return self._maps[role](logits) if role in self._maps else logits

    def recognised(self, role: str, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """``(b, t, classes)`` logits of our symbols at the role's own frame rate, and their lengths ``(b,)``."""
        heard = self._front_end(role, model).hear(model, batch, "clean")
        assert heard.logits is not None  # of an encoder nobody asks
        return self._ours(role, heard.logits), heard.lengths

    def input(self) -> Input | None:
        """Where a role hears waves, there is no map of values that all roles are given."""
        return None if self._front_ends else made_input(self.config.features)

    def given(self, x: Tensor) -> Batch:
        return made_batch(x)

    def teacher_sees(self, sample: Sample) -> tuple[int, Tensor, Tensor | None]:
        """What it hears, be it features or the wave, and the stride of the grid that its frames are brought to."""
        return self.stride, sample.clean if self.config.teacher_view == "clean" else sample.features, sample.wave

    def answer(self, role: str, model: nn.Module, batch: Batch) -> Any:
        """The forward pass on features, or the wave, that are there."""
        if self._writes(role):
            return self.recognised(role, model, batch)
        return self._front_end(role, model).hear(model, batch, "clean")

    def _writes(self, role: str) -> bool:
        """Whether a role answers by symbols: all but an encoder without a head, which teaches by its layers."""
        return getattr(self._front_ends.get(role), "answers", True)

    # ---------------------------------------------------------------- evaluation and export

    def evaluate(self, role: str, model: nn.Module, split: str) -> Evaluation:
        """Greedy word errors on `split`, and ``rtf``: seconds of computing, features excluded, a second of audio.

        On test also ``wer_beam`` and ``cer_beam`` by ``data.beam``. An encoder without a head writes nothing: its
        metric is None.
        """
        if not self._writes(role):
            return Evaluation({self.metric[0]: None})
        return self._evaluate(lambda batch: self.recognised(role, model, batch), split)

    @cached_property
    def _beam(self) -> WordBeam | None:
        if (spec := self.config.beam) is None:
            return None
        lm, lexicon = (None if path is None else path.expanduser() for path in (spec.lm, spec.lexicon))
        return WordBeam(self.tokens, lm, lexicon, size=spec.size, lm_weight=spec.lm_weight, word_score=spec.word_score)

    def _evaluate(self, recognise: Callable[[Batch], tuple[Tensor, Tensor]], split: str) -> Evaluation:
        beam = self._beam if split == "test" else None

        def write(batch: Batch) -> tuple[list[str], Callable[[], list[str]] | None]:
            logits, lengths = recognise(batch)
            texts = [self.tokens.decode(ids) for ids in greedy(logits, lengths)]
            return texts, None if beam is None else lambda: [found[0].text for found in beam(logits, lengths)]

        return measured(self.data(split), write, self.config.metric)

    def show(self, models: Mapping[str, nn.Module], folder: Path) -> Sequence[Panel]:
        return show(self._shown("test"), {role: model for role, model in models.items() if self._writes(role)})

    def glimpse(self, role: str, model: nn.Module) -> Sequence[Panel]:
        return glimpse(self._shown("dev"), role, model)

    def _shown(self, split: str) -> Shown:
        return Shown(self.data(split), self.tokens, self.config.features.sample_rate, self.recognised)

    def about(self, role: str, model: nn.Module, folder: Path) -> About:
        return about(model, self.config, self.tokens)

    def export(self, model: nn.Module, folder: Path) -> Mapping[str, Any]:
        """ONNX in float32 and int8 beside the weights, scored on the test split in ONNX Runtime; a program for them.

        With ``data.streaming`` the same two with the student's state, scored in chunks. Where int8 is worse by more
        than the noise of the utterances, its ``note`` says so in the report and the card.
        """
        if isinstance(model, EncoderForCTC):  # its folder is what is deployed
            return {}
        whole = cast(AcousticModel, model.cpu())
        export_onnx(whole, folder, self.config.features.mels)
        return export_scored(whole, folder, self.config, self.data("train"), lambda hear: self._evaluate(hear, "test"))

    def describe(self) -> Mapping[str, Any]:
        return {split: self.data(split).describe() for split in ("train", "dev", "test")}
