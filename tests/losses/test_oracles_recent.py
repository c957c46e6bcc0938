"""Oracles of recent losses on logits: values by hand, limits, and what a gradient should be."""

from __future__ import annotations

import math

import numpy as np
import pytest
from oracles import recent_logit_losses as recent
from oracles.ctc_sequence import gradient
from oracles.logit_losses import kd
from oracles.maths import Array

LOG = math.log
#: KL((0.2, 0.8) || (0.5, 0.5)), and the other way.
AGAINST_EVEN = 0.2 * LOG(0.4) + 0.8 * LOG(1.6)
FROM_EVEN = 0.5 * LOG(2.5) + 0.5 * LOG(0.625)
EVEN, ODD = np.array([[0.0, 0.0]]), np.array([[0.0, LOG(4)]])
RANDOM = np.random.default_rng(0).normal(size=(2, 4, 5))


def test_nkd_by_hand() -> None:
    """Label 0: p_t = 1/2, p_s = 1/4; of the others, (1/2, 1/2) against (1/3, 2/3), all at T = 2 in the second case."""
    student, teacher = np.array([[0.0, 0.0, LOG(2)]]), np.array([[LOG(2), 0.0, 0.0]])
    others = 0.5 * LOG(3) + 0.5 * LOG(1.5)
    assert recent.nkd(student, teacher, np.array([0])) == pytest.approx([0.5 * LOG(4) + 1.5 * others])
    # the label's term stays at T = 1: p_t = 4/6, p_s = 1/6
    got = recent.nkd(2 * student, 2 * teacher, np.array([0]), temperature=2.0, gamma=1.0)
    assert got == pytest.approx([4 / 6 * LOG(6) + 4 * others])


@pytest.mark.parametrize("ranks", ["log", "probability"])
def test_uskd_by_hand(ranks: str) -> None:
    """Labels' p of 1/2 and 1/4, so P = 1 +- 3/32. Ranks 1 to 4 as the classes stand: Z of the last three 6, 4, 3 / 13.

    The weak head says the same as the student, so both ways of ranking do.
    """
    student = np.log([[8.0, 4.0, 3.0, 1.0], [4.0, 5.0, 4.0, 3.0]])
    p = np.array([[8.0, 4.0, 3.0, 1.0], [4.0, 5.0, 4.0, 3.0]]) / 16
    labels = np.array([0, 0])
    target = recent.uskd(student, student, labels, beta=0.0, mu=0.0, ranks=ranks)
    assert target == pytest.approx([(1 + 3 / 32) * LOG(2), (1 - 3 / 32) * LOG(4)])
    others = recent.uskd(student[:1], student[:1], labels[:1], alpha=0.0, beta=1.0, mu=0.0, ranks=ranks)
    assert others == pytest.approx([-(6 * LOG(4 / 8) + 4 * LOG(3 / 8) + 3 * LOG(1 / 8)) / 13])
    weak = recent.uskd(student, student, labels, alpha=0.0, beta=0.0, mu=1.0, ranks=ranks)
    assert weak == pytest.approx(-(np.log(p) * [0.925, 0.025, 0.025, 0.025]).sum(1))


def test_the_two_rankings_of_uskd_differ() -> None:
    """Where student and weak head disagree: p / (1 - p(y)) is bounded, its logarithm is not."""
    student, weak = np.log([[0.5, 0.3, 0.19, 0.01]]), np.log([[0.4, 0.1, 0.1, 0.4]])
    by = [
        recent.uskd(student, weak, np.array([0]), alpha=0.0, beta=1.0, mu=0.0, ranks=ranks)[0]
        for ranks in ("log", "probability")
    ]
    q = np.log(np.array([0.3, 0.19, 0.01]) / 0.5)
    z_log, z_p = np.array([1 / 2, 1 / 3, 1 / 4]), np.array([1 / 2, 1 / 4, 1 / 3])
    assert by == pytest.approx([-np.sum(z_log / z_log.sum() * q), -np.sum(z_p / z_p.sum() * q)])


def test_ttm_tempers_the_teacher_alone() -> None:
    """Odds of 1 to 16 to the power 1/2; sum of roots (1 + 4) / sqrt 17."""
    teacher = np.array([[0.0, LOG(16)]])
    assert recent.ttm(EVEN, teacher, temperature=2.0) == pytest.approx([AGAINST_EVEN])
    assert recent.wttm(EVEN, teacher, temperature=2.0) == pytest.approx([5 / math.sqrt(17) * AGAINST_EVEN])
    assert recent.ttm(*RANDOM, temperature=1.0) == pytest.approx(kd(*RANDOM, temperature=1.0))
    assert recent.wttm(*RANDOM, temperature=1.0) == pytest.approx(kd(*RANDOM, temperature=1.0))


def test_spherical_kd_by_hand() -> None:
    """A student in the teacher's direction has its length, whatever its own was; a shift counts for `batch` alone."""
    assert recent.spherical_kd(5 * RANDOM[0], RANDOM[0]) == pytest.approx([0.0] * 4, abs=1e-12)
    single = RANDOM[:, :1]
    assert recent.spherical_kd(7 * single[0], single[0], scale="batch") == pytest.approx([0.0], abs=1e-12)
    opposite = np.array([[0.0, -3.0]])
    assert recent.spherical_kd(opposite, ODD, temperature=1.0) == pytest.approx([0.6 * LOG(4)])
    # lengths LOG 16 and LOG 4, of mean 1.5 LOG 4: odds of 1 to 8 on either side
    two = np.array([[0.0, LOG(16)], [LOG(4), 0.0]])
    got = recent.spherical_kd(np.array([[1.0, 0.0], [5.0, 0.0]]), two, temperature=1.0, scale="batch")
    assert got == pytest.approx([7 / 9 * LOG(8), 0.0], abs=1e-12)
    shifted = recent.spherical_kd(RANDOM[0] + 2, RANDOM[1])
    assert shifted == pytest.approx(recent.spherical_kd(*RANDOM))
    assert np.abs(recent.spherical_kd(RANDOM[0] + 2, RANDOM[1], scale="batch") - shifted).max() > 0.01


def test_abkd_at_its_named_corners() -> None:
    """KL both ways, half the squared Hellinger-like sum at (1/2, 1/2), half the square of p - q at (1, 1)."""
    corners = {(1.0, 0.0): AGAINST_EVEN, (0.0, 1.0): FROM_EVEN, (1.0, 1.0): 0.5 * (0.3**2 + 0.3**2)}
    for (alpha, beta), expected in corners.items():
        assert recent.abkd(EVEN, ODD, alpha=alpha, beta=beta) == pytest.approx([expected])
    hellinger = 2 * sum((math.sqrt(p) - math.sqrt(0.5)) ** 2 for p in (0.2, 0.8))
    assert recent.abkd(EVEN, ODD) == pytest.approx([hellinger])
    logs = 0.5 * (LOG(0.4) ** 2 + LOG(1.6) ** 2)
    assert recent.abkd(EVEN, ODD, alpha=0.0, beta=0.0) == pytest.approx([logs])


@pytest.mark.parametrize(("alpha", "beta"), [(0.0, 0.5), (0.5, 0.0), (0.0, -0.7), (0.6, -0.6), (0.0, 0.0)])
def test_abkd_is_continuous_where_its_formula_divides_by_0(alpha: float, beta: float) -> None:
    near = recent.abkd(*RANDOM, alpha=alpha + 1e-5, beta=beta + 2e-5)
    assert recent.abkd(*RANDOM, alpha=alpha, beta=beta) == pytest.approx(near, rel=1e-3)
    assert recent.abkd(RANDOM[0], RANDOM[0], alpha=alpha, beta=beta) == pytest.approx([0.0] * 4, abs=1e-12)


def test_ikl_is_a_weighted_variance_beside_a_cross_entropy() -> None:
    """sum_jk w_j w_k (d_j - d_k)^2 = 2 Var_w(d): by hand, d = (0, 2) of w (1/4, 3/4) has variance 3/4."""
    student, teacher = np.array([[0.0, LOG(3) - 2]]), np.array([[0.0, LOG(3)]])
    params = {"beta": 1.0, "weight_temperature": 1.0}
    assert recent.ikl(student, teacher, alpha=0.0, **params) == pytest.approx([0.375])
    weights = np.array([[0.5, 0.5]])
    assert recent.ikl(student, teacher, alpha=0.0, beta=1.0, weights=weights) == pytest.approx([0.5])
    soft = recent.ikl(EVEN, ODD, beta=0.0, temperature=1.0)
    assert soft == pytest.approx([LOG(2)])
    # the gradient of KL at T = 1 is that of the second term alone: p_s - p_t
    p_s, p_t = (np.exp(z) / np.exp(z).sum(1, keepdims=True) for z in RANDOM)
    slopes = gradient(lambda s: recent.ikl(s, RANDOM[1], beta=0.0, temperature=1.0).sum(), RANDOM[0])
    np.testing.assert_allclose(slopes, p_s - p_t, atol=1e-8)


def test_ntce_takes_the_teacher_s_margin_off_both() -> None:
    """Margin LOG 2 between odds of 4 to 2 to 1: without it, 2 to 2 to 1; doubled, 1 to 2 to 1."""
    teacher = np.log([[4.0, 2.0, 1.0]])
    for factor, odds in ((1.0, [2, 2, 1]), (2.0, [1, 2, 1]), (-1.0, [8, 2, 1]), (0.0, [4, 2, 1])):
        p = np.array(odds) / sum(odds)
        right = recent.ntce(teacher, teacher, np.array([0]), temperature=1.0, factors=[factor])
        assert right == pytest.approx([0.0], abs=1e-12)
        # the student loses it at the label: 4 to 2 to 2^-f
        q = np.array([4, 2, 2.0**-factor]) / (6 + 2.0**-factor)
        wrong = recent.ntce(teacher, teacher, np.array([2]), temperature=1.0, factors=[factor])
        assert wrong == pytest.approx([np.sum(p * np.log(p / q))])
    assert recent.ntce(*RANDOM, np.arange(4), factors=[0.0]) == pytest.approx(kd(*RANDOM))
    halves = [recent.ntce(*RANDOM, np.arange(4), factors=[f]) for f in (0.5, 2.0)]
    assert recent.ntce(*RANDOM, np.arange(4), factors=[0.5, 2.0]) == pytest.approx(sum(halves) / 2)


def test_sdd_by_hand() -> None:
    """Cells best at 1, 1 and 0 as a whole, alike and apart; with three classes, two mistakes agree or do not."""
    teacher, student = np.array([[[0.0, LOG(4)], [0.0, LOG(4)], [LOG(4), 0.0]]]), np.zeros((1, 3, 2))
    for label in (0, 1):
        got = recent.sdd(student, teacher, np.array([label]), temperature=1.0)
        assert got == pytest.approx([(1 + 1 + 2) * AGAINST_EVEN / 3])
    mistakes = np.array([[[2.0, 0.0, 0.0], [0.0, 2.0, 0.0]]])
    by = [
        recent.sdd(np.zeros((1, 2, 3)), mistakes, np.array([2]), complementary=3.0, agree=agree)
        for agree in ("right", "class")
    ]
    assert by[1] == pytest.approx(2 * by[0])


def test_distillm2_by_hand() -> None:
    """Mixtures of (0.2, 0.8) and (0.6, 0.4) that are even; the student's side of the second holds still."""
    teacher, student = np.log([[0.2, 0.8]]), np.log([[0.6, 0.4]])
    forward, backward = AGAINST_EVEN, 0.6 * LOG(1.2) + 0.4 * LOG(0.8)
    params = {"alpha": 0.25, "own_alpha": 0.75}
    both = recent.distillm2(student, teacher, student, teacher, **params)
    assert both == pytest.approx(forward + backward)
    assert recent.distillm2(student, teacher, student, teacher, beta=1.5, **params) == pytest.approx(
        0.5 * forward + 1.5 * backward
    )
    # d / d z of KL(q || constant m) is q (log q / m - KL)
    logits = np.array(student)

    def second(z: Array) -> float:
        return recent.distillm2(student, teacher, z, teacher, held=student, **params)

    q = np.array([0.6, 0.4])
    np.testing.assert_allclose(gradient(second, logits)[0], q * (np.log(q / 0.5) - backward), atol=1e-8)


def test_distillm2_has_the_gradient_of_its_release() -> None:
    """github.com/jongwooko/distillm-2, fe4cf9b: two tokens of the student's own answer."""
    count = np.arange(35, dtype=np.float64).reshape(5, 7)
    student, teacher = 3 * np.sin(1 + 1.7 * count), 4 * np.sin(2 + 2.3 * count)

    def second(z: Array) -> float:
        return recent.distillm2(student[:3], teacher[:3], z, teacher[3:], held=student[3:])

    slopes = gradient(second, student[3:])
    assert slopes[0, 0] == pytest.approx(-0.0038448978313092657, abs=1e-9)
    assert np.abs(slopes).sum() == pytest.approx(1.1456618543559454, abs=1e-8)
