"""The teacher: torchaudio's conformer layers, made indifferent to padding."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from xmodal_kd.adapter.adapter import Strict
from xmodal_kd.models.attention import attention
from xmodal_kd.runtime.binary_packages import loading

from .frames import AcousticModel, Depthwise, frame_mask, front_end, masked

with loading("torchaudio"):
    from torchaudio.models.conformer import ConformerLayer


class ConformerConfig(Strict):
    """The defaults hold 0.7 million parameters."""

    width: int = Field(96, ge=1)
    layers: int = Field(5, ge=1)
    heads: int = Field(4, ge=1)
    feed_forward: int = Field(192, ge=1)
    """Hidden width of the two feed-forward modules of a layer."""
    kernel: int = Field(15, ge=1)
    """Taps of the depthwise convolution, odd, at 40 ms a frame."""
    planes: int = Field(0, ge=0)
    """Channels of a front end that convolves over mels as well as over time; 0: over time alone."""
    dropout: float = Field(0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _fits(self) -> ConformerConfig:
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, got {self.kernel}")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} does not divide into {self.heads} heads")
        return self


class Convolution(nn.Module):
    """The conformer's convolution module with a mask before, and a LayerNorm over channels after, its depthwise part.

    torchaudio's own norms (BatchNorm, GroupNorm) take statistics over time, padding included.
    """

    def __init__(self, width: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.norm_in = nn.LayerNorm(width)
        self.gate = nn.Linear(width, 2 * width)
        self.depthwise = Depthwise(width, kernel, padding=kernel // 2)
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "b t c"], mask: Bool[Tensor, "b t 1"]) -> Float[Tensor, "b t c"]:
        y = masked(F.glu(self.gate(self.norm_in(x)), dim=-1), mask)
        y = self.depthwise(y.transpose(1, 2)).transpose(1, 2)
        return self.dropout(self.out(F.silu(self.norm(y))))  # type: ignore[no-any-return]


class SelfAttention(nn.Module):
    """torch's multi-head attention, batch first, computed by `attention`: its parameters under its names.

    Args:
        made: what torchaudio's layer was built with; its weights are taken over, so a seed still gives the same model.
    """

    def __init__(self, made: nn.MultiheadAttention) -> None:
        super().__init__()
        self.heads, self.dropout = made.num_heads, made.dropout
        self.in_proj_weight, self.in_proj_bias = made.in_proj_weight, made.in_proj_bias
        self.out_proj = made.out_proj

    def forward(self, x: Float[Tensor, "b t c"], mask: Bool[Tensor, "b t 1"]) -> Float[Tensor, "b t c"]:
        heads = F.linear(x, self.in_proj_weight, self.in_proj_bias).unflatten(-1, (3, self.heads, -1))
        q, k, v = heads.unbind(dim=2)
        dropout = self.dropout if self.training else 0.0
        y = attention(q, k, v, mask=mask[:, None, None, :, 0], dropout=dropout)
        return self.out_proj(y.flatten(2))  # type: ignore[no-any-return]


class Layer(ConformerLayer):  # type: ignore[misc]
    """torchaudio's layer (Gulati et al., 2020), batch first, with a convolution that knows where utterances end."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__(config.width, config.feed_forward, config.heads, config.kernel, dropout=config.dropout)
        made: Any = self.get_submodule("self_attn")
        self.self_attn = SelfAttention(made)
        self.conv_module = Convolution(config.width, config.kernel, config.dropout)

    def forward(self, x: Float[Tensor, "b t c"], mask: Bool[Tensor, "b t 1"]) -> Float[Tensor, "b t c"]:
        x = x + 0.5 * self.ffn1(x)
        x = x + self.self_attn_dropout(self.self_attn(self.self_attn_layer_norm(x), mask))
        x = x + self.conv_module(x, mask)
        x = x + 0.5 * self.ffn2(x)
        return self.final_layer_norm(x)  # type: ignore[no-any-return]


class ConformerCTC(AcousticModel):
    """4x subsampling, conformer layers, linear head. Sees the whole utterance."""

    Config: ClassVar[type[Strict]] = ConformerConfig

    def __init__(self, config: ConformerConfig, *, mels: int, classes: int) -> None:
        super().__init__(config, mels=mels, classes=classes)
        self.subsample = front_end(mels, config.width, config.planes, causal=False)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.head = nn.Linear(config.width, classes)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """As `ConvCTC.forward`: logits ``(b, ceil(ceil(T/2)/2), classes)`` and their lengths ``(b,)``."""
        x, lengths = self.subsample(features, lengths)
        # attention over no key at all is NaN: an utterance without frames sees one of its padding
        mask = frame_mask(torch.clamp(lengths, min=1), x.shape[1])
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x, mask)
        return self.head(x), lengths
