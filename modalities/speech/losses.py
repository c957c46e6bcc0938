"""The CTC loss, and how posteriors of two frame rates meet.

The losses of teacher and student between frames are the core's: an adapter hands them rows that stand beside one
another, which is what the second half of this file makes.
"""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from xmodal_kd.errors import UserError
from xmodal_kd.losses.base import loss

from .models.frames import frame_mask, masked


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


def pool_posteriors(
    logits: Float[Tensor, "b t c"], lengths: Int[Tensor, " b"], factor: int, blank: int = 0
) -> tuple[Float[Tensor, "b s c"], Int[Tensor, " b"]]:
    """Log-posteriors at a `factor` times lower frame rate, with CTC's spikes kept.

    Of each group G of `factor` frames, the last one perhaps shorter,

        m(k) = max over t in G of p_t(k)  for a label k,    m(blank) = min over t in G of p_t(blank),
        p(k) = m(k) / sum of m.

    A group is blank only where every frame of it is, and a spike in one frame stays a spike. A plain mean would leave
    it 1/factor of its height, and every frame of the student would learn to say blank.

    Returns:
        log-probabilities ``(b, ceil(t / factor), c)``, uniform behind an utterance's end, and the lengths ``(b,)``.
    """
    logits = masked(logits if logits.dtype == torch.float64 else logits.float(), frame_mask(lengths, logits.shape[1]))
    log_p = F.log_softmax(logits, dim=-1)
    log_p = F.pad(log_p, (0, 0, 0, -log_p.shape[1] % factor))
    groups = rearrange(log_p, "b (s f) c -> b s f c", f=factor)
    valid = rearrange(frame_mask(lengths, log_p.shape[1]), "b (s f) 1 -> b s f 1", f=factor)
    is_blank = torch.arange(logits.shape[-1], device=logits.device) == blank
    highest = groups.masked_fill(~valid, -torch.inf).amax(dim=2)
    lowest = groups.masked_fill(~valid, torch.inf).amin(dim=2)
    pooled = torch.where(is_blank, lowest, highest)
    pooled = pooled.masked_fill(~valid.any(dim=2), 0.0)
    return F.log_softmax(pooled, dim=-1), (lengths + factor - 1) // factor


def match_lengths(
    student: Float[Tensor, "b t c"], student_lengths: Int[Tensor, " b"],
    teacher: Float[Tensor, "b s d"], teacher_lengths: Int[Tensor, " b"], *, tolerance: int = 2,
) -> tuple[Float[Tensor, "b u c"], Float[Tensor, "b u d"], Int[Tensor, " b"]]:  # fmt: skip
    """Both cut to their common frames. Two front ends may round an utterance's end differently, by a frame or two.

    Raises:
        UserError: where an utterance's lengths differ by more than `tolerance` frames: the frame rates differ.
    """
    worst = int((student_lengths - teacher_lengths).abs().argmax())
    s, t = int(student_lengths[worst]), int(teacher_lengths[worst])
    if abs(s - t) > tolerance:
        raise UserError(
            f"student and teacher disagree on the frames of an utterance: {s} and {t}; "
            "their frame rates differ, pool the faster one or use a sequence-level loss"
        )
    steps = min(student.shape[1], teacher.shape[1])
    return student[:, :steps], teacher[:, :steps], torch.minimum(student_lengths, teacher_lengths)
