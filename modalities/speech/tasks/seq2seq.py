"""Decoders: teacher and student are forced over one text, and every position of it is a row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from xmodal_kd.adapter.adapter import Batch, Evaluation, is_teacher
from xmodal_kd.adapter.saved_model import CARD, About
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.signals.capture import capture, only_call
from xmodal_kd.signals.signals import Layout, Signals
from xmodal_kd.training.modes import evaluating

from ..data.corpora import SpeechData
from ..data.decoder_source import DecoderSource, forced_over
from ..data.features import Features
from ..data.source import Sample
from ..evaluate.measure import measured
from ..export.decoder_folder import about_decoder, load_decoder_card, reloaded, save_decoder, size_of
from ..models.processor import DecoderTokens, MelFrames, Processor, padded
from ..models.seq2seq import Encoders, encoder_of, shifted
from ..models.whisper import Beside, drawn, greedy, load_whisper
from ..show.written import Written
from .forced import Forced
from .texts import TextAdapter

#: Test utterances that `transformers` alone writes again of an exported student.
RELOADED = 8
#: Below this path modules are of the encoder, and their rows are frames.
ENCODER = "model.encoder"
#: The decoder's embeddings of tokens.
TABLE = "model.decoder.embed_tokens"


class Seq2SeqAdapter(TextAdapter):
    """Teacher and student hear the same utterance and are forced over the same tokens, each shifted to the right.

    A row is a position of the decoder: ``logits`` of its next token, ``labels`` that token. What stands before a text
    (language, task) counts too, but for the start; padding is masked. Captured modules of the decoder have the same
    rows, those of the encoder a row a frame. A term with ``weights: by_text`` is a mean over texts of their means.

    A teacher whose folder has another tokenizer than ``data.processor`` is forced over its own tokens of the same text:
    row i is then the i-th token of each, which only losses for two vocabularies compare (`other_tokens`).
    """

    task: ClassVar[str] = "seq2seq"
    noun: ClassVar[str] = "decoder"
    along: ClassVar[str] = "a decoder is forced over"
    fitting: ClassVar[str] = "whisper"

    def __init__(self, data: SpeechData, streams: Streams, batch_size: int) -> None:
        super().__init__(data, streams, batch_size)
        self._sources: dict[str, DecoderSource] = {}
        self._encoders = Encoders()

    def _read(self, folder: Path) -> Processor:
        return Processor(folder.expanduser(), self.config.language, leading_space=self.config.leading_space)

    @property
    def _own(self) -> dict[str, Path]:
        """The folders of teachers, be they loaded from there or built as there."""
        found = {role: spec.path or spec.params.get("processor") for role, spec in self.teachers.items()}
        return {role: Path(path) for role, path in found.items() if path and self.teachers[role].signals is None}

    @cached_property
    def processor(self) -> Processor:
        """What all roles hear and write by."""
        folder = self.config.processor or next(iter(self._own.values()), None)
        if folder is None:
            raise UserError(
                "data.processor: no teacher.path says how audio is heard and texts are split into tokens: name a "
                "folder with a Whisper's config and processor"
            )
        return self._read(folder)

    @cached_property
    def others(self) -> Mapping[str, DecoderTokens]:
        """How teachers write that have a tokenizer of their own."""
        ours = self.processor
        made = {role: self._read(path) for role, path in self._own.items() if path.expanduser() != ours.folder}
        if (spoken := self.config.language) and not any(one.language for one in (ours, *made.values())):
            raise UserError(f"data.language: {spoken}: {ours.folder} knows one language: leave it out")
        return {
            role: DecoderTokens(one, self.config.normaliser) for role, one in made.items() if one.names != ours.names
        }

    def _made(self, role: str) -> Processor:
        return self.others[role].processor if role in self.others else self.processor

    @cached_property
    def _shifts(self) -> dict[str, int]:
        """Rows by which other tokens are moved so that texts begin in one row."""
        return {role: len(self.processor.prefix) - len(one.processor.prefix) for role, one in self.others.items()}

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
                {role: (tokens, tokens.processor.limit) for role, tokens in self.others.items()},
            )  # fmt: skip
        return self._sources[split]

    # ---------------------------------------------------------------- models

    def build(self, role: str, model: str, params: Mapping[str, Any]) -> nn.Module:
        kind = self.kind(role, model)
        config = kind.Config.model_validate(params)
        if config.processor is not None and not is_teacher(role):
            raise UserError("student.params.processor: the student writes by data.processor: name the folder there")
        if role in self.others:
            self._check_hearing(role, self._made(role))
        built: nn.Module = kind.build(config, self._made(role))
        built.card = {"model": model, "params": config.model_dump(mode="json", exclude={"processor"})}  # type: ignore[assignment]
        return built

    def load(self, role: str, folder: Path) -> nn.Module:
        """A Whisper as transformers saves it, or a student that was saved here, of the features of all."""
        self.check_live(role, folder)
        params: dict[str, Any] = {}
        if (folder / CARD).is_file():
            params = load_decoder_card(folder).params
        theirs = self._read(folder)
        if role not in self.others or theirs.names != self._made(role).names:
            self._check_same(role, theirs)
        self._check_hearing(role, theirs)
        model: nn.Module = load_whisper(folder)
        model.card = {"model": "whisper", "params": params}  # type: ignore[assignment]
        return model

    def _check_same(self, role: str, theirs: Processor) -> None:
        """Raises `UserError` where a role writes other tokens than the student or has too few positions."""
        ours, where = self.processor, f"{theirs.folder}: its {role}"
        if theirs.names != ours.names:
            raise UserError(f"{_differ(role, theirs, ours)}: name its folder as data.processor")
        if theirs.prefix != ours.prefix:
            raise UserError(f"{where} begins texts with {theirs.prefix}, {ours.folder} with {ours.prefix}: they differ")
        train = self.data("train")
        if theirs.limit < train.longest:
            over = [i for i, item in enumerate(train.items) if len(self.tokens.encode(item.text or "")) > theirs.limit]
            raise UserError(f"{where}: {train.too_long(over[0], theirs.limit, len(over))}")

    def _check_hearing(self, role: str, theirs: Processor) -> None:
        """Raises `UserError` where a role hears other features than the student."""
        ours, where = self.processor, f"{theirs.folder}: its {role}"
        for key in ("rate", "mels", "hop", "frames"):
            if (there := getattr(theirs, key)) != (here := getattr(ours, key)):
                raise UserError(
                    f"{where} hears features of {key} {there}, {ours.folder} of {key} {here}: both hear one: take a "
                    "teacher and a student of one processor"
                )

    def other_tokens(self, role: str, signal: str) -> str | None:
        if role not in self.others or signal.startswith(ENCODER):
            return None
        return _differ(role, self._made(role), self.processor)

    def class_names(self, role: str) -> Sequence[str]:
        return self._made(role).names

    def save(self, role: str, model: nn.Module, folder: Path) -> None:
        card: Mapping[str, Any] = model.card  # type: ignore[assignment]
        made = self._made(role)
        save_decoder(folder, model, made, {
            **card, "role": role, "language": made.language, "leading_space": made.leading_space,
            "normaliser": self.config.normaliser, "sample_rate": made.rate,
        })  # fmt: skip

    # ---------------------------------------------------------------- signals

    def signals(self, role: str, model: nn.Module, batch: Batch, features: Sequence[str] = ()) -> Signals:
        """``logits``, captured features, ``labels``, and of every text also ``tokens`` and ``by_text``.

        Labels and tokens are the next ones; those of a text that somebody has drawn are no labels, but terms may ask
        for the tokens. ``by_text`` is 1 over the tokens of the text. The decoder's table of embeddings, captured, gives
        those of the token that is read and of the next one, without gradient.
        """
        heard = self._heard(batch, self.view(role, model))
        forced, made = Forced.of(batch, role, self._shifts), self._made(role)
        targets, layout = forced.targets, forced.layout()
        network: Any = model
        with capture(model, features) as taken:
            shared = all(one.startswith("model.decoder") for one in features)
            states = self._encoders(encoder_of(model), heard, shared=shared)
            said = network(
                encoder_outputs=(states,), decoder_input_ids=shifted(targets, made.start, made.end), use_cache=False
            ).logits
        tokens = forced.placed(targets, -1).flatten()
        out = Signals(batch["ids"]).add("logits", forced.placed(said), layout).add("labels", tokens, layout)
        out.add("tokens", tokens, layout)
        counts = layout.mask.view(len(targets), -1).sum(dim=1)
        out.add("by_text", (1 / counts.float())[layout.item], layout)
        for name, calls in taken.items():
            rows = only_call(name, calls)
            if name == TABLE:
                rows = torch.cat([rows, network.get_submodule(TABLE)(targets.clamp(min=0))], dim=-1).detach()
            if name.startswith(ENCODER) and rows.ndim == 3:
                frames = (batch["lengths"] * rows.shape[1] / made.frames).ceil().long()
                out.add(name, rows, Layout.padded("frame", frames.clamp(1, rows.shape[1]), rows.shape[1]))
            elif rows.ndim == 3 and rows.shape[:2] == targets.shape:
                out.add(name, forced.placed(rows), layout)
            else:
                raise UserError(
                    f"module {name!r} gives {tuple(rows.shape)}: a feature here is (b, t, c), of a layer of the "
                    "encoder or of the decoder: capture a layer as model.decoder.layers.0"
                )
        return out

    def _heard(self, batch: Batch, view: str) -> Tensor:
        """``(b, mels, frames)`` features, the silence behind each utterance put back."""
        lengths = batch["lengths"]
        silence = batch["clean"][torch.arange(len(lengths), device=lengths.device), lengths - 1]
        return padded(batch[view], lengths, silence, self.processor.frames)

    def teacher_sees(self, sample: Sample) -> tuple[Tensor, Tensor]:
        """What it hears, and the tokens that it is forced over."""
        heard = sample.clean if self.config.teacher_view == "clean" else sample.features
        return heard, torch.tensor(sample.others.get("teacher", sample.target))

    @property
    def begins(self) -> int:
        """The row of a text's first token: those before it are of what stands before a text."""
        return len(self.processor.prefix) - 1

    @torch.no_grad()
    def own_texts(
        self, role: str, model: nn.Module, batch: Batch, temperature: float, longest: int,
        beside: tuple[str, nn.Module, float] | None = None,
    ) -> Batch:  # fmt: skip
        """The batch over texts that `role` draws from itself, in eval mode, of torch's global generator.

        Targets are all that both are forced over then, and no labels. A text that was not ended has no end.

        Args:
            longest: tokens of a text, its end among them.
            beside: another role, its model in eval mode, and the share that its distribution has in each token's.
        """

        def states(role: str, model: nn.Module) -> Tensor:
            return self._encoders(encoder_of(model), self._heard(batch, self.view(role, model)), shared=True)

        made = self._made(role)
        with evaluating(model):
            mixed = None if beside is None else Beside(beside[1], states(*beside[:2]), beside[2], temperature)
            texts = drawn(model, made, states(role, model), temperature, longest, mixed)
        return self.over(batch, [[*made.prefix[1:], *text] for text in texts], role)

    def over(self, batch: Batch, targets: Sequence[Sequence[int]], role: str = "student") -> Batch:
        """The batch over other targets, tokens of `role`; whoever writes others is forced over the same texts."""
        writer = role if role in self.others else ""
        texts = [self._made(role).decode(one) for one in targets]
        ended = [one[-1] == self._made(role).end for one in targets]
        found = forced_over(writer, targets)
        for other, tokens in {"": self.tokens, **self.others}.items():
            if other != writer:
                anew = (tokens.encode(text)[: tokens.processor.limit] for text in texts)
                found |= forced_over(other, [one if end else one[:-1] for one, end in zip(anew, ended, strict=True)])
        return {**batch, **{key: value.to(batch["lengths"].device) for key, value in found.items()}, "texts": texts}

    # ---------------------------------------------------------------- evaluation and export

    def written(self, role: str, model: nn.Module, batch: Batch) -> list[str]:
        """What a role writes of each utterance, greedily."""
        heard = self._heard(batch, "clean").to(next(model.parameters()).device)
        made = self._made(role)
        return [made.decode(ids) for ids in greedy(model, made, heard)]

    def evaluate(self, role: str, model: nn.Module, split: str) -> Evaluation:
        """Greedy word errors on `split`, of texts in the form that ``data.normaliser`` gives both, and ``rtf``."""

        def write(batch: Batch) -> tuple[list[str], Callable[[], list[str]] | None]:
            return [self.tokens.normalise(text) for text in self.written(role, model, batch)], None

        return measured(self.data(split), write, self.config.metric)

    def shown(self, split: str) -> Written:
        return Written(self.data(split), self.processor.rate, self.written, self.tokens.normalise)

    def about(self, role: str, model: nn.Module, folder: Path) -> About:
        return about_decoder(model, self._made(role))

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
        if self._read(folder).config.get("apply_spec_augment"):
            advice = "say data.augment.freq_masks and time_masks where the student shall hear masks"
            yield "warn", "its config masks features in training (apply_spec_augment), which is off here", advice


def _differ(role: str, theirs: Processor, ours: Processor) -> str:
    """Where two vocabularies part."""
    pairs = zip(theirs.names, ours.names, strict=False)
    at = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
    what = f"{theirs.classes} tokens there, {ours.classes} here" if at is None else (
        f"token {at} is {theirs.names[at]!r} there, {ours.names[at]!r} here"
    )  # fmt: skip
    return f"{theirs.folder}: its {role} writes another vocabulary than {ours.folder}: {what}"


__all__ = ["Seq2SeqAdapter"]
