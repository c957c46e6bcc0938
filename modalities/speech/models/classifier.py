"""Classifiers of utterances: an encoder's frames, what is said of all of them in one vector, and its class."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from xmodal_kd.adapter.adapter import Strict
from xmodal_kd.runtime.errors import UserError

from .conformer import ConformerConfig, ConformerCTC
from .conv import ConvConfig, ConvCTC
from .frames import AcousticModel, frame_mask, masked

#: Below this path modules are of the encoder, and their rows are frames.
ENCODER = "encoder"


class Pools(Strict):
    """What a classifier has beside its encoder."""

    embedding: int = Field(64, ge=1)
    """Width of the vector that stands for an utterance."""


class ConformerClassifierConfig(ConformerConfig, Pools):
    """A conformer as encoder. The defaults hold 0.7 million parameters."""


class ConvClassifierConfig(ConvConfig, Pools):
    """A causal convolutional encoder. The defaults hold 27 thousand parameters."""


class AttentivePool(nn.Module):
    """A weighted mean over valid frames, whose weights are the softmax of a linear score; it begins as the mean."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.score = nn.Linear(width, 1)
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)

    def forward(self, frames: Float[Tensor, "b t c"], mask: Bool[Tensor, "b t 1"]) -> Float[Tensor, "b c"]:
        frames = masked(frames, mask)
        weights = self.score(frames).masked_fill(~mask, -torch.inf).softmax(dim=1)
        return (weights * frames).sum(dim=1)  # type: ignore[no-any-return]


class Classifier(AcousticModel):
    """Called as ``model(features, lengths)`` it gives logits ``(b, classes)``.

    The module `utterance` puts out each utterance's vector ``(b, embedding)``, which terms compare.
    """

    task: ClassVar[str] = "intents"
    Encoder: ClassVar[type[AcousticModel]]

    def __init__(self, config: Any, *, mels: int, classes: int) -> None:
        super().__init__(config, mels=mels, classes=classes)
        self.encoder = self.Encoder(config, mels=mels, classes=config.embedding)
        self.utterance = AttentivePool(config.embedding)
        self.head = nn.Linear(config.embedding, classes)
        self.stride = self.encoder.stride  # type: ignore[misc]

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:  # type: ignore[override]
        frames, lengths = self.encoder(features, lengths)
        mask = frame_mask(torch.clamp(lengths, min=1), frames.shape[1])  # a softmax over nothing is NaN
        return self.head(self.utterance(frames, mask))  # type: ignore[no-any-return]

    def axes(self, path: str) -> str:
        """Layout of a captured submodule's output: ``b c`` of an utterance, ``b t c`` of its frames."""
        part, _, rest = path.partition(".")
        if part == ENCODER:
            return self.encoder.axes(rest) if rest else "b t c"
        if path in ("utterance", "head"):
            return "b c"
        raise UserError(f"module {path!r}: capture utterance, head, or a block of the encoder, as encoder.blocks.1")


class ConformerClassifier(Classifier):
    """A classifier of utterances by a conformer."""

    Config: ClassVar[type[Strict]] = ConformerClassifierConfig
    Encoder = ConformerCTC


class ConvClassifier(Classifier):
    """A compact classifier of utterances."""

    Config: ClassVar[type[Strict]] = ConvClassifierConfig
    Encoder = ConvCTC


__all__ = ["Classifier", "ConformerClassifier", "ConvClassifier"]
