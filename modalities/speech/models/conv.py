"""The student: a compact causal convolutional CTC model that can stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from xmodal_kd.adapter.adapter import Strict
from xmodal_kd.compress.gates import Units

from .conv_steps import ConvSteps
from .frames import AcousticModel, Depthwise, frame_mask, front_end, masked
from .streaming import StepModel, Steps, Stream, Windows


class ConvConfig(Strict):
    """The defaults hold 25 thousand parameters, see 2.3 s back and wait for 160 ms of what is to come."""

    width: int = Field(32, ge=1)
    """Channels of every block."""
    kernel: int = Field(5, ge=1)
    """Taps of each depthwise convolution."""
    dilations: tuple[int, ...] = (1, 2, 4, 8)
    """One block each, at 40 ms a frame."""
    lookahead: int = Field(1, ge=0)
    """Frames of 40 ms that each block sees of the future; 0 is strictly causal."""
    expansion: int = Field(2, ge=1)
    """Width of each block's hidden layer, in units of `width`."""
    hidden: tuple[Annotated[int, Field(ge=1)], ...] | None = None
    """The same of each block by itself, in channels; None: as `expansion` says."""
    planes: int = Field(0, ge=0)
    """Channels of a front end that convolves over mels as well as over time; 0: over time alone."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Of what each block adds."""

    @model_validator(mode="after")
    def _fits(self) -> ConvConfig:
        if not self.dilations or min(self.dilations) < 1:
            raise ValueError(f"dilations must be one or more positive numbers, got {list(self.dilations)}")
        if self.hidden is not None and len(self.hidden) != len(self.dilations):
            raise ValueError(f"hidden has {len(self.hidden)} widths for {len(self.dilations)} blocks")
        if self.lookahead > (self.kernel - 1) * min(self.dilations):
            raise ValueError(f"a kernel of {self.kernel} is too short for a lookahead of {self.lookahead} frames")
        return self


class Block(nn.Module):
    """``x + MLP(LayerNorm(depthwise(x)))``, after ConvNeXt (Liu et al., 2022), causal along time."""

    def __init__(
        self, width: int, kernel: int, dilation: int, lookahead: int, hidden: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.left, self.right = (kernel - 1) * dilation - lookahead, lookahead
        self.depthwise = Depthwise(width, kernel, dilation=dilation)
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)
        )  # fmt: skip
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "b t c"], mask: Bool[Tensor, "b t 1"]) -> Float[Tensor, "b t c"]:
        return self.mixed(F.pad(masked(x, mask), (0, 0, self.left, self.right)), x)

    def mixed(self, seen: Float[Tensor, "b s c"], x: Float[Tensor, "b t c"]) -> Float[Tensor, "b t c"]:
        """Frames `x` of `seen`, which begins `left` frames before them and ends `right` frames after."""
        y = self.depthwise(seen.transpose(1, 2)).transpose(1, 2)
        return x + self.dropout(self.mlp(self.norm(y)))  # type: ignore[no-any-return]


class ConvCTC(AcousticModel):
    """4x causal subsampling, residual depthwise blocks, linear head."""

    Config: ClassVar[type[Strict]] = ConvConfig

    def __init__(self, config: ConvConfig, *, mels: int, classes: int) -> None:
        super().__init__(config, mels=mels, classes=classes)
        self.subsample = front_end(mels, config.width, config.planes, causal=True)
        every = (config.expansion * config.width,) * len(config.dilations)
        self.blocks = nn.ModuleList(
            Block(config.width, config.kernel, dilation, config.lookahead, hidden, config.dropout)
            for dilation, hidden in zip(config.dilations, config.hidden or every, strict=True)
        )
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, classes)
        left, right = (sum(getattr(block, side) for block in self.blocks) for side in ("left", "right"))
        self.receptive_field = (left * self.stride + 6, right * self.stride)  # 6: the two convolutions of `Subsample`

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of every frame.

        Args:
            features: ``(b, T, mels)`` float32, what lies behind an utterance's end may be anything.
            lengths: ``(b,)`` int64, valid frames.

        Returns:
            logits ``(b, T', classes)`` with ``T' = ceil(ceil(T/2)/2)``, and ``(b,)`` int64 their valid frames.
        """
        x, lengths = self.subsample(features, lengths)
        mask = frame_mask(lengths, x.shape[1])
        for block in self.blocks:
            x = block(x, mask)
        return self.head(self.norm(x)), lengths

    def units(self) -> list[Units]:
        """Hidden channels of each block: see `xmodal_kd.compress.gates.Prunable`."""
        found = []
        for i, hidden in enumerate(self._hidden()):
            at, read = f"blocks.{i}.mlp", f"blocks.{i}.mlp.2.weight"
            found.append(
                Units(f"hidden.{i}", hidden, {f"{at}.0.weight": 0, f"{at}.0.bias": 0, read: 1}, read, drop=0.5)
            )
        return found

    def narrowed(self, counts: Mapping[str, int]) -> None:
        """Bring what layers say of their sizes, and the card, to what the weights have."""
        blocks: Any = self.blocks
        for layer in (layer for block in blocks for layer in (block.mlp[0], block.mlp[2])):
            layer.out_features, layer.in_features = layer.weight.shape
        if hasattr(self, "card"):
            self.card["params"] = {**self.card["params"], "hidden": self._hidden()}

    def _hidden(self) -> list[int]:
        blocks: Any = self.blocks
        return [len(block.mlp[0].bias) for block in blocks]

    def steps(self) -> StepModel | None:
        return ConvSteps(self).train(self.training) if type(self).forward is ConvCTC.forward else None

    def stream(self) -> Stream:
        """Push feature chunks, get the logits that no later frame can change. See `Stream`."""
        assert self.receptive_field is not None
        steps = self.steps()
        return Windows(self, *self.receptive_field, stride=self.stride) if steps is None else Steps(steps)
