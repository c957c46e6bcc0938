"""The enumerated CTC quantities: against torch's own CTC, against derivations, and by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from oracles import ctc
from oracles import ctc_sequence as oracle
from oracles.maths import Array

SHAPES = [(4, 3, [1, 2]), (5, 3, [1, 1]), (4, 3, [2]), (3, 4, [3, 1]), (3, 2, [])]


def logits(frames: int, symbols: int, seed: int) -> Array:
    return 2 * np.random.default_rng(seed).normal(size=(frames, symbols))


def log_probs(frames: int, symbols: int, seed: int) -> Array:
    return oracle.log_softmax_rows(logits(frames, symbols, seed))


def at_logits(function: Callable[[Array], float], z: Array) -> Array:
    """Gradient at the student's logits."""
    return oracle.gradient(lambda point: function(oracle.log_softmax_rows(point)), z)


def close(got: Array, expected: Array) -> None:
    np.testing.assert_allclose(got, expected, atol=1e-8)


@pytest.mark.parametrize("blank", [0, 2])
@pytest.mark.parametrize(("frames", "symbols"), [(1, 3), (4, 3), (6, 3), (5, 4)])
def test_all_label_sequences_share_one(frames: int, symbols: int, blank: int) -> None:
    table = log_probs(frames, symbols, 0)
    listed = oracle.n_best(table, 10_000, blank)
    assert sum(math.exp(score) for _, score in listed) == pytest.approx(1, rel=1e-12)
    assert all(blank not in labels for labels, _ in listed)
    assert [score for _, score in listed] == sorted((score for _, score in listed), reverse=True)
    assert all(score == oracle.full_score(table, labels, blank) for labels, score in listed[:5])
    assert oracle.n_best(table, 2, blank) == listed[:2]


@pytest.mark.parametrize(("frames", "symbols", "target"), SHAPES)
def test_the_loss_and_its_gradient_are_torch_s(frames: int, symbols: int, target: list[int]) -> None:
    z = logits(frames, symbols, 1)
    tensor = torch.tensor(z, requires_grad=True)
    sizes = torch.tensor([frames]), torch.tensor([len(target)])
    labels = torch.tensor([target], dtype=torch.long)
    loss = torch.nn.functional.ctc_loss(tensor.log_softmax(-1)[:, None], labels, *sizes, reduction="sum")
    loss.backward()
    assert oracle.ctc_loss(oracle.log_softmax_rows(z), target) == pytest.approx(loss.item(), rel=1e-12)
    close(at_logits(lambda table: oracle.ctc_loss(table, target), z), tensor.grad.numpy())


def test_what_too_few_frames_cannot_spell() -> None:
    assert oracle.ctc_loss(log_probs(2, 3, 0), [1, 1]) == math.inf
    with pytest.raises(ValueError, match="2 frames"):
        oracle.occupancy(log_probs(2, 3, 0), [1, 1])


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_sequence_kd_pulls_the_softmax_to_the_mean_occupancy(temperature: float) -> None:
    """Its gradient at the logits is y_s - sum_n q_n gamma_s(y_n): the student's own occupancies, the teacher's q."""
    z, teacher = logits(4, 3, 2), log_probs(4, 3, 3)
    targets = [labels for labels, _ in oracle.n_best(teacher, 4)]
    q = oracle.sequence_weights(teacher, targets, temperature)
    assert sum(q) == pytest.approx(1) and list(q) == sorted(q, reverse=True)
    student = oracle.log_softmax_rows(z)
    gamma = sum(w * oracle.occupancy(student, y) for w, y in zip(q, targets, strict=True))
    close(at_logits(lambda s: oracle.sequence_kd(s, teacher, targets, temperature), z), np.exp(student) - gamma)


def test_temperature_of_the_hypotheses_by_hand() -> None:
    """One frame: sequences are symbols, so P is (1/2, 1/4, 1/4), to the power 1/2 (sqrt 2, 1, 1)."""
    teacher = np.log([[0.5, 0.25, 0.25]])
    targets: list[list[int]] = [[], [1], [2]]
    np.testing.assert_allclose(oracle.sequence_weights(teacher, targets), [0.5, 0.25, 0.25])
    root = math.sqrt(2)
    np.testing.assert_allclose(oracle.sequence_weights(teacher, targets, 2.0), np.array([root, 1, 1]) / (2 + root))
    np.testing.assert_allclose(oracle.sequence_weights(teacher, targets[:2]), [2 / 3, 1 / 3])
    assert oracle.sequence_kd(np.log([[0.2, 0.4, 0.4]]), teacher, targets[:2]) == pytest.approx(
        2 / 3 * math.log(5) + 1 / 3 * math.log(2.5)
    )


@pytest.mark.parametrize(("frames", "symbols", "target"), SHAPES)
def test_occupancies_of_frames_and_of_paths(frames: int, symbols: int, target: list[int]) -> None:
    """Gradients: y_s - gamma_t of the simple form, gamma_s - gamma_t of the paths' KL; all least at the teacher."""
    z, teacher = logits(frames, symbols, 4), log_probs(frames, symbols, 5)
    student = oracle.log_softmax_rows(z)
    gamma_t, gamma_s = oracle.occupancy(teacher, target), oracle.occupancy(student, target)
    close(at_logits(lambda s: oracle.occupancy_to_softmax(s, gamma_t), z), np.exp(student) - gamma_t)
    close(at_logits(lambda s: oracle.path_kl(s, teacher, target), z), gamma_s - gamma_t)
    assert oracle.occupancy_kl(teacher, teacher, target) == pytest.approx(0, abs=1e-12)
    assert oracle.path_kl(teacher, teacher, target) == pytest.approx(0, abs=1e-12)
    # of frames: less than of paths, which know more, for each frame alone
    assert (
        -1e-12
        <= oracle.occupancy_kl(student, teacher, target)
        <= frames * oracle.path_kl(student, teacher, target) + 1e-12
    )


def test_the_frames_kl_has_a_gradient_of_its_own() -> None:
    """d / d l(u, j) is T gamma_s(u, j) - sum_tk gamma_t(t, k) P_s(j at u | k at t, target), not gamma_s - gamma_t."""
    target = [1, 2]
    student, teacher = log_probs(4, 3, 6), log_probs(4, 3, 7)
    gamma_t, gamma_s = oracle.occupancy(teacher, target), oracle.occupancy(student, target)
    expected = len(student) * gamma_s
    for path, score in ctc.paths(student):
        if ctc.collapse(path) == tuple(target):
            share = math.exp(score + oracle.ctc_loss(student, target))
            pull = sum(gamma_t[t, k] / gamma_s[t, k] for t, k in enumerate(path))
            for u, j in enumerate(path):
                expected[u, j] -= share * pull
    got = oracle.gradient(lambda s: oracle.occupancy_kl(s, teacher, target), student)
    close(got, expected)
    assert np.abs(got - (gamma_s - gamma_t)).max() > 0.05


def test_the_lattice_of_all_sequences_is_the_softmax() -> None:
    teacher = log_probs(4, 3, 8)
    every = [labels for labels, _ in oracle.n_best(teacher, 10_000)]
    close(oracle.lattice_occupancy(teacher, every), np.exp(teacher))
    close(oracle.lattice_occupancy(teacher, [[1, 2]]), oracle.occupancy(teacher, [1, 2]))
    two = oracle.lattice_occupancy(teacher, every[:2])
    np.testing.assert_allclose(two.sum(axis=1), 1)


def test_guided_ctc_by_hand() -> None:
    """Spikes: symbol 2 in frame 1 and symbol 1 in frame 2; a tie with the blank, and the blank itself, are none."""
    teacher = np.log([[0.4, 0.4, 0.2], [0.2, 0.3, 0.5], [0.3, 0.6, 0.1], [0.9, 0.05, 0.05]])
    student = np.log([[0.1, 0.8, 0.1], [0.3, 0.3, 0.4], [0.5, 0.25, 0.25], [0.2, 0.4, 0.4]])
    assert oracle.spikes(teacher) == [(1, 2), (2, 1)]
    assert oracle.guided_ctc(student, teacher) == pytest.approx(-0.65)
    z = np.array(student)
    mask = np.zeros_like(student)
    mask[1, 2] = mask[2, 1] = 1
    p = np.exp(student)
    close(at_logits(lambda s: oracle.guided_ctc(s, teacher), z), -p * (mask - (p * mask).sum(1, keepdims=True)))


def test_consistency_moves_a_view_by_half_the_difference() -> None:
    """With the other view held, d / d logits of a is (a - b) / 2; the value alone is the symmetric KL halved."""
    z, b = logits(3, 3, 9), log_probs(3, 3, 10)
    a = oracle.log_softmax_rows(z)
    close(at_logits(lambda s: oracle.consistency(s, b, held_a=a), z), (np.exp(a) - np.exp(b)) / 2)
    assert oracle.consistency(a, b) == pytest.approx(oracle.consistency(b, a))
    even, odd = np.log([[0.5, 0.5]] * 2), np.log([[0.2, 0.8]] * 2)
    assert oracle.consistency(even, odd) == pytest.approx(0.3 * math.log(4))
    both = 0.5 * (oracle.ctc_loss(even, [1]) + oracle.ctc_loss(odd, [1]))
    assert oracle.cr_ctc(even, odd, [1]) == pytest.approx(both + 0.2 * 0.3 * math.log(4))
    assert oracle.cr_ctc(even, even, [1]) == pytest.approx(-math.log(0.75))


def test_inter_ctc_by_hand() -> None:
    """Losses -log 3/4 of even odds and -log 0.96 of (0.2, 0.8): all but two blanks spell the label."""
    even, odd = np.log([[0.5, 0.5]] * 2), np.log([[0.2, 0.8]] * 2)
    got = oracle.inter_ctc(even, [odd, even], [1], weight=0.25)
    assert got == pytest.approx(-0.75 * math.log(0.75) - 0.25 * (math.log(0.75) + math.log(0.96)) / 2)


def test_rules_of_the_blank_by_hand() -> None:
    blank, weak, spike = [0.95, 0.05], [0.7, 0.3], [0.1, 0.9]
    teacher = np.log([blank, blank, spike, weak, blank, blank, spike, blank])
    kept = {
        "all": [1, 1, 1, 1, 1, 1, 1, 1],
        "eliminate": [0, 0, 1, 0, 0, 0, 1, 0],
        "neighbours": [0, 1, 1, 1, 0, 1, 1, 1],
        "trim": [0, 0, 1, 1, 1, 1, 1, 0],
        "threshold": [0, 0, 1, 1, 0, 0, 1, 0],
    }
    assert {rule: [int(x) for x in oracle.frames_kept(teacher, rule)] for rule in kept} == kept
    uneven = oracle.frames_kept(teacher, "neighbours", left=0, right=3)
    assert [int(x) for x in uneven] == [0, 0, 1, 1, 1, 1, 1, 1]
    silence = teacher[:2]
    assert [sum(oracle.frames_kept(silence, rule)) for rule in kept] == [2, 0, 0, 0, 0]
    with pytest.raises(ValueError, match="no rule"):
        oracle.frames_kept(teacher, "often")


def test_frame_kd_counts_kept_frames_only() -> None:
    even, odd = np.log([[0.5, 0.5]] * 3), np.log([[0.2, 0.8]] * 3)
    against = 0.2 * math.log(0.4) + 0.8 * math.log(1.6)
    np.testing.assert_allclose(oracle.frame_kd(even, odd, [True, False, True]), [against, 0, against])
    # (1/17, 16/17) of odds squared at T = 1/2
    at_half = 0.25 * (math.log(2 / 17) / 17 + 16 / 17 * math.log(32 / 17))
    np.testing.assert_allclose(oracle.frame_kd(even, odd, [False, True, False], 0.5), [0, at_half, 0])
