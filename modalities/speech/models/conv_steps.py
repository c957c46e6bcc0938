"""The convolutional student with what it remembers: a chunk and a state in, logits and the next state out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .frames import STRIDE, Planes, halved


class ConvSteps(nn.Module):
    """`ConvCTC` over an utterance that comes in chunks, computing each frame once; see `streaming.Steps`.

    Every convolution remembers the last of its inputs. A block that looks `right` frames ahead answers them late, so
    the logits of a chunk are those of earlier frames, and tell which. Zeros stand where the utterance has not begun
    or has ended, at every layer, as in the whole: that is what `length` is for.

    Example: ``logits, frames, *state = steps(features, length, *steps.start())``.
    """

    stride = STRIDE

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.subsample, self.norm, self.head = model.subsample, model.norm, model.head
        blocks = [block for block in model.blocks if hasattr(block, "depthwise")]  # an early exit passes by the others
        self.blocks: nn.ModuleList = nn.ModuleList(blocks)

    def start(self, batch: int = 1) -> tuple[Tensor, ...]:
        """The state before an utterance: zeros. First the number ``(batch,)`` of the frame that comes next."""
        front, device = self.subsample, next(self.parameters()).device
        first, second = front.convolutions
        shapes: list[tuple[Any, ...]]
        if isinstance(front, Planes):
            shapes = [(1, 1, front.mels), (first.out_channels, 1, (front.mels + 1) // 2)]
        else:
            shapes = [(1, first.in_channels), (1, second.in_channels)]
        shapes += [(_remembered(block), block.depthwise.in_channels) for block in self._blocks()]
        zeros = [torch.zeros(batch, *shape, device=device) for shape in shapes]
        return torch.zeros(batch, dtype=torch.int64, device=device), *zeros

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        """A chunk of n output frames.

        Args:
            given: ``features`` ``(b, 4 n, mels)``, those of an utterance behind three frames of anything, so that
                the fourth of a group is the one that an output frame stands at; ``length`` ``(b,)`` int64, its feature
                frames, or more while nobody knows; and the state.

        Returns:
            ``logits`` ``(b, n, classes)``; ``frames`` ``(b, n)`` int64, of which output frames: those below 0 and
            behind the end are none; and the next state.
        """
        x, length, position, *state = given
        x, length, *kept = self._front(x, length, position, state[0], state[1])
        frames = position[:, None] + torch.arange(x.shape[1], device=x.device)
        for block, before in zip(self._blocks(), state[2:], strict=True):
            seen = torch.cat([before, _within(x, frames, length)], dim=1)
            frames = frames - block.right
            x = block.mixed(seen, seen[:, block.left : seen.shape[1] - block.right])
            kept.append(seen[:, seen.shape[1] - _remembered(block) :])
        position = position + frames.shape[1]
        return self.head(self.norm(x)), frames, position, *kept

    def _front(
        self, x: Tensor, length: Tensor, position: Tensor, before: Tensor, between: Tensor
    ) -> tuple[Tensor, ...]:
        """A chunk at a quarter of its rate, the length of the utterance there, and what is remembered."""
        plane = isinstance(self.subsample, Planes)
        x, first, kept = x.unsqueeze(1) if plane else x, STRIDE * position - (STRIDE - 1), []
        for convolution, remembered in zip(self.subsample.convolutions, (before, between), strict=True):
            axis = 2 if plane else 1
            numbers = first[:, None] + torch.arange(x.shape[axis], device=x.device)
            x = torch.cat([remembered, _within(x, numbers, length)], dim=axis)
            kept.append(x.narrow(axis, x.shape[axis] - 1, 1))
            x = convolution(F.pad(x, (1, 1))) if plane else convolution(x.transpose(1, 2)).transpose(1, 2)
            x, first, length = F.gelu(x), (first + 1) // 2, halved(length)
        if plane:
            x = self.subsample.out(x.transpose(1, 2).flatten(2))
        return x, length, *kept

    def _blocks(self) -> list[Any]:
        return list(self.blocks)


def _remembered(block: Any) -> int:
    """Frames of its input that a block needs again."""
    return int(block.left + block.right)


def _within(x: Tensor, numbers: Tensor, length: Tensor) -> Tensor:
    """Zeros where a frame, by its number ``(b, t)``, is none of the utterance's; `x` has planes or not."""
    none = (numbers < 0) | (numbers >= length[:, None])
    return x.masked_fill(none[:, None, :, None] if x.ndim == 4 else none[..., None], 0.0)
