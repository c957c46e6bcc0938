"""Sequence-level losses equal oracles that enumerate all paths, by somebody who had not seen the losses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracles import ctc_sequence as oracle

from xmodal_kd.modalities.speech.losses.sequence import (
    ctc_kd,
    ctc_occupancy,
    guided_ctc,
    lattice_occupancy,
    nbest_kd,
)

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
