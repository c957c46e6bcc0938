"""Transducers (Graves, 2012): an encoder of the sound, a predictor of the text so far, and what joins the two."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from xmodal_kd.adapter.adapter import Strict
from xmodal_kd.runtime.errors import UserError

from .conformer import ConformerConfig, ConformerCTC
from .conv import ConvConfig, ConvCTC
from .frames import AcousticModel
from .streaming import StepModel

#: Below this path modules are of the encoder, whose rows are frames; below the other of the predictor, whose rows are
#: the positions of the text.
ENCODER, PREDICTOR = "encoder", "predictor"


class Joins(Strict):
    """What a transducer has beside its encoder."""

    predictor: Literal["stateless", "gru"] = "stateless"
    """What it knows of the text so far: the last `context` symbols (Ghodsi et al., 2020), or all by a GRU."""
    context: int = Field(2, ge=2, le=64)
    """Symbols that a stateless predictor sees."""
    embedding: int = Field(64, ge=1)
    """Width of a symbol, and of the GRU."""
    joint: int = Field(96, ge=1)
    """Width in which sound and text are added."""


class ConformerTransducerConfig(ConformerConfig, Joins):
    """A conformer as encoder. The defaults hold 0.75 million parameters."""


class ConvTransducerConfig(ConvConfig, Joins):
    """A causal convolutional encoder, which can stream. The defaults hold 50 thousand parameters."""


class Stateless(nn.Module):
    """The last symbols alone: each is embedded, side by side they are mapped."""

    def __init__(self, classes: int, config: Joins) -> None:
        super().__init__()
        self.context = config.context
        self.embedding = nn.Embedding(classes, config.embedding)
        self.out = nn.Linear(config.context * config.embedding, config.joint)

    def start(self, batch: int) -> Tensor:
        """The state before a text ``(b, context - 1)``: blanks."""
        return torch.zeros(batch, self.context - 1, dtype=torch.int64, device=self.out.weight.device)

    def forward(self, symbols: Int[Tensor, "b u"], state: Tensor) -> tuple[Float[Tensor, "b u c"], Tensor]:
        """What is known behind each of the symbols, and the state behind the last."""
        said = torch.cat([state, symbols], dim=1)
        seen = self.embedding(said).unfold(1, self.context, 1)  # b u c context
        return self.out(F.relu(seen.transpose(2, 3).flatten(2))), said[:, said.shape[1] - (self.context - 1) :]

    def step(self, symbol: Int[Tensor, " b"], state: Tensor) -> tuple[Float[Tensor, "b c"], Tensor]:
        """One symbol further."""
        said = torch.cat([state, symbol[:, None]], dim=1)
        return self.out(F.relu(self.embedding(said).flatten(1))), said[:, 1:]


class Recurrent(nn.Module):
    """All of the text, by a GRU."""

    def __init__(self, classes: int, config: Joins) -> None:
        super().__init__()
        self.embedding = nn.Embedding(classes, config.embedding)
        self.gru = nn.GRU(config.embedding, config.embedding, batch_first=True)
        self.out = nn.Linear(config.embedding, config.joint)

    def start(self, batch: int) -> Tensor:
        """The state before a text ``(b, width)``: zeros."""
        return self.out.weight.new_zeros(batch, self.gru.hidden_size)

    def forward(self, symbols: Int[Tensor, "b u"], state: Tensor) -> tuple[Float[Tensor, "b u c"], Tensor]:
        """As `Stateless.forward`."""
        known, last = self.gru(self.embedding(symbols), state[None].contiguous())
        return self.out(known), last[0]

    def step(self, symbol: Int[Tensor, " b"], state: Tensor) -> tuple[Float[Tensor, "b c"], Tensor]:
        """As `Stateless.step`, by the formula, which exports as it is."""
        gru: Any = self.gru
        x = self.embedding(symbol)
        r, z, n = F.linear(x, gru.weight_ih_l0, gru.bias_ih_l0).chunk(3, dim=-1)
        hr, hz, hn = F.linear(state, gru.weight_hh_l0, gru.bias_hh_l0).chunk(3, dim=-1)
        update = torch.sigmoid(z + hz)
        state = (1 - update) * torch.tanh(n + torch.sigmoid(r + hr) * hn) + update * state
        return self.out(state), state


class Joint(nn.Module):
    """Logits of what comes next where sound and text meet: ``Linear(tanh(sound + text))``."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.out = nn.Linear(width, classes)

    def forward(self, sound: Float[Tensor, "... c"], text: Float[Tensor, "... c"]) -> Float[Tensor, "... v"]:
        return self.out(torch.tanh(sound + text))  # type: ignore[no-any-return]


class Lattice(NamedTuple):
    """A batch's lattices, node behind node: utterance by utterance, frame by frame, u = 0, ..., U.

    Attributes:
        logits: ``(n, classes)``; no node stands for padding.
        item: ``(n,)`` its utterance.
        labels: ``(n,)`` the symbol that comes next, the blank where all are written.
        frames: ``(b,)`` of each utterance.
    """

    logits: Tensor
    item: Tensor
    labels: Tensor
    frames: Tensor


class Transducer(AcousticModel):
    """Called as ``model(features, lengths)`` it gives the encoder's states; `lattice` is what it is trained by."""

    task: ClassVar[str] = "transducer"
    Encoder: ClassVar[type[AcousticModel]]
    encoder: AcousticModel
    predictor: Stateless | Recurrent

    def __init__(self, config: Any, *, mels: int, classes: int) -> None:
        super().__init__(config, mels=mels, classes=classes)
        self.encoder = self.Encoder(config, mels=mels, classes=config.joint)
        self.predictor = (Stateless if config.predictor == "stateless" else Recurrent)(classes, config)
        self.joint = Joint(config.joint, classes)
        self.stride, self.receptive_field = self.encoder.stride, self.encoder.receptive_field  # type: ignore[misc]

    def forward(
        self, features: Tensor, lengths: Tensor, targets: Tensor | None = None, target_lengths: Tensor | None = None
    ) -> Any:
        """States ``(b, t, joint)`` and their lengths ``(b,)``; with targets ``(b, u)`` their `Lattice`."""
        states, frames = self.encoder(features, lengths)
        if targets is None or target_lengths is None:
            return states, frames
        return self.lattice(states, frames, targets, target_lengths)

    def lattice(self, states: Tensor, frames: Tensor, targets: Tensor, target_lengths: Tensor) -> Lattice:
        """The joint in all nodes, and in no other place: padding of either side is not computed.

        Args:
            targets: ``(b, u)``, anything behind a text's end.
        """
        batch = len(targets)
        said = F.pad(targets.clamp(min=0), (1, 0))  # the blank stands before a text
        known, _ = self.predictor(said, self.predictor.start(batch))
        columns = target_lengths + 1
        nodes = frames * columns
        item = torch.arange(batch, device=nodes.device).repeat_interleave(nodes)
        place = torch.arange(len(item), device=nodes.device) - (nodes.cumsum(0) - nodes)[item]
        t, u = place // columns[item], place % columns[item]
        logits = self.joint(states[item, t], known[item, u])
        following = torch.where(u < target_lengths[item], F.pad(targets, (0, 1))[item, u], 0)
        return Lattice(logits, item, following, frames)

    def steps(self) -> StepModel | None:
        return self.encoder.steps()

    def axes(self, path: str) -> str:
        """Layout of a captured submodule's output: frames of the encoder, positions of the text of the predictor."""
        part, _, rest = path.partition(".")
        if part == ENCODER and rest:
            return self.encoder.axes(rest)
        if part in (ENCODER, PREDICTOR):
            return "b t c"
        raise UserError(f"module {path!r}: its rows are nodes of the lattice: capture one of encoder or predictor")


class ConformerTransducer(Transducer):
    """A transducer that hears the whole utterance."""

    Config: ClassVar[type[Strict]] = ConformerTransducerConfig
    Encoder = ConformerCTC


class ConvTransducer(Transducer):
    """A compact transducer that can stream."""

    Config: ClassVar[type[Strict]] = ConvTransducerConfig
    Encoder = ConvCTC


__all__ = ["ConformerTransducer", "ConvTransducer", "Lattice", "Transducer"]
