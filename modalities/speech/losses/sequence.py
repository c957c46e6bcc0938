"""Distillation of CTC models by what they say of whole sequences, and of frames as the blank allows it.

Teacher and student stand on one grid of frames. Unless it says otherwise, a loss counts frames as `kd` does, so that
the weights of the two compare.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from xmodal_kd.losses.base import Positive, item_sum, loss, same_shape

from .ctc import _check_labels, _repeats, pad_rows
from .occupancy import Labels, n_best, occupancy, sequence_nll

Count = Annotated[int, Field(ge=1)]
Frames = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
BlankRule = Literal["all", "eliminate", "keep", "trim", "threshold", "random"]
Values = tuple[Float[Tensor, " b"], Float[Tensor, " b"] | Bool[Tensor, " b"]]


@loss(
    "ctc_kd", reduction="items", family="sequence", year=2025, properties="zero_at_teacher shift_invariant",
    paper="Hilmes et al., 2025 (arXiv 2506.01503): knowledge distillation of CTC models by blank elimination",
)  # fmt: skip
def ctc_kd(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"], item: Int[Tensor, " n"], items: int,
    *, blanks: BlankRule = "keep", left: Frames = 1, right: Frames = 1, threshold: Share = 0.05,
    ratio: Annotated[float, Field(ge=0)] = 1.0, prior: tuple[Positive, ...] | None = None,
    prior_scale: Annotated[float, Field(ge=0)] = 0.3, temperature: Positive = 1.0, blank: int = 0,
) -> Values:  # fmt: skip
    """``T^2 KL(softmax(teacher/T) || softmax(student/T))`` over the frames that the blank rule keeps.

    A frame is blank where the blank is the teacher's most probable symbol, or with a `prior` that of the greatest
    ``log p(k) - prior_scale log prior(k)``. The mean runs over the frames kept; an utterance of which none is kept is
    not counted.

    Args:
        blanks: ``all`` keeps every frame (then it is `kd`); ``eliminate`` those that are not blank; ``keep`` also
            `left` frames before and `right` frames behind one of these, within its utterance; ``trim`` from the first
            to the last that is not blank; ``threshold`` also blank frames in which all other symbols together reach
            this probability; ``random`` also `ratio` times as many blank frames as there are others in the utterance,
            drawn anew in every step.
        prior: of each symbol, the blank included: the mean of the teacher's probabilities over its training frames. It
            moves what is blank, not what is taught, and nothing by ``threshold``.
    """
    same_shape(student, teacher)
    spoken = _spoken(teacher, prior if blanks != "threshold" else None, prior_scale, blank)
    if blanks == "random":
        kept = spoken | _drawn(spoken, item, items, ratio, torch.rand(len(item), device=item.device))
    else:
        kept = _kept(spoken, teacher, item, items, blanks, left, right, threshold, blank)
    log_p, log_q = (F.log_softmax(z / temperature, dim=-1) for z in (teacher, student))
    values = temperature**2 * _kl(log_p.exp(), log_q)
    return item_sum(torch.where(kept, values, 0.0), item, items), item_sum(kept.to(values.dtype), item, items)


def _spoken(teacher: Tensor, prior: tuple[float, ...] | None, scale: float, blank: int) -> Tensor:
    """``(n,)`` bool, the frames that are not blank."""
    if prior is None:
        return teacher.argmax(dim=-1) != blank
    if len(prior) != teacher.shape[1]:
        raise ValueError(
            f"ctc_kd: prior has {len(prior)} numbers, and there are {teacher.shape[1]} symbols: give each one"
        )
    return (teacher - scale * teacher.new_tensor(prior).log()).argmax(dim=-1) != blank


def _drawn(spoken: Tensor, item: Tensor, items: int, ratio: float, numbers: Tensor) -> Tensor:
    """``(n,)`` bool: of each utterance's blank frames `ratio` times as many as it has others, of the least numbers.

    Args:
        numbers: ``(n,)``, one a frame.
    """
    wanted = (ratio * torch.bincount(item[spoken], minlength=items)).round()  # half to even, as the release does
    blanks = (~spoken).nonzero()[:, 0]
    blanks = blanks[numbers[blanks].argsort()]
    blanks = blanks[item[blanks].argsort(stable=True)]  # utterance behind utterance, the least number first
    there = torch.bincount(item[blanks], minlength=items)
    place = torch.arange(len(blanks), device=item.device) - (there.cumsum(0) - there)[item[blanks]]
    return torch.zeros_like(spoken).index_fill(0, blanks[place < wanted[item[blanks]]], True)


def _kept(
    spoken: Tensor, teacher: Tensor, item: Tensor, items: int, rule: BlankRule, left: int, right: int,
    threshold: float, blank: int,
) -> Tensor:  # fmt: skip
    """``(n,)`` bool, the frames that a blank rule without chance keeps."""
    if rule == "all":
        return torch.ones_like(spoken)
    if rule == "threshold":
        return spoken | (1 - torch.softmax(teacher, dim=-1)[:, blank] >= threshold)
    if rule == "eliminate":
        return spoken
    frames = torch.bincount(item, minlength=items)
    padded = pad_rows(spoken[:, None].float(), item, frames)[..., 0]  # b t, 0 behind an utterance's end
    if rule == "trim":
        after = padded.cummax(dim=1).values
        before = padded.flip(1).cummax(dim=1).values.flip(1)
        near = after * before
    else:
        near = F.max_pool1d(F.pad(padded, (right, left))[:, None], left + right + 1, stride=1)[:, 0]
    position = torch.arange(len(item), device=item.device) - (frames.cumsum(0) - frames)[item]
    return near[item, position] > 0


@loss(
    "guided_ctc", reduction="items", family="sequence", year=2019, properties="shift_invariant",
    paper="Kurata, Audhkhasi: Guiding CTC Posterior Spike Timings for Improved Posterior Fusion and Knowledge "
    "Distillation",
)  # fmt: skip
def guided_ctc(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"], item: Int[Tensor, " n"], items: int,
    *, blank: int = 0,
) -> Values:  # fmt: skip
    """``1 - p_student(k)`` in each frame in which the teacher's most probable symbol k is no blank.

    It makes the student's spikes stand where the teacher's do, so that their posteriors may be compared or averaged
    frame by frame; to be added to `ctc`. The paper subtracts the sum of the student's probabilities in these frames:
    the same but for a constant and for the mean over spikes, which makes its size independent of how much is said.
    """
    same_shape(student, teacher)
    best = teacher.argmax(dim=-1)
    spoken = (best != blank).to(student.dtype)
    said = torch.softmax(student, dim=-1).gather(1, best[:, None])[:, 0]
    return item_sum(spoken * (1 - said), item, items), item_sum(spoken, item, items)


@loss(
    "nbest_kd", reduction="items", family="sequence", year=2018, properties="shift_invariant",
    paper="Takashima, Li, Kawai: An Investigation of a Knowledge Distillation Method for CTC Acoustic Models",
)  # fmt: skip
def nbest_kd(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"], item: Int[Tensor, " n"], items: int,
    *, n: Count = 4, beam: Count = 8, temperature: Positive = 1.0, min_confidence: Share = 0.0, blank: int = 0,
) -> Values:  # fmt: skip
    """``sum_l w(l) (-log P_student(l))`` over the teacher's N best sequences, per label of the best one.

    ``w(l)`` is proportional to ``P_teacher(l)^(1/T)``, by the full sum over its paths and not by the beam's score, over
    the sequences found. Frames need not agree: only what is said does. With ``n: 1`` it is CTC on pseudo-labels
    (Kim and Rush, 2016). Needs no transcript. As in `ctc` each utterance counts once.

    Args:
        beam: prefixes that the teacher's search keeps.
        min_confidence: an utterance whose best sequence has a smaller geometric mean of probability by frame is left
            out.
    """
    same_shape(student, teacher)
    frames = torch.bincount(item, minlength=items)
    theirs = pad_rows(teacher, item, frames)
    found, owner, flat, score = _hypotheses(theirs, frames, n, beam, blank)
    weight = _weights(score / temperature, owner, items)
    counted = _sure(found, score, owner, frames, min_confidence)
    nll = sequence_nll(pad_rows(student, item, frames)[owner], frames[owner], flat, blank)
    longest = torch.tensor([max(len(hypotheses[0]), 1) for hypotheses in found], device=item.device)
    # weight 0 times an infinite length of an impossible sequence would be NaN
    values = item_sum(torch.where(counted[owner] & (weight > 0), weight * nll, 0.0), owner, items)
    return values / longest, counted


def _hypotheses(
    teacher: Tensor, frames: Tensor, n: int, beam: int, blank: int
) -> tuple[list[list[Labels]], Tensor, list[Labels], Tensor]:
    """The N best sequences of each item; item, labels and full log-probability of every one."""
    found = n_best(teacher, frames, n, max(n, beam), blank)
    owner = torch.tensor([i for i, hypotheses in enumerate(found) for _ in hypotheses], device=frames.device)
    flat = [labels for hypotheses in found for labels in hypotheses]
    return found, owner, flat, -sequence_nll(teacher[owner], frames[owner], flat, blank)


def _weights(scores: Tensor, owner: Tensor, items: int) -> Tensor:
    """Softmax of the scores of each item."""
    highest = scores.new_full((items,), -torch.inf).scatter_reduce(0, owner, scores, "amax")
    part = (scores - highest[owner]).exp()
    return part / item_sum(part, owner, items)[owner]


def _sure(
    found: list[list[Labels]], score: Tensor, owner: Tensor, frames: Tensor, least: float
) -> Bool[Tensor, " b"]:  # fmt: skip
    """The items that have frames and of whose best sequence the teacher is sure enough."""
    best = torch.full((len(found),), -torch.inf, dtype=score.dtype, device=score.device)
    best = best.scatter_reduce(0, owner, score, "amax")
    return (frames > 0) & ((best / frames.clamp(min=1)).exp() >= least)


@loss(
    "ctc_occupancy", reduction="items", family="sequence", year=2018, needs="logits labels",
    paper="Huang et al.: Knowledge Distillation for Sequence Model", properties="shift_invariant",
)  # fmt: skip
def ctc_occupancy(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"], item: Int[Tensor, " n"], items: int,
    labels: Int[Tensor, " m"], label_item: Int[Tensor, " m"], *, temperature: Positive = 1.0, blank: int = 0,
) -> Values:  # fmt: skip
    """``KL(gamma_teacher || softmax(student))`` of each frame, gamma being the teacher's alignment of the transcript.

    ``gamma(t, k)``, by CTC's forward-backward, is the probability that frame t says k given that the utterance says
    its transcript: what the teacher knows of *when*, corrected by what is known of *what*. An utterance whose
    transcript has no path is not counted.

    Args:
        temperature: of the teacher, before its alignment.
    """
    same_shape(student, teacher)
    _check_labels(labels, student.shape[-1], blank)
    frames, tokens = torch.bincount(item, minlength=items), torch.bincount(label_item, minlength=items)
    counted = frames >= (tokens + _repeats(labels, label_item, items)).clamp(min=1)
    targets = [tuple(one.tolist()) for one in labels.split(tokens.tolist())]
    gamma = occupancy(pad_rows(teacher, item, frames) / temperature, frames, targets, blank)
    return _against(gamma, student, item, items, counted)


@loss(
    "lattice_occupancy", reduction="items", family="sequence", year=2019, properties="shift_invariant",
    confidence="C", paper="after Takashima, Sheng, Kawai: Investigation of Sequence-level Knowledge Distillation "
    "Methods for CTC Acoustic Models",
)  # fmt: skip
def lattice_occupancy(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"], item: Int[Tensor, " n"], items: int,
    *, n: Count = 4, beam: Count = 8, temperature: Positive = 1.0, blank: int = 0,
) -> Values:  # fmt: skip
    """``KL(gamma || softmax(student))`` of each frame, gamma over all alignments of the teacher's N best sequences.

    ``gamma = sum_l w(l) gamma_l`` with the weights of `nbest_kd` and each sequence's own alignment. The paper distils
    lattices; here the pruned lattice is what the N best sequences span, and the loss is the upper bound of its
    cross-entropy between sequences that takes alignments for what is compared. Needs no transcript.
    """
    same_shape(student, teacher)
    frames = torch.bincount(item, minlength=items)
    theirs = pad_rows(teacher, item, frames)
    _, owner, flat, score = _hypotheses(theirs, frames, n, beam, blank)
    weight = _weights(score / temperature, owner, items)
    each = occupancy(theirs[owner], frames[owner], flat, blank)
    gamma = item_sum(weight[:, None, None] * each, owner, items)
    return _against(gamma, student, item, items, frames > 0)


def _against(gamma: Tensor, student: Tensor, item: Tensor, items: int, counted: Tensor) -> Values:
    """Sums and numbers of frames of ``KL(gamma || student)``, of the items that count."""
    frames = torch.bincount(item, minlength=items)
    position = torch.arange(len(item), device=item.device) - (frames.cumsum(0) - frames)[item]
    values = _kl(gamma[item, position], F.log_softmax(student, dim=-1))
    kept = counted[item]
    return item_sum(torch.where(kept, values, 0.0), item, items), item_sum(kept.to(values.dtype), item, items)


def _kl(p: Tensor, log_q: Tensor) -> Tensor:
    """``KL(p || q)`` of each row; a symbol of probability 0 adds nothing, whatever `log_q` says of it."""
    cross = torch.where(p > 0, p * log_q, 0.0)
    return (torch.xlogy(p, p) - cross).sum(dim=-1)
