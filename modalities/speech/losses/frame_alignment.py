"""How frames of two rates meet: posteriors keep their spikes, features their mean, lengths a frame or two of play."""

from __future__ import annotations

import torch
from einops import rearrange, reduce
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from xmodal_kd.runtime.errors import UserError

from ..models.frames import frame_mask, masked


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


def pool_features(
    values: Float[Tensor, "b t c"], lengths: Int[Tensor, " b"], wanted: Int[Tensor, " b"]
) -> Float[Tensor, "b s c"]:
    """Features of any whole multiple of the wanted frame rate, averaged over each frame's valid share.

    Args:
        lengths: ``(b,)`` frames of the input that the features were computed from.
        wanted: ``(b,)`` frames of the grid.
    """
    steps, grid = values.shape[1], int(wanted.max())
    factor = -(-steps // grid)
    if factor == 1:
        return values
    valid = frame_mask((lengths * steps + int(lengths.max()) - 1) // int(lengths.max()), steps)
    padded = F.pad(values.masked_fill(~valid, 0.0), (0, 0, 0, -steps % factor))
    count = F.pad(valid.to(values.dtype), (0, 0, 0, -steps % factor))
    total = reduce(padded, "b (s f) c -> b s c", "sum", f=factor)
    return total / reduce(count, "b (s f) c -> b s c", "sum", f=factor).clamp(min=1)


def fit_frames(
    values: Float[Tensor, "b t c"], lengths: Int[Tensor, " b"], wanted: Int[Tensor, " b"], *, tolerance: int = 2
) -> Float[Tensor, "b u c"]:
    """`values` cut, or with its last frame repeated, to ``max(wanted)`` frames.

    Two front ends may round an utterance's end differently, by a frame or two.

    Raises:
        UserError: an utterance's length differs from the wanted one by more than `tolerance` frames.
    """
    worst = int((lengths - wanted).abs().argmax())
    has, wants = int(lengths[worst]), int(wanted[worst])
    if abs(has - wants) > tolerance:
        raise UserError(
            f"an utterance has {has} frames where {wants} are expected: the frame rates differ, "
            "give the model its true stride, or use a sequence-level loss"
        )
    steps = int(wanted.max())
    if values.shape[1] >= steps:
        return values[:, :steps]
    return torch.cat([values, values[:, -1:].expand(-1, steps - values.shape[1], -1)], dim=1)
