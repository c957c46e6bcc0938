"""What each role says of whole utterances: a classifier of this project, one of ``transformers`` that hears waves, or
one that reads what is said.

Weights are read from safetensors only, nothing is fetched and no code of a folder is run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from xmodal_kd.adapter.adapter import Batch
from xmodal_kd.runtime.checkpoint import check_finite
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.signals.capture import capture, only_call

from .front_ends import OwnFeatures, SharedFeatures, waves_of
from .pretrained import WEIGHTS, config_of, is_pretrained, read_model

#: How transformers calls models that answer by classes.
HEADED = ("ForSequenceClassification", "ForAudioClassification")
#: Files that hold a tokenizer's pieces, without which transformers makes one of none; a front end of waves has another.
TOKENIZER = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model")
EXTRACTOR = ("preprocessor_config.json", "processor_config.json")
#: Seconds that a classifier of waves hears at least: silence follows what is shorter.
LEAST = 0.1


class Said(NamedTuple):
    """What a role says of a batch.

    Attributes:
        logits: ``(b, k)`` of its own classes; None of an encoder without a head.
        features: captured outputs ``(b, c)``, or ``(b, t, c)`` of frames.
        frames: ``(b,)`` valid ones, of captured frames.
        there: ``(b,)`` bool, the utterances of which it knows anything; None: all.
    """

    logits: Tensor | None
    features: Mapping[str, Tensor]
    frames: Tensor | None = None
    there: Tensor | None = None


class Says(Protocol):
    """How a role is asked."""

    @property
    def rate(self) -> int | None:
        """Hz of the waves that batches must carry for it; None where it hears the shared features, or none."""

    def say(self, model: nn.Module, batch: Batch, view: str, features: Sequence[str] = ()) -> Said: ...


class ByFeatures:
    """A classifier of this project, by the recipe's features or its own."""

    def __init__(self, front_end: SharedFeatures | OwnFeatures) -> None:
        self.front_end, self.rate = front_end, front_end.rate

    def say(self, model: nn.Module, batch: Batch, view: str, features: Sequence[str] = ()) -> Said:
        x, lengths = self.front_end.given(model, batch, view)
        with capture(model, features) as taken:
            logits = model(x, lengths)
        stride: Any = model.stride
        rows = {name: only_call(name, calls) for name, calls in taken.items()}
        return Said(logits, rows, (lengths + stride - 1) // stride)


class Reader(nn.Module):
    """A text encoder of ``transformers`` with its tokenizer, with or without a head of classes.

    Called with texts it gives logits ``(b, k)``, or without a head the vectors that the module `utterance` puts out:
    the last hidden state of each text's first token.
    """

    def __init__(self, network: nn.Module, tokenizer: Any, *, headed: bool) -> None:
        super().__init__()
        self.network, self.headed = network, headed
        self.utterance = nn.Identity()
        self.tokenizer = tokenizer

    def forward(self, texts: Sequence[str]) -> Tensor:
        device = next(self.parameters()).device
        network: Any = self.network
        places = int(getattr(network.config, "max_position_embeddings", 1 << 20))
        most = min(int(self.tokenizer.model_max_length), places)
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, max_length=most, return_tensors="pt")
        said = network(**tokens.to(device), output_hidden_states=True)
        vectors: Tensor = self.utterance(said.hidden_states[-1][:, 0])
        return said.logits if self.headed else vectors


class ByText:
    """A `Reader`, by what is said in the utterance; of one without a text it knows nothing."""

    rate: int | None = None

    def say(self, model: nn.Module, batch: Batch, view: str, features: Sequence[str] = ()) -> Said:
        texts: Sequence[str] = batch["texts"]
        with capture(model, features) as taken:
            said = model(texts)
        rows = {name: _first_token(only_call(name, calls), len(texts)) for name, calls in taken.items()}
        there = torch.tensor([bool(text) for text in texts], device=said.device)
        return Said(said if model.headed else None, rows, there=None if all(texts) else there)


def _first_token(rows: Tensor, items: int) -> Tensor:
    """A layer's states of tokens ``(b, t, c)`` as those of each text's first one."""
    return rows[:, 0] if rows.ndim == 3 and len(rows) == items else rows


class ByWaves:
    """A classifier of ``transformers`` that hears waves through the front end that its folder describes.

    Each utterance is heard alone, so that no padding matters.
    """

    def __init__(self, extractor: Any) -> None:
        self.extractor, self.rate = extractor, int(extractor.sampling_rate)

    def say(self, model: nn.Module, batch: Batch, view: str, features: Sequence[str] = ()) -> Said:
        device = next(model.parameters()).device
        logits, rows = [], []
        for wave in waves_of(batch, self.rate):
            least = max(0, int(LEAST * self.rate) - len(wave))
            heard = torch.cat([wave.cpu(), torch.zeros(least)]).numpy()
            given = self.extractor(heard, sampling_rate=self.rate, return_tensors="pt").to(device)
            with capture(model, features) as taken:
                logits.append(model(**given).logits)
            rows.append({name: only_call(name, calls) for name, calls in taken.items()})
        if wide := next((name for name, one in rows[0].items() if one.ndim != 2), None):
            raise UserError(
                f"module {wide!r} gives {tuple(rows[0][wide].shape)}: of this teacher a feature is one vector an "
                "utterance: capture classifier:input, or projector"
            )
        return Said(torch.cat(logits), {name: torch.cat([one[name] for one in rows]) for name in rows[0]})


class Found(NamedTuple):
    """A loaded teacher: the model, how it is asked, and its classes in order; None of an encoder without a head."""

    model: nn.Module
    says: Says
    classes: tuple[str, ...] | None


def reads_text(folder: Path) -> bool:
    """Whether the model of a folder of ``transformers`` reads texts, by the files beside it.

    What writes them by CTC has a tokenizer, too.
    """
    writes = _kind(config_of(folder)).endswith("ForCTC")
    return _has(folder, TOKENIZER) and not writes and not _has(folder, EXTRACTOR)


def classes_in(folder: Path) -> tuple[str, ...] | None:
    """The classes of the model of a folder of ``transformers``, in order; None of one without a head for them."""
    config = config_of(folder)
    if not _kind(config).endswith(HEADED):
        return None
    named: Any = config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}  # which is what is not written
    return tuple(str(named.get(str(i), f"LABEL_{i}")) for i in range(len(named)))


def load_utterances(folder: Path) -> Found:
    """The text encoder or the classifier of waves in a folder, frozen, in float32 on the CPU.

    Raises:
        UserError: the folder holds neither, no safetensors, asks for code of its own, or lacks its tokenizer or front
            end.
    """
    config = _checked(folder)
    classes = classes_in(folder)
    headed = classes is not None
    if reads_text(folder):
        network = _loaded(folder, "AutoModelForSequenceClassification" if headed else "AutoModel")
        tokenizer = _beside(folder, "AutoTokenizer")
        if not tokenizer("a")["input_ids"] or tokenizer("a")["input_ids"][0] != tokenizer.cls_token_id:
            raise UserError(
                f"{folder}: its tokenizer puts no class token before a text, whose state stands for all of it: take an "
                "encoder as BERT or RoBERTa"
            )
        return Found(Reader(network, tokenizer, headed=headed).eval().requires_grad_(False), ByText(), classes)
    if not headed:
        raise UserError(
            f"{folder}: {_kind(config)} hears and has no classes: save an AutoModelForAudioClassification, or take it "
            "as the teacher of a recogniser (data.task: ctc)"
        )
    model = _loaded(folder, "AutoModelForAudioClassification")
    return Found(model.eval().requires_grad_(False), ByWaves(_beside(folder, "AutoFeatureExtractor")), classes)


def _kind(config: Mapping[str, Any]) -> str:
    """How transformers calls the model."""
    return str((config.get("architectures") or ("",))[0])


def _has(folder: Path, names: Sequence[str]) -> bool:
    return any((folder / name).is_file() for name in names)


def _checked(folder: Path) -> Mapping[str, Any]:
    """Say what stands in the way before anything heavy is imported."""
    if not is_pretrained(folder):
        raise UserError(
            f"{folder}: neither a classifier that was saved here (card.json) nor a folder of transformers "
            "(config.json, model.safetensors, and a tokenizer or preprocessor_config.json): save the teacher there "
            "with save_pretrained(folder)"
        )
    config = config_of(folder)
    if "auto_map" in config:
        raise UserError(f"{folder}: it asks for code of its own (auto_map), which is not run: use a built-in model")
    if not _has(folder, WEIGHTS):
        raise UserError(f"{folder}: no {WEIGHTS[0]}: save the model with save_pretrained(folder)")
    if not _has(folder, (*TOKENIZER, *EXTRACTOR)):
        raise UserError(
            f"{folder}: neither a tokenizer nor preprocessor_config.json says what it is given: save its tokenizer, or "
            "its feature extractor, beside it (save_pretrained(folder))"
        )
    return config


def _loaded(folder: Path, how: str) -> nn.Module:
    model, found = read_model(folder, how)
    check_finite(model.named_parameters(), folder)
    unused = how == "AutoModel"  # its pooler, which many are saved without
    missing = [name for name in found["missing_keys"] if not (unused and "pooler" in name)]
    if lacking := sorted([*missing, *(str(one) for one in found["mismatched_keys"])]):
        raise UserError(f"{folder}: its weights lack {lacking[0]!r} ({len(lacking)} in all): it is no trained model")
    return model


def _beside(folder: Path, how: str) -> Any:
    import transformers  # which has read the model

    try:
        return getattr(transformers, how).from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError, TypeError) as error:
        raise UserError(f"{folder}: transformers cannot load its {how.removeprefix('Auto')} "
                        f"({' '.join(str(error).split())[:200]})") from error  # fmt: skip


__all__ = [
    "ByFeatures",
    "ByText",
    "ByWaves",
    "Found",
    "Reader",
    "Said",
    "Says",
    "classes_in",
    "load_utterances",
    "reads_text",
]
