"""A recogniser as an ONNX file, of whatever trained and exported it: a teacher by its answers.

``onnx.json`` beside the file, or the recipe, says what the graph does not: which rate and front end it hears, and which
column is which symbol. Inputs and outputs are known by their shapes. Each utterance is heard alone, so that no padding
matters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from xmodal_kd.adapter.adapter import Batch
from xmodal_kd.adapter.saved_model import folder_of
from xmodal_kd.models.no_model import NoModel
from xmodal_kd.models.onnx_teacher import ABOUT, Graph, OnnxAbout, described, shapes_of
from xmodal_kd.runtime.binary_packages import loading
from xmodal_kd.runtime.errors import UserError

from ..data.features import Features, Frontend
from ..data.symbols import BLANKS, Vocabulary, symbol_names
from .front_ends import Heard, waves_of

#: Symbols that nobody says, beside the blank.
SPECIAL = frozenset({"<s>", "</s>", "<unk>", "[UNK]", "<sos>", "<eos>", "<sos/eos>"})
#: Seconds of silence by whose difference the frame rate is measured.
SHORT, LONG = 2, 6


class Recogniser(OnnxAbout):
    """What ``onnx.json`` says of a recogniser."""

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
    def _check_features(self) -> Recogniser:
        if (self.input == "log_mel") != (self.features is not None):
            raise ValueError("features are given where input is log_mel, and only there")
        return self


def onnx_vocabulary(path: Path, said: Mapping[str, Any] = MappingProxyType({})) -> Vocabulary:
    """The symbols of its columns. Raises `UserError` where the list is none, or does not say which is the blank."""
    return _vocabulary(folder_of(path), described(Recogniser, path, said)[1])


def _vocabulary(folder: Path, about: Recogniser) -> Vocabulary:
    names = symbol_names(folder / about.symbols)
    wanted = BLANKS if about.blank is None else (about.blank,)
    blank = next((names.index(name) for name in wanted if name in names), None)
    if blank is None:
        raise UserError(f'{folder / about.symbols}: which symbol is the blank? say {{"blank": SYMBOL}} in {ABOUT}')
    return Vocabulary(tuple(names), blank, frozenset(i for i, n in enumerate(names) if n in SPECIAL and i != blank))


class OnnxAnswers:
    """Its front end and its answers, by ONNX Runtime on the CPU.

    Args:
        said: by the recipe, in the place of ``onnx.json``.

    Raises:
        UserError: the file is not there or no graph of one wave or features and perhaps its length, or answers in
            another number of columns than there are symbols.
    """

    def __init__(self, path: Path, said: Mapping[str, Any] = MappingProxyType({})) -> None:
        file, self.about = described(Recogniser, path, said)
        self.rate: int = self.about.sample_rate
        self.graph = Graph(file, "speech")
        self.vocabulary = _vocabulary(folder_of(path), self.about)
        self.ours = Frontend(self.about.features) if self.about.features is not None else None
        rank = 2 if self.about.input == "wave" else 3
        floats = list(self.graph.floats)
        if len(floats) != 1 or len(self.graph.floats[floats[0]]) != rank or len(self.graph.whole) > 1:
            raise UserError(
                f"{file}: its inputs are {self.graph.inputs}: one of {rank} axes ({self.about.input}), and perhaps its "
                f"length, are expected: {ABOUT} says what it hears"
            )
        self.name = floats[0]
        self.frame = self._measured()

    def placeholder(self) -> nn.Module:
        """What stands for the model: a cache knows by it which file this is, how it is heard and what it writes."""
        written = [str(name) for name in self.vocabulary.names]
        return NoModel(self.graph.digest(self.about, written), self.graph.parameters())

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
        for name in self.graph.whole:
            given[name] = np.array([heard.shape[-1] if self.about.mels_first else len(heard)])
        outputs = self.graph.run(given)
        logits = next((one for one in outputs if one.ndim == 3), None)
        if logits is None or logits.shape[2] != len(self.vocabulary.names):
            raise UserError(
                f"{self.graph.path}: it answers {shapes_of(outputs)}: (1, frames, {len(self.vocabulary.names)}) is "
                f"expected, a column a symbol of {self.about.symbols}"
            )
        return torch.from_numpy(np.ascontiguousarray(logits[0]))

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
                f"{self.graph.path}: it answers {frames[1]} frames of {LONG} s and {frames[0]} of "
                f"{SHORT} s: export it with a free axis of time"
            )
        return Fraction(LONG - SHORT, frames[1] - frames[0])


__all__ = ["OnnxAnswers", "onnx_vocabulary"]
