"""Transducers: the probability of a text by all ways through its lattice, and what a teacher says of its nodes.

A row is a node of the lattice: the frame t has been reached and u symbols of the text were written. Its label is the
symbol that comes next, or the blank where all are written, so that blanks alone may follow. Rows of an utterance stand
frame by frame, each with its U + 1 nodes in order.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from xmodal_kd.losses import blocks
from xmodal_kd.losses.base import Positive, loss, same_shape
from xmodal_kd.runtime.binary_packages import loading

#: The logarithm of no probability at all, as a number whose gradient is one.
NEVER = -1e4


def collapsed(
    logits: Float[Tensor, "n c"], labels: Int[Tensor, " n"], blank: int = 0, temperature: float = 1.0
) -> Float[Tensor, "n 3"]:
    """Log-probabilities of the label, of the blank, and of all else together, by node.

    A node whose label is the blank has no next symbol: its first column is `NEVER`.
    """
    log_p = F.log_softmax(logits / temperature, dim=-1)
    ends = (labels == blank)[:, None]
    label = log_p.gather(1, labels[:, None])
    number = torch.arange(logits.shape[1], device=logits.device)
    named = (number == labels[:, None]) | (number == blank)
    rest = log_p.masked_fill(named, NEVER).logsumexp(dim=1, keepdim=True)
    return torch.cat([label.masked_fill(ends, NEVER), log_p[:, blank, None], rest], dim=1)


@loss(
    "rnnt", reduction="items", family="sequence", year=2012, needs="logits labels",
    paper="Graves: Sequence Transduction with Recurrent Neural Networks",
)  # fmt: skip
def rnnt(
    student: Float[Tensor, "n c"], item: Int[Tensor, " n"], items: int, labels: Int[Tensor, " n"], *, blank: int = 0
) -> tuple[Float[Tensor, " b"], Bool[Tensor, " b"]]:
    """``-log P(text | student) / max(number of symbols, 1)`` of each utterance, in nats: all ways through its lattice.

    So it is weighed as `ctc` is. Only the next symbol and the blank count in a node: of both alone torchaudio's kernel
    is told, so that no padded lattice of all classes stands in memory. An utterance without a row is not counted.

    Args:
        student: logits of the nodes of whole lattices, utterance behind utterance.
        labels: the next symbol of each node; the blank where there is none.
    """
    places = Places.of(item, items, labels, blank)
    log_p = _pairs(student, labels, blank)
    steps, most = max(int(places.frames.max()), 1), int(places.symbols.max())
    lattice = log_p.new_zeros(items, steps, most + 1, 2).index_put((item, places.t, places.u), log_p)
    counted = places.frames > 0
    values = lattice_nll(lattice, places.frames.clamp(min=1), places.symbols)
    return torch.where(counted, values, 0.0) / places.symbols.clamp(min=1), counted


@loss(
    "rnnt_kd", reduction="rows", family="sequence", year=2021, needs="logits labels",
    properties="zero_at_teacher shift_invariant numbered",
    paper="Panchapagesan et al.: Efficient Knowledge Distillation for RNN-Transducer Models",
)  # fmt: skip
def rnnt_kd(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"], labels: Int[Tensor, " n"],
    *, temperature: Positive = 1.0, blank: int = 0,
) -> Float[Tensor, " n"]:  # fmt: skip
    """``T^2 KL(teacher || student)`` of each node over {the next symbol, the blank, all else}, at logits over T.

    The paper sums over the nodes of an utterance and has no temperature; here their mean is taken, over the batch, so
    its weight is to be multiplied by the nodes of a text's symbol (about the frames). Teacher and student must stand on
    one grid of frames. Nodes are taken in chunks and computed anew in the backward pass: beside the logits themselves
    no tensor of all nodes and classes is made, but for the gradient.

    Args:
        labels: the next symbol of each node; the blank where there is none, and two classes are left.
    """
    same_shape(student, teacher)
    p, q = (collapsed(z, labels, blank, temperature) for z in (teacher, student))
    return temperature**2 * (p.exp() * (p - q)).sum(dim=1)


class Places(NamedTuple):
    """Where the nodes of whole lattices stand, told by their labels.

    Attributes:
        frames, symbols: ``(b,)`` of each utterance; neither of one without nodes.
        t, u: ``(n,)`` of each node.
    """

    frames: Tensor
    symbols: Tensor
    t: Tensor
    u: Tensor

    @classmethod
    def of(cls, item: Tensor, items: int, labels: Tensor, blank: int) -> Places:
        """Raises `ValueError` where an utterance's nodes are no whole lattice, frame by frame."""
        ends = labels == blank
        nodes, frames = torch.bincount(item, minlength=items), torch.bincount(item[ends], minlength=items)
        columns = nodes // frames.clamp(min=1)
        place = torch.arange(len(item), device=item.device) - (nodes.cumsum(0) - nodes)[item]
        t, u = place // columns[item].clamp(min=1), place % columns[item].clamp(min=1)
        if not bool((nodes == columns * frames).all() & (ends == (u + 1 == columns[item])).all()):
            raise ValueError("its rows are no whole lattices: frame by frame, each frame's nodes up to the blank's own")
        return cls(frames, (columns - 1).clamp(min=0), t, u)


def _pairs(student: Tensor, labels: Tensor, blank: int) -> Float[Tensor, "n 2"]:
    """Log-probabilities of the blank and of the label, by node; of many nodes in chunks, computed anew backwards."""

    def pair(rows: Tensor, next_: Tensor) -> Tensor:
        log_p = F.log_softmax(rows, dim=-1)
        return torch.stack([log_p[:, blank], log_p.gather(1, next_[:, None])[:, 0]], dim=1)

    return pair(student, labels) if student.numel() <= blocks.BLOCK else blocks.row_by_row(pair, student, [labels])


def lattice_nll(
    log_p: Float[Tensor, "b t v 2"], frames: Int[Tensor, " b"], symbols: Int[Tensor, " b"]
) -> Float[Tensor, " b"]:
    """``-log`` of the sum over all ways through lattices of log-probabilities (the blank, the next symbol).

    By torchaudio's kernel, which knows float32 on CPUs and CUDA; else frame by frame, with S the sum of a frame's
    symbols, ``alpha_t(u) = S_t(u) + log sum over k <= u of exp(alpha_t-1(k) + blank_t-1(k) - S_t(k))``.
    """
    if log_p.dtype == torch.float32 and log_p.device.type in ("cpu", "cuda") and log_p.shape[2] > 1:
        with loading("torchaudio"):
            from torchaudio.functional import rnnt_loss
        lengths = (value.to(torch.int32) for value in (frames, symbols))
        targets = torch.ones(len(log_p), log_p.shape[2] - 1, dtype=torch.int32, device=log_p.device)
        return rnnt_loss(log_p, targets, *lengths, blank=0, reduction="none", fused_log_softmax=False)  # type: ignore[no-any-return]
    blank, label = log_p.unbind(dim=-1)
    before = F.pad(label.cumsum(dim=2), (1, -1))  # b t v: the symbols up to each
    alphas = [before[:, 0]]
    for t in range(1, log_p.shape[1]):
        alphas.append(before[:, t] + (alphas[-1] + blank[:, t - 1] - before[:, t]).logcumsumexp(dim=1))
    last = torch.stack(alphas, dim=1) + blank
    return -last[torch.arange(len(log_p), device=log_p.device), frames - 1, symbols]


__all__ = ["Places", "collapsed", "lattice_nll", "rnnt", "rnnt_kd"]
