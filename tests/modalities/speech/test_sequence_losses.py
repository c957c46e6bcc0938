"""Sequence-level losses against the enumeration of all paths, in value and gradient, and by what they must satisfy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from oracles import ctc as oracle
from torch import Tensor

from xmodal_kd.losses.base import LOSSES
from xmodal_kd.losses.logits import kd
from xmodal_kd.modalities.speech.losses.occupancy import n_best, occupancy, sequence_nll
from xmodal_kd.modalities.speech.losses.sequence import (
    ctc_kd,
    ctc_occupancy,
    guided_ctc,
    lattice_occupancy,
    nbest_kd,
)

FRAMES, SYMBOLS = [4, 1, 3, 5], 3
TARGETS = [(1, 2), (2,), (), (1, 1)]
ALL = 200


def rows(seed: int = 0, scale: float = 1.5) -> tuple[Tensor, Tensor, Tensor, int]:
    """Student, teacher, item and number of items."""
    rng = torch.Generator().manual_seed(seed)
    n = sum(FRAMES)
    student, teacher = (scale * torch.randn(n, SYMBOLS, generator=rng, dtype=torch.float64) for _ in range(2))
    return student, teacher, torch.arange(len(FRAMES)).repeat_interleave(torch.tensor(FRAMES)), len(FRAMES)


def labels() -> tuple[Tensor, Tensor]:
    flat = torch.tensor([k for target in TARGETS for k in target])
    return flat, torch.arange(len(TARGETS)).repeat_interleave(torch.tensor([len(t) for t in TARGETS]))


def tables(z: Tensor) -> list[np.ndarray]:
    return [one.log_softmax(dim=-1).numpy() for one in z.detach().split(FRAMES)]


def best(log_q: np.ndarray, blank: int = 0) -> list[tuple[tuple[int, ...], float]]:
    """Every sequence with its log-probability, the most probable first."""
    return sorted(oracle.sequences(log_q, blank).items(), key=lambda pair: -pair[1])


def weighted(log_q: np.ndarray, n: int, temperature: float = 1.0) -> list[tuple[tuple[int, ...], float]]:
    """The n best sequences and their weights."""
    found = best(log_q)[:n]
    scores = np.array([score for _, score in found]) / temperature
    shares = np.exp(scores - np.logaddexp.reduce(scores))
    return [(sequence, float(share)) for (sequence, _), share in zip(found, shares, strict=True)]


def kl(gamma: np.ndarray, log_p: np.ndarray) -> float:
    held = gamma > 0
    return float((gamma[held] * (np.log(gamma[held]) - log_p[held])).sum())


# ---------------------------------------------------------------- what they are made of


@pytest.mark.parametrize("blank", [0, 2])
def test_probability_and_occupancy_are_those_of_all_paths(blank: int) -> None:
    _, teacher, _, _ = rows()
    for frames, z in zip(FRAMES, teacher.split(FRAMES), strict=True):
        log_q = z.log_softmax(dim=-1).numpy()
        for sequence, score in oracle.sequences(log_q, blank).items():
            count = torch.tensor([frames])
            torch.testing.assert_close(
                float(sequence_nll(z[None], count, [sequence], blank)), -score, rtol=1e-9, atol=1e-9
            )
            gamma = occupancy(z[None], count, [sequence], blank)[0]
            np.testing.assert_allclose(gamma, oracle.occupancy(log_q, sequence, blank), atol=1e-9)
    assert math.isinf(float(sequence_nll(teacher[None, :2], torch.tensor([2]), [(1, 1)], 0)))


@pytest.mark.parametrize("blank", [0, 2])
def test_a_wide_beam_finds_the_best_sequences_in_order(blank: int) -> None:
    _, teacher, _, _ = rows()
    padded = torch.nn.utils.rnn.pad_sequence(teacher.split(FRAMES), batch_first=True, padding_value=math.nan)
    found = n_best(padded, torch.tensor(FRAMES), 5, ALL, blank)
    for z, sequences in zip(teacher.split(FRAMES), found, strict=True):
        assert sequences == [sequence for sequence, _ in best(z.log_softmax(dim=-1).numpy(), blank)[:5]]


def test_a_narrow_beam_is_the_plain_prefix_search() -> None:
    torch.manual_seed(3)
    z = 2 * torch.randn(1, 6, 4, dtype=torch.float64)
    expected = oracle.prefix_beam_search(z[0].log_softmax(dim=-1).numpy(), beam=4)
    assert n_best(z, torch.tensor([6]), 4, 4, 0)[0] == [sequence for sequence, _ in expected]


# ---------------------------------------------------------------- values


@pytest.mark.parametrize("n, temperature", [(1, 1.0), (3, 1.0), (3, 2.0), (ALL, 1.0)])
def test_nbest_is_the_weighted_sum_over_all_paths(n: int, temperature: float) -> None:
    student, teacher, item, items = rows()
    values, counted = nbest_kd(student, teacher, item, items, n=n, beam=ALL, temperature=temperature)
    assert counted.all()
    for value, log_p, log_q in zip(values.tolist(), tables(student), tables(teacher), strict=True):
        found = weighted(log_q, n, temperature)
        expected = sum(share * oracle.nll(log_p, sequence) for sequence, share in found)
        assert value == pytest.approx(expected / max(len(found[0][0]), 1), rel=1e-9)


def test_occupancy_of_the_transcript_is_that_of_all_paths() -> None:
    student, teacher, item, items = rows()
    values, counts = ctc_occupancy(student, teacher, item, items, *labels(), temperature=1.5)
    assert counts.tolist() == [float(n) for n in FRAMES]
    for value, log_p, z, target in zip(values.tolist(), tables(student), teacher.split(FRAMES), TARGETS, strict=True):
        gamma = oracle.occupancy((z / 1.5).log_softmax(dim=-1).numpy(), target)
        assert value == pytest.approx(kl(gamma, log_p), rel=1e-8)


@pytest.mark.parametrize("n", [1, 3, ALL])
def test_occupancy_of_the_lattice_is_that_of_all_paths(n: int) -> None:
    student, teacher, item, items = rows()
    values, counts = lattice_occupancy(student, teacher, item, items, n=n, beam=ALL)
    assert counts.tolist() == [float(k) for k in FRAMES]
    for value, log_p, log_q in zip(values.tolist(), tables(student), tables(teacher), strict=True):
        gamma = sum(share * oracle.occupancy(log_q, sequence) for sequence, share in weighted(log_q, n))
        assert value == pytest.approx(kl(np.asarray(gamma), log_p), rel=1e-8)


def test_guided_is_what_the_student_lacks_at_the_teachers_spikes() -> None:
    student, teacher, item, items = rows()
    values, counts = guided_ctc(student, teacher, item, items)
    for value, count, log_p, log_q in zip(values, counts, tables(student), tables(teacher), strict=True):
        spikes = [(t, k) for t, k in enumerate(log_q.argmax(axis=1)) if k != 0]
        assert float(count) == len(spikes)
        assert float(value) == pytest.approx(sum(1 - math.exp(log_p[t, k]) for t, k in spikes), rel=1e-9, abs=1e-12)


PATHS = {  # of one utterance each, by the teacher's best symbols: which frames every rule keeps
    "0010200": {"all": "1111111", "eliminate": "0010100", "keep": "0111111", "trim": "0011100"},
    "0000": {"all": "1111", "eliminate": "0000", "keep": "0000", "trim": "0000"},
    "10000": {"all": "11111", "eliminate": "10000", "keep": "11100", "trim": "10000"},
    "00002": {"all": "11111", "eliminate": "00001", "keep": "00011", "trim": "00001"},
}


@pytest.mark.parametrize("rule", ["all", "eliminate", "keep", "trim"])
def test_blank_rules_keep_what_they_say_within_each_utterance(rule: Any) -> None:
    """Also where a spike stands at the border of two utterances: nothing is kept of a neighbour."""
    path = torch.tensor([int(k) for path in PATHS for k in path])
    kept = torch.tensor([c == "1" for rules in PATHS.values() for c in rules[rule]])
    item = torch.arange(len(PATHS)).repeat_interleave(torch.tensor([len(path) for path in PATHS]))
    torch.manual_seed(0)
    teacher = 3 * torch.nn.functional.one_hot(path, SYMBOLS).double() + 0.1 * torch.rand(len(path), SYMBOLS)
    student = torch.randn(len(path), SYMBOLS, dtype=torch.float64, requires_grad=True)
    values, counts = ctc_kd(student, teacher, item, len(PATHS), blanks=rule, left=1, right=2, temperature=2.0)
    expected = torch.where(kept, kd(student, teacher, temperature=2.0), 0.0)
    torch.testing.assert_close(values, torch.zeros(len(PATHS), dtype=torch.float64).index_add(0, item, expected))
    assert counts.tolist() == torch.bincount(item[kept], minlength=len(PATHS)).tolist()
    values.sum().backward()
    assert student.grad is not None and torch.equal(student.grad.abs().sum(dim=1) > 0, kept)


def test_threshold_keeps_blanks_that_are_not_sure() -> None:
    p = torch.tensor([[0.9, 0.06, 0.04], [0.96, 0.02, 0.02], [0.2, 0.7, 0.1]], dtype=torch.float64)
    item = torch.zeros(3, dtype=torch.int64)
    for threshold, count in ((0.05, 2), (0.0, 3), (0.2, 1)):
        _, counts = ctc_kd(torch.randn(3, 3), p.log(), item, 1, blanks="threshold", threshold=threshold)
        assert counts.tolist() == [count]


@pytest.mark.parametrize("beam", [1, 2, 4])
@pytest.mark.parametrize("blank", [0, 5])
def test_the_search_that_tries_few_symbols_finds_what_trying_all_finds(beam: int, blank: int) -> None:
    """Of 30 symbols in frames of all shapes, from certain to flat, with repeats."""
    rng = torch.Generator().manual_seed(beam)
    for scale in (0.5, 2.0, 6.0):
        z = scale * torch.randn(12, 30, generator=rng, dtype=torch.float64)
        z[4:9] = z[3] + 0.3 * torch.randn(5, 30, generator=rng, dtype=torch.float64)
        z[::3, blank] += 3
        log_p = z.log_softmax(dim=-1).clamp(min=-9.0).log_softmax(dim=-1)  # nothing is negligible
        expected = [labels for labels, _ in oracle.prefix_beam_search(log_p.numpy(), beam, blank)]
        assert n_best(log_p[None], torch.tensor([12]), beam, beam, blank)[0] == expected


# ---------------------------------------------------------------- gradients

Loss = Callable[[Tensor], Tensor]


def each() -> dict[str, Loss]:
    _, teacher, item, items = rows()
    return {
        "ctc_kd": lambda s: ctc_kd(s, teacher, item, items, temperature=2.0)[0],
        "guided_ctc": lambda s: guided_ctc(s, teacher, item, items)[0],
        "nbest_kd": lambda s: nbest_kd(s, teacher, item, items, n=3)[0],
        "ctc_occupancy": lambda s: ctc_occupancy(s, teacher, item, items, *labels())[0],
        "lattice_occupancy": lambda s: lattice_occupancy(s, teacher, item, items, n=3)[0],
    }


@pytest.mark.parametrize("name", each())
def test_gradients_by_differences(name: str) -> None:
    student, *_ = rows()
    assert torch.autograd.gradcheck(each()[name], student.requires_grad_())


def test_gradient_of_nbest_is_softmax_minus_what_all_paths_occupy() -> None:
    student, teacher, item, items = rows()
    student.requires_grad_()
    nbest_kd(student, teacher, item, items, n=3, beam=ALL)[0].sum().backward()
    assert student.grad is not None
    for gradient, log_p, log_q in zip(student.grad.split(FRAMES), tables(student), tables(teacher), strict=True):
        found = weighted(log_q, 3)
        gamma = sum(share * oracle.occupancy(log_p, sequence) for sequence, share in found)
        expected = (np.exp(log_p) - np.asarray(gamma)) / max(len(found[0][0]), 1)
        np.testing.assert_allclose(gradient.numpy(), expected, atol=1e-8)


# ---------------------------------------------------------------- what they must satisfy


def test_all_sequences_have_the_teacher_as_their_optimum() -> None:
    """The teacher is a frame-wise model itself: over all its sequences, no student is better than it."""
    _, teacher, item, items = rows()
    student = teacher.clone().requires_grad_()
    nbest_kd(student, teacher, item, items, n=ALL, beam=ALL)[0].sum().backward()
    assert student.grad is not None and float(student.grad.abs().max()) < 1e-6


def test_over_all_sequences_the_lattice_is_plain_frame_distillation() -> None:
    student, teacher, item, items = rows()
    values, _ = lattice_occupancy(student, teacher, item, items, n=ALL, beam=ALL)
    frames = kd(student, teacher, temperature=1.0)
    torch.testing.assert_close(values, torch.zeros(items, dtype=torch.float64).index_add(0, item, frames))
    values, counts = ctc_kd(student, teacher, item, items, blanks="all")
    torch.testing.assert_close(values, torch.zeros(items, dtype=torch.float64).index_add(0, item, frames))
    assert counts.tolist() == [float(n) for n in FRAMES]


@pytest.mark.parametrize("name", each())
def test_padding_symbols_that_it_does_not_know_and_empty_utterances(name: str) -> None:
    """A teacher without a symbol, and an item without rows: finite, and the empty one is not counted."""
    student, teacher, item, items = rows()
    teacher = teacher.clone()
    teacher[:, 2] = -math.inf
    given: list[Any] = [student.requires_grad_(), teacher, item + (item >= 2).long(), items + 1]
    if name == "ctc_occupancy":
        flat, owner = torch.tensor([1, 1, 1]), torch.tensor([0, 1, 4])
        given += [flat, owner]
    values, counted = LOSSES[name].fn(*given)
    assert torch.isfinite(values).all() and float(counted[2]) == 0 and float(values[2].detach()) == 0
    values.sum().backward()
    assert student.grad is not None and torch.isfinite(student.grad).all()


def test_a_transcript_without_a_path_is_not_counted() -> None:
    student, teacher, item, items = rows()
    flat, owner = torch.tensor([1, 1, 2, 1]), torch.tensor([0, 1, 1, 2])
    values, counted = ctc_occupancy(student.requires_grad_(), teacher, item, items, flat, owner)
    assert counted.tolist() == [4, 0, 3, 5] and float(values[1].detach()) == 0
    values.sum().backward()
    assert student.grad is not None and student.grad[4].abs().sum() == 0 and torch.isfinite(student.grad).all()


def test_unsure_sequences_are_left_out() -> None:
    student, teacher, item, items = rows()
    sure = [math.exp(best(log_q)[0][1] / len(log_q)) for log_q in tables(teacher)]
    least = sorted(sure)[1] + 1e-6
    _, counted = nbest_kd(student, teacher, item, items, n=1, beam=ALL, min_confidence=least)
    assert counted.tolist() == [s >= least for s in sure]


@pytest.mark.parametrize("name", ["ctc_kd", "nbest_kd", "ctc_occupancy", "lattice_occupancy"])
def test_a_free_student_learns_what_the_teacher_says(name: str) -> None:
    """A student of free frames, trained by the loss alone, comes to write what a peaked teacher writes."""
    torch.manual_seed(1)
    path = torch.tensor([0, 1, 0, 0, 2, 2, 0, 1, 1, 0, 1, 0])
    teacher = 4 * torch.nn.functional.one_hot(path, SYMBOLS).double() + 0.3 * torch.randn(12, SYMBOLS)
    item, said = torch.zeros(12, dtype=torch.int64), (1, 2, 1, 1)
    given = (torch.tensor(said), torch.zeros(4, dtype=torch.int64)) if name == "ctc_occupancy" else ()
    student = torch.zeros(12, SYMBOLS, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([student], lr=0.3)
    for _ in range(60):
        optimizer.zero_grad()
        LOSSES[name].fn(student, teacher, item, 1, *given)[0].sum().backward()
        optimizer.step()
    assert n_best(student[None], torch.tensor([12]), 1, 8, 0)[0][0] == said


@pytest.mark.parametrize("name", each())
def test_half_precision_is_computed_in_float32(name: str) -> None:
    student, teacher, item, items = rows()
    more = labels() if name == "ctc_occupancy" else ()
    values, _ = LOSSES[name].fn(student.bfloat16(), teacher.bfloat16(), item, items, *more)
    assert values.dtype == torch.float32
