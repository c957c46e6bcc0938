"""CTC at the end, between blocks, after a flat start. Losses between frames of teacher and student are the core's."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from xmodal_kd.losses.base import item_sum, loss

Share = Annotated[float, Field(ge=0, le=1)]


@loss(
    "ctc", reduction="items", family="sequence", year=2006, needs="logits labels",
    paper="Graves et al.: Connectionist Temporal Classification",
)  # fmt: skip
def ctc(
    student: Float[Tensor, "n c"], item: Int[Tensor, " n"], items: int,
    labels: Int[Tensor, " m"], label_item: Int[Tensor, " m"], *, blank: int = 0,
) -> tuple[Float[Tensor, " b"], Bool[Tensor, " b"]]:  # fmt: skip
    """``-log P(labels | student) / max(number of labels, 1)`` of each utterance, in nats.

    So the mean over utterances is that of torch's ``ctc_loss(reduction="mean")``, and a long transcript weighs as much
    as a short one. An utterance with fewer frames than its labels need (one each, and a blank between equal
    neighbours) cannot be aligned: its value is 0, its gradient is 0, and it is not counted.

    Args:
        student: logits of the valid frames, utterance behind utterance.
        labels: the targets, utterance behind utterance; an utterance may have none.
    """
    _check_labels(labels, student.shape[-1], blank)
    frames = torch.bincount(item, minlength=items)
    tokens = torch.bincount(label_item, minlength=items)
    counted = frames >= (tokens + _repeats(labels, label_item, items)).clamp(min=1)
    logits = pad_rows(student, item, frames)
    values = F.ctc_loss(
        F.log_softmax(logits, dim=-1).transpose(0, 1),
        labels, frames.clamp(min=1), tokens, blank=blank, reduction="none", zero_infinity=True,
    )  # fmt: skip
    return torch.where(counted, values, 0.0) / tokens.clamp(min=1), counted


@loss(
    "ctc_flat_start", reduction="items", family="sequence", year=2006, needs="logits labels", confidence="C",
    paper="Young et al.: The HTK Book, uniform segmentation (flat start)",
)  # fmt: skip
def ctc_flat_start(
    student: Float[Tensor, "n c"], item: Int[Tensor, " n"], items: int,
    labels: Int[Tensor, " m"], label_item: Int[Tensor, " m"], progress: float,
    *, hold: Share = 0.1, until: Share = 0.16, blank: int = 0,
) -> tuple[Float[Tensor, " b"], Bool[Tensor, " b"]]:  # fmt: skip
    """`ctc` after a start on transcripts spread evenly over their frames: ``(1 - w) CE + w ctc`` of each utterance.

    CTC alone first learns to say blank, and on little data stays there for epochs. Until the share `hold` of the
    training frame t of T is taught label ``floor(t L / T)`` of L (w = 0), as hidden Markov models are started; from
    there w rises linearly to 1 at `until`. CE is the mean over an utterance's frames.
    """
    if until < hold:
        raise ValueError(f"ctc_flat_start: until {until} is before hold {hold}")
    values, counted = ctc(student, item, items, labels, label_item, blank=blank)
    if progress >= until:
        return values, counted
    w = max(0.0, progress - hold) / max(until - hold, 1e-12)
    even = _evenly(student, item, items, labels, label_item)
    return torch.where(counted, w * values + (1 - w) * even, 0.0), counted


def _evenly(student: Tensor, item: Tensor, items: int, labels: Tensor, label_item: Tensor) -> Float[Tensor, " b"]:
    """Mean cross entropy of each utterance's frames with its labels, spread evenly over them; 0 where it has none."""
    frames, tokens = torch.bincount(item, minlength=items), torch.bincount(label_item, minlength=items)
    position = torch.arange(len(item), device=item.device) - (frames.cumsum(0) - frames)[item]
    spoken = (tokens > 0)[item]
    at = (tokens.cumsum(0) - tokens)[item] + position * tokens[item] // frames[item]
    target = labels[at[spoken]]
    values = F.cross_entropy(student[spoken], target, reduction="none")
    return item_sum(values, item[spoken], items) / frames.clamp(min=1)


@loss(
    "inter_ctc", reduction="items", family="sequence", year=2021, needs="features labels", confidence="B",
    paper="Lee, Watanabe: Intermediate Loss Regularization for CTC-based Speech Recognition",
    properties="widths_differ",
)  # fmt: skip
class InterCtc(nn.Module):
    """`ctc` of blocks in the middle of a model, each through a linear head that learns beside it: their mean.

    To be added to `ctc`; the paper weighs the two 0.7 and 0.3, and has one block in the middle. There all share the
    last head (`inter_ctc_shared`), here each has its own, which is dropped with the objective.

    Args:
        student: ``on: [logits, blocks.2, ...]``: the first says how many symbols there are, the others are the blocks.
    """

    def __init__(self, student_width: list[int], teacher_width: list[int], *, blank: int = 0) -> None:
        super().__init__()
        symbols, *widths = student_width
        if not widths:
            raise ValueError("inter_ctc asks for the logits and at least one block, as in on: [logits, blocks.2]")
        self.blank = blank
        self.heads = nn.ModuleList(nn.Linear(width, symbols) for width in widths)

    def forward(
        self, student: list[Float[Tensor, "n _"]], item: list[Int[Tensor, " n"]], items: int,
        labels: Int[Tensor, " m"], label_item: Int[Tensor, " m"],
    ) -> tuple[Float[Tensor, " b"], Bool[Tensor, " b"]]:  # fmt: skip
        said = [head(rows) for head, rows in zip(self.heads, student[1:], strict=True)]
        found = [ctc(z, i, items, labels, label_item, blank=self.blank) for z, i in zip(said, item[1:], strict=True)]
        values, counted = zip(*found, strict=True)
        return torch.stack(values).mean(dim=0), counted[0]


@loss(
    "inter_ctc_shared", reduction="items", family="sequence", year=2021, needs="features labels own_head",
    confidence="B", properties="widths_differ",
    paper="Lee, Watanabe: Intermediate Loss Regularization for CTC-based Speech Recognition",
)  # fmt: skip
def inter_ctc_shared(
    student: list[Float[Tensor, "n _"]], item: list[Int[Tensor, " n"]], items: int, labels: Int[Tensor, " m"],
    label_item: Int[Tensor, " m"], own_head: Any, *, blank: int = 0,
) -> tuple[Float[Tensor, " b"], Bool[Tensor, " b"]]:  # fmt: skip
    """`ctc` of blocks in the middle of a model through its own last layer, which learns of them: their mean.

    To be added to `ctc`; the paper (section 3) weighs the two 0.7 and 0.3, and has one block, half way up. ``head``
    names the layer, with the norm before it where there is one: ``head: [norm, head]`` of `conv`.

    Args:
        student: the blocks, ``on: [blocks.2, ...]``, as wide as the last one.
        own_head: the last layer.
    """
    if len(widths := {rows.shape[1] for rows in student}) > 1:
        raise ValueError(
            f"inter_ctc_shared: its blocks are {sorted(widths)} wide, and all go through one last layer: name blocks "
            "as wide as the last, without the logits"
        )
    said = [own_head.learning(rows) for rows in student]
    found = [ctc(z, i, items, labels, label_item, blank=blank) for z, i in zip(said, item, strict=True)]
    values, counted = zip(*found, strict=True)
    return torch.stack(values).mean(dim=0), counted[0]


def _check_labels(labels: Tensor, classes: int, blank: int) -> None:
    if bool(((labels < 0) | (labels >= classes) | (labels == blank)).any()):
        raise ValueError(f"CTC labels must be classes 0..{classes - 1} other than the blank {blank}")


def _repeats(labels: Tensor, label_item: Tensor, items: int) -> Tensor:
    """``(b,)`` how many labels of each utterance equal the one before: each needs a blank in between."""
    again = (labels[1:] == labels[:-1]) & (label_item[1:] == label_item[:-1])
    return torch.bincount(label_item[1:][again], minlength=items)


def pad_rows(rows: Float[Tensor, "n c"], item: Int[Tensor, " n"], frames: Int[Tensor, " b"]) -> Float[Tensor, "b t c"]:
    """Rows, utterance behind utterance, as a zero-padded batch in at least float32."""
    rows = rows if rows.dtype == torch.float64 else rows.float()
    position = torch.arange(len(rows), device=rows.device) - (frames.cumsum(0) - frames)[item]
    steps = max(int(frames.max()), 1) if len(frames) else 1
    padded = rows.new_zeros(len(frames), steps, rows.shape[-1])
    return padded.index_put((item, position), rows)
