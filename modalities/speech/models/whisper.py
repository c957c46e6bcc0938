"""Whisper as ``transformers`` saves it: a teacher that writes sentences, and teaches by them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from xmodal_kd.runtime.checkpoint import read_json
from xmodal_kd.runtime.errors import UserError

from ..data.audio import Wave

CONFIG, WEIGHTS = "config.json", ("model.safetensors", "model.safetensors.index.json")
#: Seconds that it hears at once.
LONGEST = 30.0


class Hypothesis(NamedTuple):
    """What was perhaps said: the text, and the mean log-probability of its tokens, the end among them, in nats."""

    text: str
    score: float


def is_whisper(folder: Path) -> bool:
    return (folder / CONFIG).is_file() and _config(folder).get("model_type") == "whisper"


class Whisper:
    """N best texts of recordings of at most half a minute, by beam search.

    Args:
        language: of a multilingual model, as it names it (``en``, ``german``); None: it guesses, once a recording.
    Raises:
        UserError: the folder is no Whisper, asks for code of its own, or lacks weights, tokenizer or front end.
    """

    def __init__(self, folder: Path, language: str | None = None) -> None:
        _check(folder)
        try:
            from transformers import AutoTokenizer, WhisperFeatureExtractor, WhisperForConditionalGeneration
            from transformers.utils import logging
        except ImportError as error:
            raise UserError(f"{folder}: a model of transformers: pip install transformers") from error
        shown = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        try:
            where: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
            self.hears = WhisperFeatureExtractor.from_pretrained(folder, local_files_only=True)
            self.tokenizer = AutoTokenizer.from_pretrained(folder, **where)
            self.model = WhisperForConditionalGeneration.from_pretrained(
                folder, use_safetensors=True, dtype=torch.float32, **where
            ).eval()
        except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
            said = " ".join(str(error).split())[:200]
            raise UserError(f"{folder}: transformers cannot load it ({said}): save its processor beside it") from error
        finally:
            if shown:
                logging.enable_progress_bar()
        self.rate: int = int(self.hears.sampling_rate)
        self.many = bool(getattr(self.model.generation_config, "is_multilingual", False))
        if language is not None and not self.many:
            raise UserError(f"--language {language}: {folder} knows one language: leave it out")
        self.language = language
        try:
            if language is not None:
                self.tokenizer.set_prefix_tokens(language=language, task="transcribe", predict_timestamps=False)
        except ValueError as error:
            raise UserError(f"--language {language}: {' '.join(str(error).split())[:160]}") from None

    @torch.no_grad()
    def __call__(self, wave: Wave, n: int = 1, beam: int = 1) -> list[Hypothesis]:
        """The up to `n` best texts that a beam of `beam` finds, the best first, none twice.

        Args:
            wave: ``(samples,)`` at `rate` Hz.
        """
        from transformers import GenerationMixin

        heard = self.hears(wave, sampling_rate=self.rate, return_tensors="pt").input_features
        prompt = self._prompt(heard)
        # Whisper's own generate takes the recording apart for long ones, and gives one text however many are asked for
        found = GenerationMixin.generate(
            self.model, heard, decoder_input_ids=prompt, attention_mask=torch.ones_like(heard[:, 0], dtype=torch.long),
            num_beams=max(n, beam, 2), num_return_sequences=n, do_sample=False, length_penalty=1.0, max_length=None,
            max_new_tokens=self.model.config.max_target_positions - prompt.shape[1], return_dict_in_generate=True,
            output_scores=True,
        )  # fmt: skip
        texts = self.tokenizer.batch_decode(found.sequences, skip_special_tokens=True)
        best: dict[str, float] = {}
        for text, score in zip(texts, found.sequences_scores.tolist(), strict=True):
            best[text.strip()] = max(score, best.get(text.strip(), score))
        return [Hypothesis(text, score) for text, score in sorted(best.items(), key=lambda pair: -pair[1])]

    def _prompt(self, heard: Tensor) -> Tensor:
        """``(1, k)`` tokens that say start, language and task, and that no times are wanted."""
        language = self.language
        if self.many and language is None:
            found = int(self.model.detect_language(heard, generation_config=self.model.generation_config)[0])
            language = self.tokenizer.convert_ids_to_tokens(found).strip("<|>")
        if self.many:
            self.tokenizer.set_prefix_tokens(language=language, task="transcribe", predict_timestamps=False)
        return torch.tensor([self.tokenizer.prefix_tokens])


def _config(folder: Path) -> dict[str, Any]:
    found = read_json(folder / CONFIG)
    return found if isinstance(found, dict) else {}


def _check(folder: Path) -> None:
    if not is_whisper(folder):
        raise UserError(f"{folder}: no Whisper as transformers saves it: its config.json names another kind of model")
    if "auto_map" in _config(folder):
        raise UserError(f"{folder}: asks for code of its own (auto_map), which is not run: use a built-in model")
    if not any((folder / name).is_file() for name in WEIGHTS):
        raise UserError(f"{folder}: no {WEIGHTS[0]}: save the model with save_pretrained(folder)")


__all__ = ["LONGEST", "Hypothesis", "Whisper", "is_whisper"]
