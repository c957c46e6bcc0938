"""A teacher as ``transformers`` saves it: Wav2Vec2, HuBERT, WavLM and their kin with their processor.

With a CTC head its answers teach, and its layers; an encoder without one teaches by its layers alone.

Weights are read from safetensors only, nothing is fetched and no code of the folder is run. The model hears the wave
through the front end that its processor describes. An utterance is never padded unless the model masks padding
exactly: models whose first layer normalises over time (those saved with ``return_attention_mask: false``) would hear
the silence that other utterances of the batch bring.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from xmodal_kd.adapter.adapter import Batch
from xmodal_kd.adapter.saved_model import CARD, model_inside
from xmodal_kd.runtime.bounded_files import is_pointer
from xmodal_kd.runtime.checkpoint import POINTER, WRAPPERS, check_finite, read_json
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.signals.capture import capture, only_call

from ..data.symbols import Vocabulary, other_blank, read_vocabulary, unwritten
from .front_ends import Heard, waves_of

CONFIG, ADAPTER = "config.json", "adapter_config.json"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
#: What a front end of plain waves adds to a variance before it divides by its root, as transformers does.
EPSILON = 1e-7
#: Kinds of encoders of waves, as configurations name them.
ENCODERS = frozenset({
    "wav2vec2", "hubert", "wavlm", "wav2vec2-bert", "wav2vec2-conformer", "unispeech", "unispeech-sat",
    "data2vec-audio", "sew", "sew-d",
})  # fmt: skip
#: How transformers calls models with a head for CTC, whatever the head itself is called.
HEADED = "ForCTC"
#: What a model has for masking its input while it is trained; published CTC models lack it.
UNUSED = "masked_spec_embed"
#: Seconds of silence by whose difference the frame rate of a model is measured that does not say it.
SHORT, LONG = 2, 6


class Pretrained(NamedTuple):
    """A loaded teacher: the model, how it hears, and what it writes; None of an encoder without a head."""

    model: nn.Module
    front_end: WaveFrontEnd
    vocabulary: Vocabulary | None


def is_pretrained(folder: Path) -> bool:
    """Whether a folder is one of transformers."""
    return (folder / CONFIG).is_file()


def is_encoder(config: Mapping[str, Any]) -> bool:
    """Whether a configuration is one of an encoder that was saved without a CTC head."""
    kind = str((config.get("architectures") or ("",))[0])
    return config.get("model_type") in ENCODERS and kind.endswith(("Model", "ForPreTraining"))


def vocabulary_of(folder: Path) -> Vocabulary | None:
    """What the model in a folder writes, without loading it; None of an encoder without a head."""
    config = config_of(folder)
    if is_encoder(config):
        return None
    return read_vocabulary(folder, int(config.get("pad_token_id") or 0), int(config.get("vocab_size", 0)))


class Described(NamedTuple):
    """What the files of a folder say of its model, without the weights.

    Attributes:
        rate: Hz of the waves that it hears.
        frame: seconds of a frame of its answer; None where only the model itself tells.
        layers: of an encoder without a head, which then has no vocabulary: how many it has.
    """

    rate: int
    frame: Fraction | None
    vocabulary: Vocabulary | None
    layers: int = 0


def described(folder: Path) -> Described:
    """Raises `UserError` as `load_pretrained` does, for all but the weights' content."""
    config = config_of(folder)
    _check_files(folder, config)
    rate, strides = int(extractor_of(folder)["sampling_rate"]), config.get("conv_stride")
    frame = Fraction(prod(strides), rate) if strides and not config.get("add_adapter", False) else None
    layers = int(config.get("num_hidden_layers", 0)) if is_encoder(config) else 0
    return Described(rate, frame, vocabulary_of(folder), layers)


def check_folder(folder: Path) -> None:
    """Raises `UserError` for what is no folder of any kind that teaches."""
    if not folder.is_dir():
        what = "a file" if folder.is_file() else "no such folder"
        raise UserError(
            f"{folder}: {what}: teacher.path is a folder on this machine, nothing is fetched "
            "(hf download NAME --local-dir FOLDER brings a published model)"
        )
    if (inner := model_inside(folder)) is not None and not is_pretrained(folder):
        raise UserError(f"{folder}: it holds no model itself: name the folder in it: {inner}")
    if (folder / ADAPTER).is_file() and not is_pretrained(folder):
        raise UserError(
            f"{folder}: an adapter ({ADAPTER}) without its model: load both, call merge_and_unload() and "
            "save_pretrained(FOLDER)"
        )
    if not is_pretrained(folder):
        held = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "nothing"
        raise UserError(
            f"{folder}: neither a saved recogniser ({CARD}) nor a CTC model as transformers saves it (config.json, "
            "model.safetensors, processor), nor an ONNX file with onnx.json, nor a bundle.json of torchaudio's; it "
            f"holds {held}: save the teacher there with save_pretrained(folder)"
        )


def traps(folder: Path) -> Iterator[tuple[str, str]]:
    """What looks wrong in a folder of transformers, and what to do."""
    if is_encoder(config_of(folder)):
        return
    beyond = unwritten(folder, int(config_of(folder).get("vocab_size", 0)))
    if beyond:
        yield (
            f"its vocabulary has {', '.join(map(repr, beyond[:5]))} behind the last class of its head, which it "
            "cannot write",
            "give the vocab.json that the model was trained with",
        )
    blank = int(config_of(folder).get("pad_token_id") or 0)
    if (other := other_blank(folder, blank)) is not None:
        yield (
            f"its model takes class {blank} for the blank (pad_token_id), its tokenizer class {other}",
            "the model's is believed; if its transcripts are nonsense, correct pad_token_id in config.json",
        )


def load_pretrained(folder: Path) -> Pretrained:
    """The CTC model or encoder of a folder, frozen, in float32 on the CPU.

    Raises:
        UserError: the folder holds neither, no safetensors, asks for code of its own, or lacks its processor.
    """
    config = config_of(folder)
    _check_files(folder, config)
    vocabulary = vocabulary_of(folder)
    model = _load(folder, encoder=vocabulary is None).eval().requires_grad_(False)
    extractor = extractor_of(folder)
    return Pretrained(model, WaveFrontEnd(model, extractor, folder), vocabulary)


def config_of(folder: Path) -> dict[str, Any]:
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict):
        raise UserError(f"{folder / CONFIG}: a JSON object is expected")
    return config


def _check_files(folder: Path, config: Mapping[str, Any]) -> None:
    """Say what stands in the way before anything heavy is imported."""
    kinds = [str(kind) for kind in config.get("architectures") or ()]
    kind = kinds[0] if kinds else f"a model of type {config.get('model_type')!r}"
    if "auto_map" in config:
        raise UserError(f"{folder}: {kind} asks for code of its own (auto_map), which is not run: use a built-in model")
    if "ForConditionalGeneration" in kind or "Seq2Seq" in kind:
        raise UserError(
            f"{folder}: {kind} writes by a decoder, not by CTC frames: a Whisper teaches a smaller one with data.task "
            f"seq2seq (recipe speech/whisper); and xmodal-kd pseudolabel {folder} RECORDINGS --out FOLDER writes its "
            "texts, to train a CTC student on with data.path=FOLDER"
        )
    if not kind.endswith(HEADED) and kinds and not is_encoder(config):
        raise UserError(
            f"{folder}: {kind} is neither a CTC model (...ForCTC) nor an encoder of waves (Wav2Vec2, HuBERT, WavLM and "
            "their kin, as ...Model): use a folder that holds one"
        )
    for name in WEIGHTS:
        if (folder / name).is_file():
            with (folder / name).open("rb") as file:
                if is_pointer(file.read(64)):
                    raise UserError(f"{folder / name}: {POINTER}")
    if not any((folder / name).is_file() for name in WEIGHTS):
        pickled = next((p.name for p in sorted(folder.glob("*.bin"))), None)
        raise UserError(
            f"{folder}: {pickled} is pickled, which is not read: load it once and save_pretrained(FOLDER)"
            if pickled
            else f"{folder}: no {WEIGHTS[0]}: "
            + next(
                (f"rename {p.name} to it" for p in sorted(folder.glob("model.*.safetensors"))),
                "save the model with save_pretrained(folder)",
            )
        )


def read_model(folder: Path, how: str) -> tuple[nn.Module, dict[str, Any]]:
    """What a class of `transformers` (``AutoModel``, ...) reads of a folder, and what it says of the weights.

    Raises:
        UserError: it is not installed, or cannot.
    """
    try:
        import transformers
        from transformers.utils import logging
    except ImportError as error:
        raise UserError(f"{folder}: a model of transformers: pip install transformers") from error
    bar, loud = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # it reports what is missing, which the caller judges
    try:
        model, found = getattr(transformers, how).from_pretrained(
            folder, local_files_only=True, use_safetensors=True, trust_remote_code=False, output_loading_info=True,
            dtype=torch.float32,
        )  # fmt: skip
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise UserError(f"{folder}: transformers cannot load it ({' '.join(str(error).split())[:200]})") from error
    finally:
        logging.set_verbosity(loud)
        if bar:
            logging.enable_progress_bar()
    return model, found


def _load(folder: Path, *, encoder: bool) -> nn.Module:
    model, found = read_model(folder, "AutoModel" if encoder else "AutoModelForCTC")
    if wrapped := next((one for one in WRAPPERS if any(k.startswith(one) for k in found["unexpected_keys"])), None):
        raise UserError(
            f"{folder}: the names of its weights begin with {wrapped!r}: a wrapped model was saved: save the one "
            f"inside (model.{wrapped}save_pretrained(FOLDER))"
        )
    check_finite(model.named_parameters(), folder)
    missing = [name for name in found["missing_keys"] if not name.endswith(UNUSED)]
    if lacking := sorted([*missing, *(str(one) for one in found["mismatched_keys"])]):
        what = "encoder" if encoder else "CTC model"
        raise UserError(f"{folder}: its weights lack {lacking[0]!r} ({len(lacking)} in all): it is no trained {what}")
    return model


def extractor_of(folder: Path) -> dict[str, Any]:
    """What the processor says of the front end."""
    plain, whole = folder / "preprocessor_config.json", folder / "processor_config.json"
    found = read_json(plain) if plain.is_file() else {}
    if whole.is_file() and not found:
        found = read_json(whole).get("feature_extractor", {})
    if "sampling_rate" not in found:
        raise UserError(
            f"{folder}: no preprocessor_config.json says what it hears: save its processor beside it "
            "(processor.save_pretrained(folder))"
        )
    return dict(found)


class WaveFrontEnd:
    """Waves of the model's own rate, normalised as its processor says.

    Args:
        extractor: the processor's ``feature_extractor`` section.
    """

    def __init__(self, model: nn.Module, extractor: Mapping[str, Any], folder: Path) -> None:
        self.config: Any = model.config
        self.extractor = dict(extractor)
        self.rate: int = int(extractor["sampling_rate"])
        kind = extractor.get("feature_extractor_type", "Wav2Vec2FeatureExtractor")
        self.normalise = bool(extractor.get("do_normalize", True))
        self.other: Any = None if kind == "Wav2Vec2FeatureExtractor" else _other(kind, extractor, folder)
        masks = bool(extractor.get("return_attention_mask", False))
        self.masked = self.other is None and masks and getattr(self.config, "feat_extract_norm", "") == "layer"
        pairs = zip(getattr(self.config, "conv_kernel", ()), getattr(self.config, "conv_stride", ()), strict=True)
        self.least = shortest(list(pairs)) if self.other is None else self.rate // 10
        #: Whether it gives logits, and no hidden states alone.
        self.answers = type(model).__name__.endswith(HEADED)
        self.frame = self._measured(model)

    def hear(self, model: nn.Module, batch: Batch, view: str, features: Sequence[str] = ()) -> Heard:
        """Logits, if it has any, and captured features of a batch's ``waves``; `view` says nothing here."""
        device = next(model.parameters()).device
        waves = [self._long_enough(wave.to(device)) for wave in waves_of(batch, self.rate)]
        answers: list[tuple[Tensor, dict[str, Tensor]] | None] = [None] * len(waves)
        for index in self._together([len(wave) for wave in waves]):
            for i, answer in zip(index, self._answers(model, [waves[i] for i in index], features), strict=True):
                answers[i] = answer
        found = [answer for answer in answers if answer is not None]
        lengths = torch.tensor([len(said) for said, _ in found], device=device)
        names = found[0][1]
        taken = {name: pad_sequence([rows[name] for _, rows in found], batch_first=True) for name in names}
        logits = pad_sequence([said for said, _ in found], batch_first=True) if self.answers else None
        return Heard(logits, lengths, taken)

    def _long_enough(self, wave: Tensor) -> Tensor:
        """At least what one frame needs: silence behind a click."""
        return torch.cat([wave, wave.new_zeros(max(0, self.least - len(wave)))])

    def _together(self, samples: Sequence[int]) -> Iterator[list[int]]:
        """Which utterances are heard in one pass: all where padding is masked, else those of equal length."""
        if self.masked:
            yield list(range(len(samples)))
            return
        for count in sorted(set(samples)):
            yield [i for i, n in enumerate(samples) if n == count]

    def _answers(
        self, model: nn.Module, waves: Sequence[Tensor], features: Sequence[str]
    ) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """Of each utterance ``(t, c)`` logits or last hidden states and ``(t, c)`` captured rows, padding cut off."""
        with capture(model, features) as taken:
            said = self._said(model, waves)
        rows = {name: _frames_of(name, only_call(name, calls), said) for name, calls in taken.items()}
        for i, wave in enumerate(waves):
            frames = self._frames(model, len(wave)) if self.masked else said.shape[1]
            yield said[i, :frames], {name: one[i, :frames] for name, one in rows.items()}

    def _said(self, model: nn.Module, waves: Sequence[Tensor]) -> Tensor:
        """``(b, t, c)`` logits, or the last hidden states of an encoder."""
        out = model(**self._inputs(waves))
        return out.logits if self.answers else out.last_hidden_state  # type: ignore[no-any-return]

    def _inputs(self, waves: Sequence[Tensor]) -> dict[str, Tensor]:
        if self.other is not None:
            arrays = [wave.cpu().numpy() for wave in waves]
            made = self.other(arrays, sampling_rate=self.rate, padding=True, return_tensors="pt")
            return {name: value.to(waves[0].device) for name, value in made.items()}
        heard = [_standardised(wave) if self.normalise else wave for wave in waves]
        inputs = {"input_values": pad_sequence(heard, batch_first=True)}
        if self.masked:
            counts = torch.tensor([len(wave) for wave in waves], device=waves[0].device)
            steps = torch.arange(inputs["input_values"].shape[1], device=counts.device)
            inputs["attention_mask"] = (steps < counts[:, None]).long()
        return inputs

    def _frames(self, model: nn.Module, samples: int) -> int:
        """Frames of so many samples, by the model's own count."""
        count: Any = model._get_feat_extract_output_lengths
        return int(count(torch.tensor(samples)))

    def _measured(self, model: nn.Module) -> Fraction:
        """Seconds of a frame: by the strides of its convolutions, or by its answers to silence of two lengths."""
        strides = getattr(self.config, "conv_stride", None)
        if self.other is None and strides and not getattr(self.config, "add_adapter", False):
            return Fraction(int(self.config.inputs_to_logits_ratio), self.rate)
        with torch.no_grad():
            frames = [self._said(model, [torch.zeros(seconds * self.rate)]).shape[1] for seconds in (SHORT, LONG)]
        return Fraction(LONG - SHORT, frames[1] - frames[0])


def _standardised(wave: Tensor) -> Tensor:
    """Mean 0 and variance 1 over an utterance."""
    return (wave - wave.mean()) / (wave.var(correction=0) + EPSILON).sqrt()


def shortest(convolutions: Sequence[tuple[int, int]]) -> int:
    """Samples that give one frame, by kernel and stride of each layer."""
    samples = 1
    for kernel, stride in reversed(convolutions):
        samples = (samples - 1) * stride + kernel
    return int(samples)


def _frames_of(name: str, rows: Tensor, said: Tensor) -> Tensor:
    """``(b, t, c)`` of a captured module. Raises `UserError` for what has not the answer's frames."""
    if rows.ndim != 3 or rows.shape[:2] != said.shape[:2]:
        raise UserError(
            f"the teacher's module {name!r} gives {tuple(rows.shape)}, not a row a frame of its answer "
            f"({said.shape[1]}): capture a layer of its encoder"
        )
    return rows


def _other(kind: str, extractor: Mapping[str, Any], folder: Path) -> Any:
    """A front end that transformers computes, as the filter banks of Wav2Vec2-BERT."""
    import transformers

    cls = getattr(transformers, str(kind), None)
    if cls is None or not str(kind).endswith("FeatureExtractor"):
        raise UserError(f"{folder}: its front end {kind!r} is none of transformers': use a CTC model that has one")
    return cls(**{key: value for key, value in extractor.items() if key != "feature_extractor_type"})
