"""Sequence-level losses equal oracles that enumerate all paths, by somebody who had not seen the losses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracles import ctc_sequence as oracle

from xmodal_kd.modalities.speech.losses.ctc import InterCtc, ctc, ctc_flat_start
from xmodal_kd.modalities.speech.losses.sequence import (
    ctc_kd,
    ctc_occupancy,
    guided_ctc,
    lattice_occupancy,
    nbest_kd,
)
from xmodal_kd.objective.objective import Objective
from xmodal_kd.recipe.recipe import Term
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.signals.signals import Layout, Signals

FRAMES, SYMBOLS, ALL = 4, 3, 200


@pytest.fixture(params=range(4))
def logits(request: pytest.FixtureRequest) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(request.param)
    student, teacher = (2 * torch.randn(FRAMES, SYMBOLS, generator=draw, dtype=torch.float64) for _ in range(2))
    return student, teacher


def table(logits: torch.Tensor) -> np.ndarray:
    return oracle.log_softmax_rows(logits.numpy())


ITEM = torch.zeros(FRAMES, dtype=torch.int64)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_nbest_kd(logits: tuple[torch.Tensor, torch.Tensor], n: int, temperature: float) -> None:
    """Per label of the best sequence, which the oracle leaves to its caller."""
    student, teacher = map(table, logits)
    targets = [labels for labels, _ in oracle.n_best(teacher, n)]
    expected = oracle.sequence_kd(student, teacher, targets, temperature) / max(len(targets[0]), 1)
    found, count = nbest_kd(*logits, ITEM, 1, n=n, beam=ALL, temperature=temperature)
    assert found.item() == pytest.approx(expected, rel=1e-9) and bool(count.item())


def test_lattice_occupancy(logits: tuple[torch.Tensor, torch.Tensor]) -> None:
    """KL, where the oracle has the cross-entropy: they differ by the entropy of gamma."""
    student, teacher = map(table, logits)
    gamma = oracle.lattice_occupancy(teacher, [labels for labels, _ in oracle.n_best(teacher, 3)])
    held = gamma[gamma > 0]
    expected = oracle.occupancy_to_softmax(student, gamma) + float(held @ np.log(held))
    found, count = lattice_occupancy(*logits, ITEM, 1, n=3, beam=ALL)
    assert found.item() == pytest.approx(expected, rel=1e-9) and float(count.item()) == FRAMES


@pytest.mark.parametrize("target", [[1], [1, 2], [2, 2]])
def test_ctc_occupancy(logits: tuple[torch.Tensor, torch.Tensor], target: list[int]) -> None:
    student, teacher = map(table, logits)
    gamma = oracle.occupancy(teacher, target)
    held = gamma[gamma > 0]
    expected = oracle.occupancy_to_softmax(student, gamma) + float(held @ np.log(held))
    labels = torch.tensor(target)
    found, _ = ctc_occupancy(*logits, ITEM, 1, labels, torch.zeros_like(labels))
    assert found.item() == pytest.approx(expected, rel=1e-9)


def test_guided_ctc(logits: tuple[torch.Tensor, torch.Tensor]) -> None:
    """``1 - p`` at each spike, where the statement subtracts p: apart by the number of spikes."""
    student, teacher = map(table, logits)
    spikes = oracle.spikes(teacher)
    found, count = guided_ctc(*logits, ITEM, 1)
    assert found.item() == pytest.approx(oracle.guided_ctc(student, teacher) + len(spikes), rel=1e-9, abs=1e-12)
    assert float(count.item()) == len(spikes)


@pytest.mark.parametrize(
    ("rule", "ours"),
    [("all", "all"), ("eliminate", "eliminate"), ("neighbours", "keep"), ("trim", "trim"), ("threshold", "threshold")],
)
def test_ctc_kd(logits: tuple[torch.Tensor, torch.Tensor], rule: str, ours: str) -> None:
    student, teacher = map(table, logits)
    kept = oracle.frames_kept(teacher, rule, left=1, right=1, threshold=0.2)
    expected = oracle.frame_kd(student, teacher, kept, 2.0).sum()
    found, count = ctc_kd(*logits, ITEM, 1, blanks=ours, left=1, right=1, threshold=0.2, temperature=2.0)  # type: ignore[arg-type]
    assert found.item() == pytest.approx(float(expected), rel=1e-9, abs=1e-12)
    assert float(count.item()) == sum(kept)


# ---------------------------------------------------------------- without a teacher


def said(z: torch.Tensor, target: list[int], **blocks: torch.Tensor) -> Signals:
    """What a student says of one utterance."""
    frames = Layout.padded("frame", torch.tensor([FRAMES]), FRAMES)
    out = Signals().add("logits", z, frames)
    for name, rows in blocks.items():
        out.add(name, rows, frames)
    return out.add("labels", torch.tensor(target), Layout.padded("token", torch.tensor([len(target)]), len(target)))


@pytest.mark.parametrize("target", [[1], [2, 1], [2, 2]])
def test_inter_ctc(logits: tuple[torch.Tensor, torch.Tensor], target: list[int]) -> None:
    """The mean over blocks, each by a head of its own; per label, as `ctc`, which the oracle leaves to its caller."""
    draw = torch.Generator().manual_seed(len(target))
    blocks = {name: torch.randn(FRAMES, 5, generator=draw, dtype=torch.float64) for name in ("block0", "block1")}
    student = said(logits[0], target, **blocks)
    terms = [Term(loss="ctc", weight=0.7), Term(loss="inter_ctc", on=("logits", "block*"), weight=0.3)]
    objective = Objective(terms).build(student, None, Streams(1))
    made = objective.terms[1].module
    assert isinstance(made, InterCtc)
    between = [table(head(rows).detach()) for head, rows in zip(made.heads, blocks.values(), strict=True)]
    expected = oracle.inter_ctc(table(logits[0]), between, target) / len(target)
    loss = objective(student).value()
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    loss.backward()
    assert all(head.weight.grad is not None and head.weight.grad.abs().sum() > 0 for head in made.heads)


def test_inter_ctc_without_a_block_is_refused(logits: tuple[torch.Tensor, torch.Tensor]) -> None:
    with pytest.raises(UserError, match="term 'inter_ctc': inter_ctc asks for the logits and at least one block"):
        Objective([Term(loss="inter_ctc", on=("logits",))]).build(said(logits[0], [1]), None, Streams(1))


@pytest.mark.parametrize("target", [[1], [2, 2]])
def test_two_views_by_ctc_and_kd_are_cr_ctc(logits: tuple[torch.Tensor, torch.Tensor], target: list[int]) -> None:
    """As `ddgsd` has them: twice the paper's loss, CTC a label and consistency a frame, which the oracle both sums."""
    views = [said(z.clone().requires_grad_(), target) for z in logits]
    labels, weight = len(target), 0.7
    objective = Objective([Term(loss="ctc"), Term(loss="kd", weight=weight, params={"temperature": 1.0})])
    found = objective(*views).value() + objective(*reversed(views)).value()
    one, other = map(table, logits)
    expected = 2 * oracle.cr_ctc(one, other, target, weight * labels / FRAMES) / labels
    assert found.item() == pytest.approx(expected, rel=1e-9)
    found.backward()
    held = one, other
    at_one = oracle.gradient(
        lambda z: 2 * (
            0.5 * oracle.ctc_loss(oracle.log_softmax_rows(z), target) / labels
            + weight / FRAMES * oracle.consistency(oracle.log_softmax_rows(z), other, *held)
        ),
        logits[0].numpy(),
    )  # fmt: skip
    np.testing.assert_allclose(views[0].rows("logits").grad.numpy(), at_one, atol=1e-7)


@pytest.mark.parametrize(("progress", "w"), [(0.0, 0.0), (0.1, 0.0), (0.15, 0.25), (0.3, 1.0), (0.9, 1.0)])
def test_a_flat_start_teaches_transcripts_spread_evenly_and_then_ctc(progress: float, w: float) -> None:
    """Seven frames of three labels, two of one, three of none, two of three, which no path spells."""
    spelled = [(7, [2, 1, 3], [2, 2, 2, 1, 1, 3, 3]), (2, [3], [3, 3]), (3, [], []), (2, [1, 2, 3], None)]
    frames = [count for count, _, _ in spelled]
    z = 2 * torch.randn(14, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    item = torch.arange(4).repeat_interleave(torch.tensor(frames))
    labels = torch.tensor([k for _, said, _ in spelled for k in said])
    owner = torch.arange(4).repeat_interleave(torch.tensor([len(said) for _, said, _ in spelled]))
    plain, counted = ctc(z, item, 4, labels, owner)
    values, counts = ctc_flat_start(z, item, 4, labels, owner, progress, hold=0.1, until=0.3)
    assert counts.tolist() == counted.tolist() == [True, True, True, False]
    for rows, (_, _, path), value, after in zip(z.split(frames), spelled, values, plain, strict=True):
        log_p = oracle.log_softmax_rows(rows.numpy())
        even = -sum(log_p[t, k] for t, k in enumerate(path)) / len(rows) if path else 0.0
        expected = 0.0 if path is None else (1 - w) * even + w * after.item()
        assert value.item() == pytest.approx(expected, rel=1e-9)
    z.requires_grad_()
    ctc_flat_start(z, item, 4, labels, owner, progress, hold=0.1, until=0.3)[0].sum().backward()
    assert z.grad is not None and torch.isfinite(z.grad).all() and not z.grad[12:].any()
