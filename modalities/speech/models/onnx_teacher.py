"""A recogniser as an ONNX file, of whatever trained and exported it: a teacher by its answers.

``onnx.json`` beside the file says what the graph does not: which rate and front end it hears, and which column is which
symbol. Inputs and outputs are known by their shapes. Each utterance is heard alone, so that no padding matters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, ValidationError, model_validator
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from xmodal_kd.adapter.adapter import Batch
from xmodal_kd.adapter.saved_model import explain
from xmodal_kd.adapter.source import Strict
from xmodal_kd.models import onnx
from xmodal_kd.models.no_model import NoModel
from xmodal_kd.runtime.binary_packages import loading
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.saved_steps import file_digest
from xmodal_kd.runtime.whole_files import read_object

from ..data.features import Features, Frontend
from ..data.symbols import BLANKS, Vocabulary, symbol_names
from .front_ends import Heard, waves_of

ABOUT = "onnx.json"
#: Symbols that nobody says, beside the blank.
SPECIAL = frozenset({"<s>", "</s>", "<unk>", "[UNK]", "<sos>", "<eos>", "<sos/eos>"})
#: Seconds of silence by whose difference the frame rate is measured.
SHORT, LONG = 2, 6


class OnnxAbout(Strict):
    """What ``onnx.json`` says."""

    #: The file, in this folder.
    model: str = "model.onnx"
    #: A list of symbols in this folder: one a line with its column behind it or not, or JSON.
    symbols: str = "tokens.txt"
    #: The blank's symbol; None: the first that is called as blanks are.
    blank: str | None = None
    #: Hz of the waves that it, or its front end, hears.
    sample_rate: int = Field(default=16000, gt=0)
    #: ``wave`` in [-1, 1]; ``kaldi``: log-mel filter banks as Kaldi computes them, of 16-bit numbers if `scale` is
    #: 32768; ``log_mel``: those of this project, by `features`.
    input: Literal["wave", "kaldi", "log_mel"] = "wave"
    #: Of waves: mean 0 and variance 1 over an utterance, as Wav2Vec2's front end does.
    normalise: bool = False
    #: What samples are multiplied by, of ``kaldi``.
    scale: float = Field(default=1.0, gt=0)
    mels: int = Field(default=80, gt=0)
    features: Features | None = None
    #: Whether features go in with mels before time.
    mels_first: bool = False

    @model_validator(mode="after")
    def _check_features(self) -> OnnxAbout:
        if (self.input == "log_mel") != (self.features is not None):
            raise ValueError("features are given where input is log_mel, and only there")
        return self


def is_onnx(folder: Path) -> bool:
    return (folder / ABOUT).is_file()


def read_about(folder: Path) -> OnnxAbout:
    """Raises `UserError` that names the key of ``onnx.json`` which is wrong."""
    try:
        return OnnxAbout.model_validate(read_object(folder / ABOUT))
    except ValidationError as error:
        raise UserError(f"{folder / ABOUT}: {explain(error)}") from error


def onnx_vocabulary(folder: Path) -> Vocabulary:
    """The symbols of its columns. Raises `UserError` where the list is none, or does not say which is the blank."""
    about = read_about(folder)
    names = symbol_names(folder / about.symbols)
    wanted = BLANKS if about.blank is None else (about.blank,)
    blank = next((names.index(name) for name in wanted if name in names), None)
    if blank is None:
        raise UserError(f'{folder / about.symbols}: which symbol is the blank? say {{"blank": SYMBOL}} in {ABOUT}')
    return Vocabulary(tuple(names), blank, frozenset(i for i, n in enumerate(names) if n in SPECIAL and i != blank))


class OnnxAnswers:
    """Its front end and its answers, by ONNX Runtime on the CPU.

    Raises:
        UserError: the file is not there or no graph of one wave or features and perhaps its length, or answers in
            another number of columns than there are symbols.
    """

    def __init__(self, folder: Path, threads: int = 1) -> None:
        self.about, self.folder = read_about(folder), folder
        self.rate: int = self.about.sample_rate
        path = folder / self.about.model
        if not path.is_file():
            raise UserError(f"{path}: no such file: name it as model in {ABOUT}")
        self.session = onnx.session(path, threads=threads, extra="speech")
        self.vocabulary = onnx_vocabulary(folder)
        self.ours = Frontend(self.about.features) if self.about.features is not None else None
        rank = 2 if self.about.input == "wave" else 3
        inputs = {one.name: one for one in self.session.get_inputs()}
        floats = [name for name, one in inputs.items() if "float" in one.type]
        self.lengths = [name for name, one in inputs.items() if "int" in one.type]
        if len(floats) != 1 or len(inputs[floats[0]].shape) != rank or len(self.lengths) > 1:
            shapes = ", ".join(f"{name} {one.type} of {len(one.shape)} axes" for name, one in inputs.items())
            raise UserError(
                f"{path}: its inputs are {shapes}: one of {rank} axes ({self.about.input}), and perhaps its length, "
                f"are expected: {ABOUT} says what it hears"
            )
        self.name = floats[0]
        self.frame = self._measured()

    def placeholder(self) -> nn.Module:
        """What stands for the model: a cache knows by it which file this is."""
        return NoModel(bytes.fromhex(file_digest(self.folder / self.about.model)))

    def hear(self, model: nn.Module, batch: Batch, view: str, features: Sequence[str] = ()) -> Heard:
        """Logits of a batch's ``waves``."""
        if features:
            raise UserError(f"a teacher in an ONNX file has no module {features[0]!r}: only its answers teach")
        device = next(model.parameters()).device
        found = [self._answer(wave.cpu()) for wave in waves_of(batch, self.rate)]
        lengths = torch.tensor([len(one) for one in found], device=device)
        return Heard(pad_sequence(found, batch_first=True).to(device), lengths, {})

    def _answer(self, wave: Tensor) -> Tensor:
        """``(t, c)`` of one utterance."""
        heard = self._heard(wave)
        given: dict[str, Any] = {self.name: heard[None].numpy()}
        for name in self.lengths:
            kind = np.int32 if "int32" in self._types[name] else np.int64
            given[name] = np.array([heard.shape[-1] if self.about.mels_first else len(heard)], dtype=kind)
        outputs = self.session.run(None, given)
        logits = next((one for one in outputs if one.ndim == 3 and np.issubdtype(one.dtype, np.floating)), None)
        if logits is None or logits.shape[2] != len(self.vocabulary.names):
            shapes = ", ".join(str(one.shape) for one in outputs)
            raise UserError(
                f"{self.folder / self.about.model}: it answers {shapes}: (1, frames, {len(self.vocabulary.names)}) is "
                f"expected, a column a symbol of {self.about.symbols}"
            )
        return torch.from_numpy(np.ascontiguousarray(logits[0], dtype=np.float32))

    @property
    def _types(self) -> Mapping[str, str]:
        return {one.name: one.type for one in self.session.get_inputs()}

    def _heard(self, wave: Tensor) -> Tensor:
        """The input of one utterance, without its first axis."""
        if self.about.input == "wave":
            spread = (wave.var(correction=0) + 1e-7).sqrt()
            return (wave - wave.mean()) / spread if self.about.normalise else wave
        if self.ours is not None:
            rows = self.ours(wave)
        else:
            with loading("torchaudio"):
                from torchaudio.compliance.kaldi import fbank
            rows = fbank(
                self.about.scale * wave[None], num_mel_bins=self.about.mels, sample_frequency=float(self.rate),
                dither=0.0, snip_edges=False,
            )  # fmt: skip
        return rows.T.contiguous() if self.about.mels_first else rows

    def _measured(self) -> Fraction:
        """Seconds of a frame, by its answers to silence of two lengths."""
        frames = [len(self._answer(torch.zeros(seconds * self.rate))) for seconds in (SHORT, LONG)]
        if frames[1] <= frames[0]:
            raise UserError(
                f"{self.folder / self.about.model}: it answers {frames[1]} frames of {LONG} s and {frames[0]} of "
                f"{SHORT} s: export it with a free axis of time"
            )
        return Fraction(LONG - SHORT, frames[1] - frames[0])


__all__ = ["ABOUT", "OnnxAnswers", "is_onnx", "onnx_vocabulary"]
