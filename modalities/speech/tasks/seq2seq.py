"""Decoders: teacher and student are forced over one text, and every position of it is a row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from xmodal_kd.adapter.adapter import Batch, Evaluation
from xmodal_kd.adapter.saved_model import CARD, About
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.signals.capture import capture, only_call
from xmodal_kd.signals.signals import Layout, Signals
from xmodal_kd.training.modes import evaluating

from ..data.corpora import SpeechData
from ..data.decoder_source import DecoderSource
from ..data.features import Features
from ..data.source import Sample
from ..evaluate.measure import measured
from ..export.decoder_folder import about_decoder, load_decoder_card, reloaded, save_decoder, size_of
from ..models.processor import DecoderTokens, MelFrames, Processor, padded
from ..models.seq2seq import Encoders, encoder_of, shifted
from ..models.whisper import drawn, greedy, load_whisper
from ..show.written import Written
from .texts import TextAdapter

#: Test utterances that `transformers` alone writes again of an exported student.
RELOADED = 8
#: Below this path modules are of the encoder, and their rows are frames.
ENCODER = "model.encoder"


class Seq2SeqAdapter(TextAdapter):
    """Teacher and student hear the same utterance and are forced over the same tokens, each shifted to the right.

    A row is a position of the decoder: ``logits`` of its next token, ``labels`` that token. What stands before a text
    (language, task) counts too, but for the start; padding is masked. Captured modules of the decoder have the same
    rows, those of the encoder a row a frame. A term with ``weights: by_text`` is a mean over texts of their means.
    """

    task: ClassVar[str] = "seq2seq"
    noun: ClassVar[str] = "decoder"
    along: ClassVar[str] = "a decoder is forced over"
    fitting: ClassVar[str] = "whisper"

    def __init__(self, data: SpeechData, streams: Streams, batch_size: int) -> None:
        super().__init__(data, streams, batch_size)
        self._sources: dict[str, DecoderSource] = {}
        self._encoders = Encoders()

    @cached_property
    def processor(self) -> Processor:
        """What all roles hear and write by."""
        given = self.config.processor
        paths = (spec.path for spec in self.teachers.values() if spec.path is not None)
        folder = given if given is not None else next(paths, None)
        if folder is None:
            raise UserError(
                "data.processor: no teacher.path says how audio is heard and texts are split into tokens: name a "
                "folder with a Whisper's config and processor"
            )
        return Processor(folder.expanduser(), self.config.language, leading_space=self.config.leading_space)

    @cached_property
    def tokens(self) -> DecoderTokens:
        return DecoderTokens(self.processor, self.config.normaliser)

    def data(self, split: str) -> DecoderSource:
        if split not in self._sources:
            made = self.processor
            features = Features(sample_rate=made.rate, mels=made.mels, hop_ms=1000 * made.hop / made.rate)
            self._sources[split] = DecoderSource(
                self.config.model_copy(update={"features": features}), split, self.tokens, self.streams,
                self.batch_size, MelFrames(made), made.limit, made.seconds,
            )  # fmt: skip
        return self._sources[split]

    # ---------------------------------------------------------------- models

    def build(self, role: str, model: str, params: Mapping[str, Any]) -> nn.Module:
        kind = self.kind(role, model)
        config = kind.Config.model_validate(params)
        built: nn.Module = kind.build(config, self.processor)
        built.card = {"model": model, "params": config.model_dump(mode="json")}  # type: ignore[assignment]
        return built

    def load(self, role: str, folder: Path) -> nn.Module:
        """A Whisper as transformers saves it, or a student that was saved here, of the tokens and features of all."""
        self.check_live(role, folder)
        params: dict[str, Any] = {}
        if (folder / CARD).is_file():
            params = load_decoder_card(folder).params
        theirs = Processor(folder, self.config.language, leading_space=self.config.leading_space)
        self._check_same(role, theirs)
        model: nn.Module = load_whisper(folder)
        model.card = {"model": "whisper", "params": params}  # type: ignore[assignment]
        return model

    def _check_same(self, role: str, theirs: Processor) -> None:
        """Raises `UserError` where a role writes other tokens, hears other features or has too few positions."""
        ours, where = self.processor, f"{theirs.folder}: its {role}"
        if theirs.names != ours.names:
            pairs = zip(theirs.names, ours.names, strict=False)
            at = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
            what = f"{theirs.classes} tokens there, {ours.classes} here" if at is None else (
                f"token {at} is {theirs.names[at]!r} there, {ours.names[at]!r} here"
            )  # fmt: skip
            raise UserError(
                f"{where} writes another vocabulary than {ours.folder}: {what}: row i must mean the same token: take "
                "a teacher and a student of one tokenizer"
            )
        if theirs.prefix != ours.prefix:
            raise UserError(f"{where} begins texts with {theirs.prefix}, {ours.folder} with {ours.prefix}: they differ")
        for key in ("rate", "mels", "hop", "frames"):
            if (there := getattr(theirs, key)) != (here := getattr(ours, key)):
                raise UserError(
                    f"{where} hears features of {key} {there}, {ours.folder} of {key} {here}: both hear one: take a "
                    "teacher and a student of one processor"
                )
        train = self.data("train")
        if theirs.limit < train.longest:
            over = [i for i, item in enumerate(train.items) if len(self.tokens.encode(item.text or "")) > theirs.limit]
            raise UserError(f"{where}: {train.too_long(over[0], theirs.limit, len(over))}")

    def class_names(self, role: str) -> Sequence[str]:
        return self.processor.names

    def save(self, role: str, model: nn.Module, folder: Path) -> None:
        card: Mapping[str, Any] = model.card  # type: ignore[assignment]
        made = self.processor
        save_decoder(folder, model, made, {
            **card, "role": role, "language": made.language, "leading_space": made.leading_space,
            "normaliser": self.config.normaliser, "sample_rate": made.rate,
        })  # fmt: skip

    # ---------------------------------------------------------------- signals

    def signals(self, role: str, model: nn.Module, batch: Batch, features: Sequence[str] = ()) -> Signals:
        """``logits``, captured features, ``labels``, and of every text also ``tokens`` and ``by_text``.

        Labels and tokens are the next ones; those of a text that somebody has drawn are no labels, but terms may ask
        for the tokens. ``by_text`` is 1 over the tokens of the text.
        """
        heard = self._heard(batch, self.view(role, model))
        targets, made = batch["targets"], self.processor
        layout = Layout.padded("token", batch["target_lengths"], targets.shape[1])
        network: Any = model
        with capture(model, features) as taken:
            shared = all(one.startswith("model.decoder") for one in features)
            states = self._encoders(encoder_of(model), heard, shared=shared)
            said = network(
                encoder_outputs=(states,), decoder_input_ids=shifted(targets, made.start, made.end), use_cache=False
            ).logits
        out = Signals(batch["ids"]).add("logits", said, layout).add("labels", targets.reshape(-1), layout)
        out.add("tokens", targets.reshape(-1), layout)
        out.add("by_text", (1 / batch["target_lengths"].float())[layout.item], layout)
        for name, calls in taken.items():
            out.add(name, *self._rows(name, only_call(name, calls), batch, layout))
        return out

    def _rows(self, name: str, rows: Tensor, batch: Batch, layout: Layout) -> tuple[Tensor, Layout]:
        """A captured module's rows ``(b, t, c)``: frames of the encoder, positions of the decoder."""
        at = layout
        if name.startswith(ENCODER) and rows.ndim == 3:
            frames = (batch["lengths"] * rows.shape[1] / self.processor.frames).ceil().long()
            at = Layout.padded("frame", frames.clamp(1, rows.shape[1]), rows.shape[1])
        if rows.ndim != 3 or len(at) != rows.shape[0] * rows.shape[1]:
            raise UserError(
                f"module {name!r} gives {tuple(rows.shape)}: a feature here is (b, t, c), of a layer of the encoder or "
                "of the decoder: capture a layer as model.decoder.layers.0"
            )
        return rows, at

    def _heard(self, batch: Batch, view: str) -> Tensor:
        """``(b, mels, frames)`` features, the silence behind each utterance put back."""
        lengths = batch["lengths"]
        silence = batch["clean"][torch.arange(len(lengths), device=lengths.device), lengths - 1]
        return padded(batch[view], lengths, silence, self.processor.frames)

    def teacher_sees(self, sample: Sample) -> tuple[Tensor, Tensor]:
        """What it hears, and the tokens that it is forced over."""
        heard = sample.clean if self.config.teacher_view == "clean" else sample.features
        return heard, torch.tensor(sample.target)

    @torch.no_grad()
    def own_texts(self, role: str, model: nn.Module, batch: Batch, temperature: float, longest: int) -> Batch:
        """The batch over texts that `role` draws from itself, in eval mode, of torch's global generator.

        Targets are all that both are forced over then, and no labels. A text that was not ended has no end.

        Args:
            longest: tokens of a text, its end among them.
        """
        made, heard = self.processor, self._heard(batch, self.view(role, model))
        with evaluating(model):
            states = self._encoders(encoder_of(model), heard, shared=True)
            texts = drawn(model, made, states, temperature, longest)
        return self.over(batch, [[*made.prefix[1:], *text] for text in texts])

    def over(self, batch: Batch, targets: Sequence[Sequence[int]]) -> Batch:
        """The batch over other targets."""
        device = batch["lengths"].device
        return {
            **batch,
            "targets": pad_sequence([torch.tensor(one) for one in targets], True, -1).to(device),
            "target_lengths": torch.tensor([len(one) for one in targets], device=device),
            "texts": [self.processor.decode(one) for one in targets],
        }

    # ---------------------------------------------------------------- evaluation and export

    def written(self, role: str, model: nn.Module, batch: Batch) -> list[str]:
        """What a role writes of each utterance, greedily."""
        heard = self._heard(batch, "clean").to(next(model.parameters()).device)
        return [self.processor.decode(ids) for ids in greedy(model, self.processor, heard)]

    def evaluate(self, role: str, model: nn.Module, split: str) -> Evaluation:
        """Greedy word errors on `split`, of texts in the form that ``data.normaliser`` gives both, and ``rtf``."""

        def write(batch: Batch) -> tuple[list[str], Callable[[], list[str]] | None]:
            return [self.tokens.normalise(text) for text in self.written(role, model, batch)], None

        return measured(self.data(split), write, self.config.metric)

    def shown(self, split: str) -> Written:
        return Written(self.data(split), self.processor.rate, self.written, self.tokens.normalise)

    def about(self, role: str, model: nn.Module, folder: Path) -> About:
        return about_decoder(model, self.processor)

    def export(self, model: nn.Module, folder: Path) -> Mapping[str, Any]:
        """The folder is what is deployed: `transformers` alone writes test utterances with it again.

        Where it writes one otherwise than the trained student did, a ``note`` says so in the report and the card.
        """
        source, model = self.data("test"), model.cpu().eval()
        waves = [torch.from_numpy(source.items[i].wave()) for i in range(min(RELOADED, len(source)))]
        theirs = reloaded(folder, waves, self.processor.rate)
        ours = [self.written("student", model, source.collate([source.sample(i, 0)]))[0] for i in range(len(waves))]
        other = [source.items[i].key for i, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1]]
        found: dict[str, Any] = {"bytes": size_of(folder), "reloaded": len(waves), "other_texts": len(other)}
        if other:
            found["note"] = (
                f"transformers alone writes {len(other)} of {len(waves)} test utterances otherwise, first {other[0]}"
            )
        return {"model.safetensors": found}

    def lint(self, folder: Path) -> Iterable[tuple[Literal["warn", "fail"], str, str]]:
        """Of a teacher that was trained to be masked or to leave out layers: its student is not."""
        if Processor(folder.expanduser(), self.config.language).config.get("apply_spec_augment"):
            advice = "say data.augment.freq_masks and time_masks where the student shall hear masks"
            yield "warn", "its config masks features in training (apply_spec_augment), which is off here", advice


__all__ = ["Seq2SeqAdapter"]
