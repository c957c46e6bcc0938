"""What a transducer writes: symbol by symbol while it goes through the frames, or by torchaudio's beam search."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from xmodal_kd.runtime.binary_packages import loading

from .decode import Hypothesis

#: Symbols that are written in one frame at most: a bad model would go on for ever.
MOST = 10


class Parts(Protocol):
    """A transducer behind its encoder, of torch or of ONNX files."""

    def start(self, batch: int) -> Tensor:
        """The predictor's state before a text."""
        ...

    def predict(self, symbols: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """``(b,)`` symbols to what is known behind them ``(b, c)``, and the next state."""
        ...

    def join(self, sound: Tensor, text: Tensor) -> Tensor:
        """``(b, c)`` twice to logits ``(b, v)``."""
        ...


class TorchParts:
    """Of a `Transducer`."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def start(self, batch: int) -> Tensor:
        return self.model.predictor.start(batch)  # type: ignore[no-any-return]

    def predict(self, symbols: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return self.model.predictor.step(symbols, state)  # type: ignore[no-any-return]

    def join(self, sound: Tensor, text: Tensor) -> Tensor:
        return self.model.joint(sound, text)  # type: ignore[no-any-return]


class Spoken(NamedTuple):
    """A symbol that was written, the frame it was written in, and how surely."""

    symbol: int
    frame: int
    probability: float


class Greedy:
    """The best symbol of each node, for utterances side by side, whose frames may come in pieces.

    In a frame the best symbol is written until it is the blank, or `MOST` were.
    """

    def __init__(self, parts: Parts, batch: int, device: torch.device | str = "cpu") -> None:
        self.parts, self.frame = parts, 0
        blanks = torch.zeros(batch, dtype=torch.int64, device=device)
        self.known, self.state = parts.predict(blanks, parts.start(batch))

    @torch.no_grad()
    def push(self, states: Float[Tensor, "b t c"], frames: Int[Tensor, " b"] | None = None) -> list[list[Spoken]]:
        """What the next frames make it write, by utterance.

        Args:
            frames: of each utterance, those behind them are none; None: all.
        """
        batch, steps, _ = states.shape
        lengths = torch.full((batch,), steps, device=states.device) if frames is None else frames
        said: list[list[Spoken]] = [[] for _ in range(batch)]
        for t in range(steps):
            going = t < lengths
            for _ in range(MOST):
                logits = self.parts.join(states[:, t], self.known)
                sure, best = F.softmax(logits, dim=-1).max(dim=-1)
                going = going & (best != 0)
                found = going.nonzero().flatten().tolist()
                if not found:
                    break
                for i, symbol, p in zip(found, best[going].tolist(), sure[going].tolist(), strict=True):
                    said[i].append(Spoken(symbol, self.frame + t, p))
                known, state = self.parts.predict(best, self.state)
                self.known = torch.where(going[:, None], known, self.known)
                self.state = torch.where(going[:, None], state, self.state)
        self.frame += steps
        return said


def greedy(parts: Parts, states: Float[Tensor, "b t c"], frames: Int[Tensor, " b"]) -> list[list[int]]:
    """The symbols of whole utterances."""
    found = Greedy(parts, len(states), states.device).push(states, frames)
    return [[one.symbol for one in said] for said in found]


def beam(parts: Parts, states: Float[Tensor, "t c"], size: int) -> list[Hypothesis]:
    """Up to `size` symbol sequences of one utterance with their log-probabilities, best first, by torchaudio's search.

    It sorts by log-probability over length, as it prunes, and keeps no more sequences than there are symbols. A score
    sums the ways that survived: a lower bound.
    """
    with loading("torchaudio"):
        from torchaudio.models import RNNTBeamSearch
    model: Any = _AsTorchaudio(parts)
    classes = model.classes(states)
    search = RNNTBeamSearch(model, blank=classes - 1, step_max_tokens=MOST)
    with torch.no_grad():
        found = search(states, torch.tensor(len(states)), min(size, classes - 1))
    return [([k + 1 for k in tokens[1:]], float(score)) for tokens, _, _, score in found]


class _AsTorchaudio(torch.nn.Module):
    """Our parts as `RNNTBeamSearch` calls a model. There the blank is the last class: ours, the first, goes there."""

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.parts = parts

    def classes(self, states: Tensor) -> int:
        known, _ = self.parts.predict(torch.zeros(1, dtype=torch.int64, device=states.device), self.parts.start(1))
        return self.parts.join(states[:1], known).shape[-1]

    def transcribe(self, states: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """It is given states, not sound."""
        return states, lengths

    def predict(self, targets: Tensor, lengths: Tensor, state: Any) -> tuple[Tensor, Tensor, list[list[Tensor]]]:
        held = self.parts.start(len(targets)) if state is None else state[0][0]
        symbols = targets[:, 0] + 1
        if state is None:  # the blank that stands before a text
            symbols = torch.zeros_like(symbols)
        known, after = self.parts.predict(symbols, held)
        return known[:, None], lengths, [[after]]

    def join(self, sound: Tensor, _: Tensor, text: Tensor, __: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = self.parts.join(sound[:, 0].expand(len(text), -1), text[:, 0])
        return logits.roll(-1, dims=-1)[:, None, None], _, __


__all__ = ["MOST", "Greedy", "Parts", "Spoken", "TorchParts", "beam", "greedy"]
