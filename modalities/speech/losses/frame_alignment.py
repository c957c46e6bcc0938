"""How frames of two rates meet: posteriors keep their spikes, features their mean, lengths a frame or two of play."""

from __future__ import annotations

from fractions import Fraction

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


def regrid_posteriors(
    logits: Float[Tensor, "b t c"], lengths: Int[Tensor, " b"], ratio: Fraction, blank: int = 0
) -> tuple[Float[Tensor, "b s c"], Int[Tensor, " b"]]:
    """Posteriors of any frame rate on another grid, so that what they spell stays what it was.

    A frame belongs to the grid's frame that it overlaps most, which is where its middle lies. Where several meet they
    are pooled as by `pool_posteriors`. Where the grid is finer, what lies between two frames holds a label as far as
    both neighbours do and is blank else,

        p(k) = min(p_i(k), p_i+1(k)) for a label k,    p(blank) = 1 - sum of these,

    so a spike stays one frame wide and a label that is held is not cut in two.

    Args:
        ratio: what one of the frames lasts, in frames of the grid.

    Returns:
        log-probabilities (the logits themselves where the rates are equal) and the lengths on the grid.
    """
    if ratio == 1:
        return logits, lengths
    if ratio.numerator == 1:
        return pool_posteriors(logits, lengths, ratio.denominator, blank)
    logits = masked(logits if logits.dtype == torch.float64 else logits.float(), frame_mask(lengths, logits.shape[1]))
    log_p = F.log_softmax(logits, dim=-1)
    places = _places(log_p.shape[1], ratio, log_p.device)
    wanted = torch.where(lengths > 0, places[(lengths - 1).clamp(min=0)] + 1, 0)
    if ratio < 1:
        return _pooled(log_p, lengths, places, blank), wanted
    wanted = torch.maximum(wanted, lengths * ratio.numerator // ratio.denominator)
    return _spread(log_p, lengths, places, int(wanted.max()), blank), wanted


def _places(steps: int, ratio: Fraction, device: torch.device) -> Tensor:
    """``(t,)`` the grid's frame in which the middle of each frame lies."""
    return (2 * torch.arange(steps, device=device) + 1) * ratio.numerator // (2 * ratio.denominator)


def _pooled(log_p: Tensor, lengths: Tensor, places: Tensor, blank: int) -> Tensor:
    """Frames that share a place: maximum of labels, minimum of the blank, renormalised."""
    b, t, c = log_p.shape
    valid = frame_mask(lengths, t)
    index = places[None, :, None].expand(b, t, c)
    empty = log_p.new_zeros(b, int(places[-1]) + 1, c)
    highest = empty.scatter_reduce(1, index, log_p.masked_fill(~valid, -torch.inf), "amax", include_self=False)
    lowest = empty.scatter_reduce(1, index, log_p.masked_fill(~valid, torch.inf), "amin", include_self=False)
    pooled = torch.where(torch.arange(c, device=log_p.device) == blank, lowest, highest)
    held = torch.zeros(b, empty.shape[1], dtype=torch.int64, device=log_p.device)
    held = held.index_add(1, places, valid[..., 0].long())
    return F.log_softmax(pooled.masked_fill(held[..., None] == 0, 0.0), dim=-1)


def _spread(log_p: Tensor, lengths: Tensor, places: Tensor, steps: int, blank: int) -> Tensor:
    """Frames apart on a finer grid, and between two of them what both say."""
    grid = torch.arange(steps, device=log_p.device)
    before = (torch.searchsorted(places, grid, right=True) - 1).clamp(min=0)  # the last frame at or before each place
    last = (lengths - 1).clamp(min=0)[:, None]
    at = torch.minimum(before[None], last)  # b s
    nearby = torch.minimum(at + 1, last)
    here, there = (log_p.take_along_dim(index[..., None], dim=1) for index in (at, nearby))
    is_blank = torch.arange(log_p.shape[-1], device=log_p.device) == blank
    both = torch.minimum(here, there).masked_fill(is_blank, -torch.inf)
    rest = (1 - both.exp().sum(dim=-1, keepdim=True)).clamp(min=torch.finfo(log_p.dtype).tiny).log()
    between = torch.where(is_blank, rest, both)
    outside = (grid < places[0])[None] | (at == last)  # at the ends the frame itself
    own = (places[at] == grid[None]) | outside
    return torch.where(own[..., None], here, between)


def regrid_features(
    values: Float[Tensor, "b t c"], lengths: Int[Tensor, " b"], ratio: Fraction
) -> tuple[Float[Tensor, "b s c"], Int[Tensor, " b"]]:
    """Features of any frame rate on another grid: the mean of the frames that share a place, the nearest in between.

    Args:
        ratio: what one of the frames lasts, in frames of the grid.
    """
    if ratio == 1:
        return values, lengths
    b, t, c = values.shape
    places = _places(t, ratio, values.device)
    wanted = torch.where(lengths > 0, places[(lengths - 1).clamp(min=0)] + 1, 0)
    if ratio > 1:
        wanted = torch.maximum(wanted, lengths * ratio.numerator // ratio.denominator)
        grid = torch.arange(int(wanted.max()), device=values.device)
        nearest = (2 * grid + 1) * ratio.denominator // (2 * ratio.numerator)
        at = torch.minimum(nearest[None], (lengths - 1).clamp(min=0)[:, None])
        return values.take_along_dim(at[..., None], dim=1), wanted
    valid = frame_mask(lengths, t)
    empty = values.new_zeros(b, int(places[-1]) + 1, c)
    total = empty.index_add(1, places, values.masked_fill(~valid, 0.0))
    count = empty[..., :1].index_add(1, places, valid.to(values.dtype))
    return total / count.clamp(min=1), wanted


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
