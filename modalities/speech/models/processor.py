"""What a folder of Whisper says beside its weights: how it hears, which tokens it writes, what stands before a text."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xmodal_kd.runtime.checkpoint import read_json
from xmodal_kd.runtime.errors import UserError

from ..data.tokens import NORMALISERS, Normaliser, as_written

CONFIG, GENERATION = "config.json", "generation_config.json"
#: One of them holds the tokens.
TOKENS = ("tokenizer.json", "vocab.json")
#: One of them says what is heard.
HEARING = ("preprocessor_config.json", "processor_config.json")


class Processor:
    """Feature extractor, tokenizer and generation config of a folder.

    Args:
        language: what is spoken, of a model that knows many languages, others are not told; None: as its generation
            config says.
        leading_space: whether a text begins with a space.
    Raises:
        UserError: the folder is no Whisper, lacks a part, its parts do not fit each other, or the language is not told.
    """

    def __init__(self, folder: Path, language: str | None = None, *, leading_space: bool = True) -> None:
        self.folder, self.leading_space = folder, leading_space
        self.config = checked_config(folder)
        self.extractor, self.tokenizer, self.generation = read_parts(folder)
        self.classes, self.limit = int(self.config["vocab_size"]), int(self.config["max_target_positions"])
        self.rate, self.mels = int(self.extractor.sampling_rate), int(self.extractor.feature_size)
        self.hop, self.frames = int(self.extractor.hop_length), int(self.extractor.nb_max_frames)
        self.seconds = float(self.extractor.chunk_length)
        self.start, self.end = int(self.config["decoder_start_token_id"]), int(self.config["eos_token_id"])
        self._fits()
        self.language = self._language(language)
        self.prefix = self._prefix()
        if self.prefix[:1] != [self.start]:
            raise UserError(
                f"{folder}: its tokenizer begins a text with token {self.prefix[:1]}, its model with {self.start} "
                "(decoder_start_token_id): save the processor of this model beside it"
            )

    def _fits(self) -> None:
        heard = 2 * int(self.config["max_source_positions"])
        if (self.frames, self.mels) != (heard, int(self.config["num_mel_bins"])):
            raise UserError(
                f"{self.folder}: its model hears {heard} frames of {self.config['num_mel_bins']} mels, its processor "
                f"gives {self.frames} of {self.mels}: save the processor of this model beside it"
            )
        if len(self.tokenizer) > self.classes:
            raise UserError(
                f"{self.folder}: its tokenizer has {len(self.tokenizer)} tokens, its model writes {self.classes} "
                "(vocab_size): save the processor of this model beside it"
            )

    def _language(self, wanted: str | None) -> str | None:
        """What is spoken, of a model that knows many languages; None of another."""
        if not getattr(self.generation, "is_multilingual", False):
            return None
        found = wanted or getattr(self.generation, "language", None) or self._forced()
        if found is None:
            raise UserError(
                f"data.language: {self.folder} knows many languages and does not say which is spoken: name it, as in "
                "--set data.language=en"
            )
        return str(found)

    def _prefix(self) -> list[int]:
        """What stands before a text: start, language, task, and that no times are wanted, as `transformers` has it."""
        if self.language is None:
            return [int(token) for token in self.tokenizer.prefix_tokens]
        from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

        code = TO_LANGUAGE_CODE.get(self.language.lower(), self.language.lower())
        languages: dict[str, int] = getattr(self.generation, "lang_to_id", None) or {}
        spoken = languages.get(f"<|{code}|>", self._token(f"<|{code}|>"))
        if spoken is None:
            some = ", ".join(sorted(name.strip("<|>") for name in languages)[:12])
            raise UserError(f"data.language: {self.folder} does not know {self.language!r}, but {some}, ...")
        task = getattr(self.generation, "task", None) or "transcribe"
        tasks: dict[str, int] = getattr(self.generation, "task_to_id", None) or {}
        times = getattr(self.generation, "no_timestamps_token_id", None)
        told = [
            tasks.get(task, self._token(f"<|{task}|>")),
            self._token("<|notimestamps|>") if times is None else times,
        ]
        return [self.start, *(int(token) for token in (spoken, *told) if token is not None)]

    def _token(self, name: str) -> int | None:
        return self.tokenizer.get_vocab().get(name)  # type: ignore[no-any-return]

    def _forced(self) -> str | None:
        """The language that older folders force as the second token."""
        forced = getattr(self.generation, "forced_decoder_ids", None) or self.config.get("forced_decoder_ids") or ()
        token = next((token for place, token in forced if place == 1 and token is not None), None)
        return None if token is None else str(self.tokenizer.convert_ids_to_tokens(int(token))).strip("<|>")

    @cached_property
    def names(self) -> tuple[str, ...]:
        """What each output means."""
        known = self.tokenizer.convert_ids_to_tokens(range(len(self.tokenizer)))
        return (*map(str, known), *(f"<{i}>" for i in range(len(known), self.classes)))

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence that it writes, its beginning included, as `transformers` counts them."""
        most = int(getattr(self.generation, "max_length", None) or self.limit)
        return min(self.limit, most + min(self.limit // 2 - 1, len(self.prefix)))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of tokens, without special ones."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    def written_config(self) -> Any:
        """The generation config of a student, by which `transformers` alone writes what is written here.

        It names no attention heads that tell times: those are of the teacher's layers.
        """
        made = copy.deepcopy(self.generation)
        made._from_model_config = False  # else transformers makes it anew of the model's own, and forgets the rest
        if self.language is not None:
            made.language, made.task = self.language, getattr(made, "task", None) or "transcribe"
        if getattr(made, "no_timestamps_token_id", None) is None and len(self.prefix) > 1:
            made.no_timestamps_token_id = self.prefix[-1]
        if hasattr(made, "alignment_heads"):
            del made.alignment_heads
        return made

    def save(self, folder: Path) -> None:
        """Beside a student's weights."""
        from transformers import WhisperProcessor

        self.extractor.save_pretrained(folder)
        WhisperProcessor(feature_extractor=self.extractor, tokenizer=self.tokenizer).save_pretrained(folder)


class MelFrames:
    """Log-mel features as Whisper's processor makes them, without the silence that it pads with.

    All frames behind the last one that is kept hold its values, so that nothing is lost: `padded` puts them back.
    """

    def __init__(self, processor: Processor) -> None:
        self.processor = processor

    def __call__(self, wave: Tensor) -> Tensor:
        """``(samples,)`` float32 to ``(t, mels)`` float32."""
        heard = self.processor.extractor(wave.numpy(), sampling_rate=self.processor.rate, return_tensors="pt")
        frames: Tensor = heard.input_features[0].T
        spoken = (frames != frames[-1]).any(dim=1).nonzero()
        last = int(spoken[-1]) + 1 if len(spoken) else 0
        return frames[: last + 1].contiguous()

    def frames_of(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        found: NDArray[np.int64] = np.minimum(-(-samples // self.processor.hop), self.processor.frames)
        return found


def padded(features: Tensor, lengths: Tensor, silence: Tensor, frames: int) -> Tensor:
    """``(b, mels, frames)`` of features ``(b, t, mels)``: behind each utterance's length its silence ``(b, mels)``."""
    batch, steps, mels = features.shape
    filled = silence[:, None].expand(batch, frames, mels).clone()
    inside = torch.arange(steps, device=features.device)[None] < lengths[:, None]
    filled[:, :steps] = torch.where(inside[..., None], features, filled[:, :steps])
    return filled.transpose(1, 2).contiguous()


class DecoderTokens:
    """Texts as the targets of a decoder: what stands before the text but for the first, the text, the end."""

    def __init__(self, processor: Processor, normaliser: Normaliser) -> None:
        self.processor, self.normaliser = processor, normaliser

    def encode(self, text: str, *, unknown_left: bool = False) -> list[int]:
        """Tokens of a text as it is written."""
        made = self.processor
        written = (" " if made.leading_space else "") + as_written(text)
        ids = made.tokenizer(written, add_special_tokens=False).input_ids
        return [*made.prefix[1:], *map(int, ids), made.end]

    def normalise(self, text: str) -> str:
        """The form that word errors are counted in."""
        return NORMALISERS[self.normaliser](text)

    def min_frames(self, ids: Sequence[int]) -> int:
        """A position of the decoder each."""
        return len(ids)

    def to_json(self) -> str:
        """By which an index knows how texts are split."""
        made = self.processor
        return json.dumps([made.names, made.prefix, made.leading_space, self.normaliser])


def checked_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of a Whisper. Raises `UserError` for what is none, or asks for code of its own."""
    if not folder.is_dir():
        what = "a file" if folder.is_file() else "no such folder"
        raise UserError(
            f"{folder}: {what}: a Whisper is a folder on this machine, nothing is fetched "
            "(hf download NAME --local-dir FOLDER brings a published model)"
        )
    found = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else None
    if not isinstance(found, dict):
        raise UserError(f"{folder}: no {CONFIG}: save the model with save_pretrained(folder)")
    if found.get("model_type") != "whisper":
        kind = next(iter(found.get("architectures") or ()), f"a model of type {found.get('model_type')!r}")
        raise UserError(
            f"{folder}: no Whisper as transformers saves it: {kind} is another kind of model: with data.task seq2seq "
            "teacher and student are WhisperForConditionalGeneration; a CTC model teaches with task ctc"
        )
    if "auto_map" in found:
        raise UserError(f"{folder}: asks for code of its own (auto_map), which is not run: use a built-in model")
    return found


def read_parts(folder: Path) -> tuple[Any, Any, Any]:
    """Feature extractor, tokenizer, generation config. Raises `UserError` for what is not there."""
    for names, what in ((TOKENS, "tokenizer"), (HEARING, "feature extractor")):
        if not any((folder / name).is_file() for name in names):
            raise UserError(
                f"{folder}: no {what} ({' or '.join(names)}): save its processor beside it "
                "(processor.save_pretrained(folder))"
            )
    try:
        from transformers import AutoTokenizer, GenerationConfig, WhisperConfig, WhisperFeatureExtractor
    except ImportError as error:
        raise UserError(f"{folder}: a model of transformers: pip install transformers") from error
    where: dict[str, Any] = {"local_files_only": True}
    try:
        extractor = WhisperFeatureExtractor.from_pretrained(folder, **where)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **where)
        if (folder / GENERATION).is_file():
            return extractor, tokenizer, GenerationConfig.from_pretrained(folder, **where)
        config = WhisperConfig.from_pretrained(folder, **where)
        return extractor, tokenizer, GenerationConfig.from_model_config(config)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, TypeError) as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(f"{folder}: transformers cannot load it ({said}): save its processor beside it") from error


__all__ = ["DecoderTokens", "MelFrames", "Processor", "checked_config", "padded", "read_parts"]
