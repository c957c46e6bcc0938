"""What all acoustic models share: masks, lengths after subsampling, and the 4x subsampling itself.

Padding changes nothing: whatever looks along time (a convolution, attention) gets zeros, or a mask, where an utterance
has ended, so an utterance alone and inside a padded batch has the same logits, even when the padding holds NaN. Norms
run over channels only, for the same reason.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from xmodal_kd.adapter.adapter import Strict
from xmodal_kd.runtime.errors import UserError

from .streaming import StepModel

STRIDE = 4


class AcousticModel(nn.Module):
    """A network from log-mel frames to CTC logits at a quarter of their rate."""

    Config: ClassVar[type[Strict]]
    stride: ClassVar[int] = STRIDE
    receptive_field: tuple[int, int] | None = None
    #: Its name and parameters, as a recipe and a saved folder give them; set by whoever builds it from them.
    card: dict[str, Any]

    @abstractmethod
    def __init__(self, config: Any, *, mels: int, classes: int) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]: ...

    def steps(self) -> StepModel | None:
        """The same network with a state, for chunks of an utterance; None of one that has none."""
        return None

    def axes(self, path: str) -> str:
        """Layout of the output of the submodule at `path`. Raises `UserError` for what has no frames as rows."""
        found = dict(self.named_modules()).get(path)
        if found is None:
            raise UserError(f"the model has no module {path!r}: its blocks are blocks.0, blocks.1, ...")
        if isinstance(found, nn.Conv1d):
            raise UserError(f"module {path!r} is a convolution with channels before time: capture the block around it")
        return "t b c" if isinstance(found, nn.MultiheadAttention) else "b t c"


def frame_mask(lengths: Int[Tensor, " b"], steps: int) -> Bool[Tensor, "b t 1"]:
    """Which of `steps` frames are valid, ready to broadcast over channels."""
    return (torch.arange(steps, device=lengths.device) < lengths[:, None])[..., None]


def masked(x: Float[Tensor, "b t c"], mask: Bool[Tensor, "b t 1"]) -> Float[Tensor, "b t c"]:
    """Zeros outside the mask. A product would keep NaN."""
    return x.masked_fill(~mask, 0.0)


def halved(lengths: Int[Tensor, " b"]) -> Int[Tensor, " b"]:
    """``ceil(lengths / 2)``: what a convolution of stride 2 leaves."""
    return (lengths + 1) // 2


class Subsample(nn.Module):
    """Two convolutions of kernel 3 and stride 2: ``(b, T, mels)`` to ``(b, ceil(ceil(T/2)/2), width)``.

    Causal, output j sees the inputs 4j-6 .. 4j; otherwise 4j-3 .. 4j+3.
    """

    def __init__(self, mels: int, width: int, *, causal: bool) -> None:
        super().__init__()
        self.pad = (2, 0) if causal else (1, 1)
        self.convolutions = nn.ModuleList([nn.Conv1d(mels, width, 3, stride=2), nn.Conv1d(width, width, 3, stride=2)])

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        for convolution in self.convolutions:
            x = masked(x, frame_mask(lengths, x.shape[1]))
            x = convolution(F.pad(x.transpose(1, 2), self.pad)).transpose(1, 2)
            x, lengths = F.gelu(x), halved(lengths)
        return masked(x, frame_mask(lengths, x.shape[1])), lengths


class Planes(nn.Module):
    """As `Subsample`, by convolutions over time and mels: a sound a few mels higher is the same sound to them.

    Two of kernel 3 by 3 and stride 2 by 2 with `channels`, then a linear map of each frame's ``channels x mels / 4``
    to the width (VGG front ends of speech recognition: Hori et al., 2017).
    """

    def __init__(self, mels: int, width: int, channels: int, *, causal: bool) -> None:
        super().__init__()
        self.mels, self.pad = mels, (1, 1, 2, 0) if causal else (1, 1, 1, 1)
        self.convolutions = nn.ModuleList([nn.Conv2d(1, channels, 3, 2), nn.Conv2d(channels, channels, 3, 2)])
        self.out = nn.Linear(channels * ((mels + 3) // 4), width)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        planes = x.unsqueeze(1)  # b c t mels
        for convolution in self.convolutions:
            planes = planes.masked_fill(~frame_mask(lengths, planes.shape[2])[:, None], 0.0)
            planes = F.gelu(convolution(F.pad(planes, self.pad)))
            lengths = halved(lengths)
        x = self.out(planes.transpose(1, 2).flatten(2))
        return masked(x, frame_mask(lengths, x.shape[1])), lengths


def front_end(mels: int, width: int, planes: int, *, causal: bool) -> Planes | Subsample:
    """What brings features to a quarter of their rate: over time and mels with so many `planes`, over time with 0."""
    return Planes(mels, width, planes, causal=causal) if planes else Subsample(mels, width, causal=causal)


class Depthwise(nn.Conv1d):
    """A depthwise convolution along time, fast where rows lie ``b t c`` in memory, as they do between linear layers.

    Trained on a CPU, ``nn.Conv1d`` copies them to ``b c t`` and runs a kernel that takes two to three times as long (16
    utterances of 60 frames, 144 channels, 9 taps) as the one for channels last, which torch has for images only. In
    eval mode it is ``nn.Conv1d``, for export.
    """

    def __init__(self, width: int, kernel: int, *, dilation: int = 1, padding: int = 0) -> None:
        super().__init__(width, width, kernel, dilation=dilation, padding=padding, groups=width)

    def forward(self, x: Float[Tensor, "b c t"]) -> Float[Tensor, "b c s"]:
        if not self.training:
            return super().forward(x)
        as_image, taps = x.unsqueeze(2), self.weight.unsqueeze(2)  # b c 1 t, c 1 1 k
        padding, dilation = (0, int(self.padding[0])), (1, self.dilation[0])
        y = F.conv2d(as_image, taps, self.bias, padding=padding, dilation=dilation, groups=self.groups)
        return y.squeeze(2)
