"""A student that hears chunks says a symbol later than a teacher that hears the whole: frames are compared so."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from xmodal_kd.losses.base import Positive, loss, same_shape

from .ctc import pad_rows
from .sequence import Values


@loss(
    "delayed_kd", reduction="items", family="sequence", year=2025, properties="zero_at_teacher shift_invariant",
    confidence="C", paper="after Li et al.: Delayed-KD: Delayed Knowledge Distillation based CTC for Low-Latency "
    "Streaming ASR",
)  # fmt: skip
def delayed_kd(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"], item: Int[Tensor, " n"], items: int,
    *, delay: Annotated[int, Field(ge=0)] = 4, over: Literal["least", "mean"] = "least", temperature: Positive = 1.0,
) -> Values:  # fmt: skip
    """``min_d mean_t T^2 KL(softmax(teacher_t/T) || softmax(student_t+d/T))`` over the delays d = 0, ..., `delay`.

    Frames of a student that hears little of the future may say late what the teacher says, by one delay for an
    utterance, and no later than the window allows: what is behind the end is left out. The abstract of the paper names
    the window and not how its delays are put together. As in `kd` an utterance counts by its frames.

    Args:
        delay: the longest, in frames of the student.
        over: ``least`` takes the delay that suits an utterance best; ``mean`` all of them alike.
    """
    same_shape(student, teacher)
    frames = torch.bincount(item, minlength=items)
    log_p, log_q = (F.log_softmax(pad_rows(z, item, frames) / temperature, dim=-1) for z in (teacher, student))
    steps = log_p.shape[1]
    means, longest = [], min(delay, steps - 1)
    for late in range(longest + 1):
        p = log_p[:, : steps - late]
        rows = (p.exp() * (p - log_q[:, late:])).sum(dim=-1)
        compared = frames - late
        held = torch.arange(steps - late, device=item.device) < compared[:, None]
        mean = torch.where(held, rows, 0.0).sum(dim=1) / compared.clamp(min=1)
        means.append(torch.where(compared > 0, mean, torch.inf))
    by_delay = torch.stack(means)  # delays b
    if over == "least":
        value = by_delay.amin(dim=0)
    else:
        known = by_delay.isfinite()
        value = torch.where(known, by_delay, 0.0).sum(dim=0) / known.sum(dim=0).clamp(min=1)
    count = frames.to(value.dtype)
    return torch.where(frames > 0, temperature**2 * value * count, 0.0), count
