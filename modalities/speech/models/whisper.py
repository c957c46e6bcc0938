"""Whisper as ``transformers`` saves it: a teacher that writes sentences, and teaches by them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from xmodal_kd.runtime.checkpoint import read_json
from xmodal_kd.runtime.errors import UserError

from ..data.audio import Wave
from .processor import CONFIG, Processor, checked_config, read_parts

WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
#: Seconds that it hears at once.
LONGEST = 30.0


class Hypothesis(NamedTuple):
    """What was perhaps said: the text, and the mean log-probability of its tokens, the end among them, in nats."""

    text: str
    score: float


def is_whisper(folder: Path) -> bool:
    """Whether a folder is one of a Whisper, as transformers saves it."""
    found = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else None
    return isinstance(found, dict) and found.get("model_type") == "whisper"


class Whisper:
    """N best texts of recordings of at most half a minute, by beam search.

    Args:
        language: of a multilingual model, as it names it (``en``, ``german``); None: it guesses, once a recording.
    Raises:
        UserError: the folder is no Whisper, asks for code of its own, or lacks weights, tokenizer or front end.
    """

    def __init__(self, folder: Path, language: str | None = None) -> None:
        self.model = load_whisper(folder)
        self.hears, self.tokenizer = read_parts(folder)[:2]
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


@torch.no_grad()
def greedy(model: Any, processor: Processor, heard: Tensor) -> list[list[int]]:
    """The most probable token after another of each recording, what stands before a text left out, up to its end.

    Args:
        model: a ``WhisperForConditionalGeneration``, whose keys and values of earlier tokens are kept.
        heard: ``(b, mels, frames)`` features.
    """
    there = torch.ones_like(heard[:, 0], dtype=torch.long)
    found = _written(model, processor, len(heard), processor.longest, heard, attention_mask=there, do_sample=False)
    return [ids[: ids.index(processor.end)] if processor.end in ids else ids for ids in found]


@torch.no_grad()
def drawn(
    model: Any, processor: Processor, states: Tensor, temperature: float, longest: int, beside: Beside | None = None
) -> list[list[int]]:  # fmt: skip
    """Tokens drawn one after another from what a model says at `temperature`, of torch's global generator.

    As `greedy`, but each text keeps its end where it has one, which it need not within `longest` tokens. Tokens that
    the generation config suppresses are not drawn.

    Args:
        states: ``(b, t, c)`` of the encoder.
        longest: tokens of a text, its end among them; as many as the decoder has positions for at most.
        beside: what else they are drawn from, at the same temperature.
    """
    from transformers import LogitsProcessorList
    from transformers.modeling_outputs import BaseModelOutput

    most = min(processor.limit, len(processor.prefix) + longest)
    found = _written(
        model, processor, len(states), most, encoder_outputs=BaseModelOutput(last_hidden_state=states),
        attention_mask=torch.ones_like(states[..., 0], dtype=torch.long), do_sample=True, temperature=temperature,
        top_k=0, top_p=1.0, logits_processor=LogitsProcessorList([] if beside is None else [beside]),
    )  # fmt: skip
    return [ids[: ids.index(processor.end) + 1] if processor.end in ids else ids for ids in found]


class Beside:
    """Turns scores into those of a mixture with another model of the same tokens, which reads along.

    Args:
        states: ``(b, t, c)`` of its encoder.
        share: of its distribution.
    """

    def __init__(self, model: Any, states: Tensor, share: float, temperature: float) -> None:
        from transformers.modeling_outputs import BaseModelOutput

        self.model, self.heard, self.share, self.temperature = model, BaseModelOutput(states), share, temperature
        #: Keys and values of earlier tokens, by the name that this version of `transformers` has for them.
        self.past: dict[str, Any] = {}

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """``(b, classes)`` scores whose softmax at the temperature is the mixture; what is suppressed stays so."""
        fresh = input_ids[:, -1:] if self.past else input_ids
        said = self.model(encoder_outputs=self.heard, decoder_input_ids=fresh, use_cache=True, **self.past)
        name = "cache" if "cache" in said else "past_key_values"
        self.past = {name: said[name]}
        theirs = said.logits[:, -1].masked_fill(scores == -torch.inf, -torch.inf)
        ours, theirs = ((rows / self.temperature).softmax(dim=-1) for rows in (scores, theirs))
        return self.temperature * ((1 - self.share) * ours + self.share * theirs).log()


def _written(model: Any, processor: Processor, items: int, most: int, *heard: Tensor, **how: Any) -> list[list[int]]:
    """What `transformers` writes behind the prefix of each item, up to `most` tokens in all."""
    from transformers import GenerationMixin

    device = next(model.parameters()).device
    prompt = torch.tensor([processor.prefix] * items, device=device)
    found = GenerationMixin.generate(
        model, *heard, decoder_input_ids=prompt, num_beams=1, use_cache=True, max_length=None,
        max_new_tokens=max(1, most - prompt.shape[1]), **how,
    )  # fmt: skip
    return [ids[prompt.shape[1] :].tolist() for ids in found.cpu()]


def load_whisper(folder: Path) -> Any:
    """The ``WhisperForConditionalGeneration`` of a folder, in eval mode and float32 on the CPU.

    Raises:
        UserError: the folder is no Whisper, asks for code of its own, or lacks trained weights.
    """
    checked_config(folder)
    if not any((folder / name).is_file() for name in WEIGHTS):
        raise UserError(f"{folder}: no {WEIGHTS[0]}: save the model with save_pretrained(folder)")
    try:
        from transformers import WhisperForConditionalGeneration
        from transformers.utils import logging
    except ImportError as error:
        raise UserError(f"{folder}: a model of transformers: pip install transformers") from error
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model, found = WhisperForConditionalGeneration.from_pretrained(
            folder, use_safetensors=True, dtype=torch.float32, local_files_only=True, trust_remote_code=False,
            output_loading_info=True,
        )  # fmt: skip
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise UserError(f"{folder}: transformers cannot load it ({' '.join(str(error).split())[:200]})") from error
    finally:
        if shown:
            logging.enable_progress_bar()
    if lacking := sorted([*found["missing_keys"], *(str(one) for one in found["mismatched_keys"])]):
        raise UserError(f"{folder}: its weights lack {lacking[0]!r} ({len(lacking)} in all): it is no trained Whisper")
    return model.eval()


__all__ = ["LONGEST", "Beside", "Hypothesis", "Whisper", "drawn", "greedy", "is_whisper", "load_whisper"]
