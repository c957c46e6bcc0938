"""What each role hears of an utterance: the features that all share, features of its own, or the wave.

A front end belongs to a role, not to a model: it takes the model with each call, and says how long a frame of its
answer lasts, so that answers of any rate can be brought to one grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple, Protocol

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from xmodal_kd.adapter.adapter import Batch
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.signals.capture import capture, only_call

from ..data.audio import resample
from ..data.features import Features, Frontend


class Heard(NamedTuple):
    """What a role answers: ``(b, t, c)`` logits of its own symbols, ``(b,)`` valid frames, ``(b, s, c)`` features.

    An encoder without a head has no logits, and frames all the same.
    """

    logits: Tensor | None
    lengths: Tensor
    features: Mapping[str, Tensor]


class FrontEnd(Protocol):
    """How a role hears."""

    @property
    def rate(self) -> int | None:
        """Hz of the waves that batches must carry for it; None where it hears the shared features."""

    @property
    def frame(self) -> Fraction:
        """Seconds between two frames of the answer."""
        ...

    def hear(self, model: nn.Module, batch: Batch, view: str, features: Sequence[str] = ()) -> Heard:
        """The model's answer to a batch.

        Args:
            view: ``clean`` or ``features``, of those whom the shared features serve.
            features: module paths to capture.
        """
        ...


class SharedFeatures:
    """The features of the recipe, which batches bring."""

    rate: int | None = None

    def __init__(self, features: Features, stride: int) -> None:
        self.frame = Fraction(stride * features.hop, features.sample_rate)

    def hear(self, model: nn.Module, batch: Batch, view: str, features: Sequence[str] = ()) -> Heard:
        return _run(model, *self.given(model, batch, view), features)

    def given(self, model: nn.Module, batch: Batch, view: str) -> tuple[Tensor, Tensor]:
        """``(b, t, mels)`` features and their lengths ``(b,)``, where the model is."""
        device = next(model.parameters()).device
        return batch[view].to(device), batch["lengths"].to(device)


class OwnFeatures:
    """Features of a saved recogniser's own card, from the wave."""

    def __init__(self, features: Features, stride: int) -> None:
        self.rate: int = features.sample_rate
        self.frame = Fraction(stride * features.hop, features.sample_rate)
        self.frontend = Frontend(features)

    def hear(self, model: nn.Module, batch: Batch, view: str, features: Sequence[str] = ()) -> Heard:
        return _run(model, *self.given(model, batch, view), features)

    def given(self, model: nn.Module, batch: Batch, view: str) -> tuple[Tensor, Tensor]:
        """As `SharedFeatures.given`."""
        device = next(model.parameters()).device
        heard = [self.frontend(wave.cpu()) for wave in waves_of(batch, self.rate)]
        lengths = torch.tensor([len(x) for x in heard], device=device)
        return pad_sequence(heard, batch_first=True).to(device), lengths


def waves_of(batch: Batch, rate: int) -> list[Tensor]:
    """The wave ``(samples,)`` of each utterance of a batch, at `rate` Hz."""
    if "waves" not in batch:
        raise UserError("a teacher that hears waves was met by batches without them: this scheme gives it other data")
    waves, held = batch["waves"], int(batch["wave_rate"])
    found = [wave[:count] for wave, count in zip(waves, batch["samples"].tolist(), strict=True)]
    if held == rate:
        return found
    return [torch.from_numpy(resample(wave.cpu().numpy(), held, rate)).to(waves.device) for wave in found]


def _run(model: nn.Module, x: Tensor, lengths: Tensor, features: Sequence[str]) -> Heard:
    with capture(model, features) as taken:
        logits, frames = model(x, lengths)
    return Heard(logits, frames, {name: _rows(model, name, calls) for name, calls in taken.items()})


def _rows(model: nn.Module, name: str, calls: Sequence[Tensor]) -> Tensor:
    axes: Any = model.axes
    return rearrange(only_call(name, calls), f"{axes(name.partition(':')[0])} -> b t c")
