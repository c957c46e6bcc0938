"""Any acoustic model over an endless utterance, in constant memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

Model = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

#: Seconds of sound that a stream waits for before it says something.
CHUNK = 0.25
#: What an utterance's length is said to be until it has ended.
ENDLESS = 2**40


class Stream(Protocol):
    """Logits of one utterance from chunks of its features, each frame as soon as it is final."""

    def push(self, chunk: Float[Tensor, "t mels"]) -> Float[Tensor, "n classes"]:
        """Take a chunk of any length; the logits that became final, perhaps none."""
        ...

    def finish(self) -> Float[Tensor, "n classes"]:
        """The utterance has ended: the logits of its last frames. Raises `ValueError` where there was nothing."""
        ...


class StepModel(Protocol):
    """A model with a state: `conv_steps.ConvSteps`, or its ONNX file."""

    stride: int

    def start(self, batch: int = 1) -> tuple[Tensor, ...]:
        """The state before an utterance."""
        ...

    def __call__(self, *given: Tensor) -> tuple[Tensor, ...]:
        """``features, length, *state`` to ``logits, frames, *state``, see `ConvSteps.forward`."""
        ...


class Steps:
    """A `Stream` of a model with a state: every frame is computed once."""

    def __init__(self, model: StepModel) -> None:
        self.model, self.state = model, list(model.start())
        self.held: Tensor | None = None  # features that do not fill a group yet
        self.seen, self.delay, self.classes = 0, 0, 0

    def push(self, chunk: Float[Tensor, "t mels"]) -> Float[Tensor, "n classes"]:
        if self.held is None:
            self.held = chunk.new_zeros(self.model.stride - 1, chunk.shape[1])
        self.seen += len(chunk)
        self.held = torch.cat([self.held, chunk])
        whole = len(self.held) // self.model.stride * self.model.stride
        group, self.held = self.held[:whole], self.held[whole:]
        return self._given(group, ENDLESS)

    def finish(self) -> Float[Tensor, "n classes"]:
        if not self.seen:
            raise ValueError("a stream that was given nothing has no logits")
        assert self.held is not None
        size = self.delay * self.model.stride
        return self._given(F.pad(self.held, (0, 0, 0, size - len(self.held)))[:size], self.seen)

    def _given(self, group: Tensor, length: int) -> Tensor:
        """The logits of a group that are of the utterance; an empty group has none, and changes nothing."""
        if not len(group):
            if not self.classes:  # of which the model says how many there are
                trial = group.new_zeros(self.model.stride, group.shape[1])
                self.classes = self._run(trial, length, self.model.start())[0].shape[1]
            return group.new_zeros(0, self.classes)
        logits, frames, *self.state = self._run(group, length, self.state)
        self.delay, self.classes = max(self.delay, -int(frames[0])), logits.shape[1]
        return logits[(frames >= 0) & (frames < -(-length // self.model.stride))]

    def _run(self, group: Tensor, length: int, state: Sequence[Tensor]) -> tuple[Tensor, ...]:
        with torch.no_grad():
            logits, frames, *state = self.model(group[None], torch.tensor([length], device=group.device), *state)
        return logits[0], frames[0], *state


class Windows:
    """A `Stream` of a model without a state: it runs over the frames again that frames still to come can see.

    Where `left` and `right` cover the model's receptive field the concatenation equals the logits of the whole, for any
    chunking; with less (attention sees everything) it is the usual approximation by overlapping windows.

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
        self.buffer = chunk if self.buffer is None else torch.cat([self.buffer, chunk])
        seen = -(-len(self.buffer) // self.stride) + self.start  # output frames whose own input has come
        return self._logits(max(seen - self.right, self.done))

    def finish(self) -> Float[Tensor, "n classes"]:
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
