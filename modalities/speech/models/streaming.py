"""Any acoustic model over an endless utterance, in constant memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

Model = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Stream:
    """Logits of one utterance from chunks of its features, each frame as soon as it is final.

    It keeps the input frames that frames still to come can see and runs the model over them again. Where `left` and
    `right` cover the model's receptive field the concatenation equals the logits of the whole, for any chunking; with
    less (attention sees everything) it is the usual approximation by overlapping windows.

    Args:
        model: ``(features (1, t, mels), lengths (1,))`` to ``(logits (1, t', classes), lengths)``.
        left: input frames of context before an output frame.
        right: input frames of context after it.
        stride: input frames an output frame; output j stands at input j * stride.
    """

    def __init__(self, model: Model, left: int, right: int, *, stride: int) -> None:
        self.model, self.stride = model, stride
        # rounded up to whole output frames, so that a window starts where an output frame stands
        self.left, self.right = -(-left // stride), -(-right // stride)
        self.buffer: Tensor | None = None  # (t, mels), from input frame start * stride
        self.start = 0  # output frame at which the buffer starts
        self.done = 0  # output frames given out

    def push(self, chunk: Float[Tensor, "t mels"]) -> Float[Tensor, "n classes"]:
        """Take a chunk of any length; the logits that became final, perhaps none."""
        self.buffer = chunk if self.buffer is None else torch.cat([self.buffer, chunk])
        seen = -(-len(self.buffer) // self.stride) + self.start  # output frames whose own input has come
        return self._logits(max(seen - self.right, self.done))

    def finish(self) -> Float[Tensor, "n classes"]:
        """The utterance has ended: the logits of its last frames."""
        if self.buffer is None:
            raise ValueError("a stream that was given nothing has no logits")
        return self._logits(-(-len(self.buffer) // self.stride) + self.start)

    def _logits(self, end: int) -> Tensor:
        """Logits of the output frames from `done` to `end`; forgets the input that no later frame sees."""
        assert self.buffer is not None
        logits = self._run(self.buffer)[self.done - self.start : end - self.start]
        self.done = end
        keep = max(end - self.left, self.start)
        self.buffer, self.start = self.buffer[(keep - self.start) * self.stride :], keep
        return logits

    def _run(self, features: Tensor) -> Tensor:
        if len(features) == 0:  # the model still says how many classes there are
            return self._run(features.new_zeros(1, features.shape[1]))[:0]
        with torch.no_grad():
            return self.model(features[None], torch.tensor([len(features)], device=features.device))[0][0]
