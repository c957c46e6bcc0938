"""The oracles themselves: values by hand, identities, and what diffusers says."""

from __future__ import annotations

import math

import numpy as np
import pytest
from diffusers import DDPMScheduler, LCMScheduler
from oracles import diffusion as oracle

SCHEDULE = oracle.Schedule(oracle.cosine_table(64))
MEAN, VARIANCE = np.array([0.5, -0.25]), np.array([0.3, 1.5])
X, NOISE = np.array([0.2, -0.7]), np.array([1.1, -0.4])


def teacher(z, t):
    return oracle.optimal_denoiser(z, SCHEDULE.alpha(t), SCHEDULE.sigma(t), MEAN, VARIANCE)


def student(z, t):
    return np.tanh(z - 0.1 * t / 64)


def never(z, t):
    raise AssertionError("asked at the clean end")


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("squaredcos_cap_v2", oracle.cosine_table),
        ("linear", oracle.linear_table),
        ("scaled_linear", oracle.scaled_linear_table),
    ],
)
def test_tables_as_diffusers(name, make):
    reference = DDPMScheduler(num_train_timesteps=1000, beta_schedule=name).alphas_cumprod.double().numpy()
    np.testing.assert_allclose(make(1000), reference, rtol=1e-4)


def test_the_capped_cosine_is_the_cosine_but_for_its_last_row():
    table = oracle.cosine_table(64)
    closed = [math.cos((i / 64 + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(65)]
    np.testing.assert_allclose(table[:-1], np.array(closed[1:-1]) / closed[0], rtol=1e-12)
    assert table[-1] == pytest.approx(table[-2] / 1000)


def test_the_exact_flow_composes_and_ends_at_the_data():
    """In its own derivative: dy/ds = (y - E[x | z]) / s by central differences in s."""
    z = np.array([0.4, -1.2])
    halfway = oracle.exact_flow(z, MEAN, VARIANCE, 0.6, 0.8, 0.8, 0.6)
    at_once = oracle.exact_flow(z, MEAN, VARIANCE, 0.6, 0.8, 1.0, 0.0)
    np.testing.assert_allclose(oracle.exact_flow(halfway, MEAN, VARIANCE, 0.8, 0.6, 1.0, 0.0), at_once, rtol=1e-12)

    def y(s):
        alpha = 1 / math.sqrt(1 + s**2)
        return oracle.exact_flow(z, MEAN, VARIANCE, 0.6, 0.8, alpha, s * alpha) / alpha

    s = 0.8 / 0.6
    slope = (y(s + 1e-5) - y(s - 1e-5)) / 2e-5
    denoised = oracle.optimal_denoiser(z, 0.6, 0.8, MEAN, VARIANCE)
    np.testing.assert_allclose(slope, (y(s) - denoised) / s, rtol=1e-8)


def test_the_optimal_denoiser_is_the_regression_of_x_on_z():
    draws = np.random.default_rng(0)
    x = 0.5 + math.sqrt(0.3) * draws.standard_normal(400_000)
    z = 0.6 * x + 0.8 * draws.standard_normal(400_000)
    slope, offset = np.polyfit(z, x, 1)
    expected = [oracle.optimal_denoiser(np.array([p]), 0.6, 0.8, MEAN[:1], VARIANCE[:1])[0] for p in (0.0, 1.0)]
    np.testing.assert_allclose([offset, offset + slope], expected, atol=5e-3)


def test_solvers_of_a_denoiser_that_knows_x():
    """Then the flow is straight in y, and every solver lands on x."""
    noise = np.array([2.0, -1.0])
    for solve in oracle.SOLVERS.values():
        np.testing.assert_allclose(solve(SCHEDULE, lambda z, t: X, noise, oracle.trailing(64, 4)), X, rtol=1e-12)


def test_a_heun_step_by_hand():
    """z = 3 at A = 0.6, S = 0.8 with x0 = z / 2, down to A = 0.8, S = 0.6: y = 5, s = 4/3, and 3/4."""
    schedule = oracle.Schedule([0.64, 0.36])
    slope = (5 - 1.5) * 3 / 4
    euler = 5 - 7 / 12 * slope
    corrected = 5 - 7 / 12 * (slope + (euler - 0.4 * euler) * 4 / 3) / 2
    got = oracle.heun_step(schedule, lambda z, t: z / 2, np.array([3.0]), 1, 0)
    np.testing.assert_allclose(got, [0.8 * corrected], rtol=1e-12)


def test_progressive_targets_lie_on_the_teachers_path():
    """One DDIM step with x~ goes where the teacher's two went; of the exact path, i = 0 has x~ = x_T(z')."""
    z = np.array([0.3, 1.4])
    for index, (t, middle, end) in enumerate([(15, 7, -1), (31, 23, 15), (47, 39, 31), (63, 55, 47)]):
        assert oracle.grid_times(64, 4, index) == (t, middle, end)
        x, eps = oracle.progressive_target(SCHEDULE, teacher, z, index, 4)
        np.testing.assert_allclose(
            SCHEDULE.alpha(end) * x + SCHEDULE.sigma(end) * eps,
            oracle.ddim(SCHEDULE, teacher, z, (t, middle, end)),
            rtol=1e-10,
        )
        np.testing.assert_allclose(SCHEDULE.alpha(t) * x + SCHEDULE.sigma(t) * eps, z, rtol=1e-10)


def test_a_progressive_target_by_hand():
    """A, S = 0, 1 then 0.6, 0.8 then clean data: eps = z, z' = 0.6 x_T + 0.8 z, and the target is x_T(z')."""
    schedule = oracle.Schedule([0.36, 0.0])
    x, eps = oracle.progressive_target(schedule, lambda z, t: z + t, np.array([2.0]), 0, 1)
    np.testing.assert_allclose(x, [0.6 * 3 + 0.8 * 2])
    np.testing.assert_allclose(eps, [2.0])


@pytest.mark.parametrize("index", range(4))
def test_the_truncated_loss_is_max_of_one_and_snr_times_that_in_x(index):
    t = oracle.grid_times(64, 4, index)[0]
    alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
    z = alpha * X + sigma * NOISE
    target, _ = oracle.progressive_target(SCHEDULE, teacher, z, index, 4)
    in_x = np.mean((student(z, t) - target) ** 2)
    loss = oracle.progressive_loss(SCHEDULE, student, teacher, X, NOISE, index, 4)
    assert loss == pytest.approx(max(1, (alpha / sigma) ** 2) * in_x, rel=1e-9)


def test_scalings_and_times_are_lcm_schedulers():
    for total, original, steps in [(1000, 50, 4), (1000, 50, 3), (1024, 64, 4), (1024, 64, 7), (64, 8, 8), (64, 8, 1)]:
        reference = LCMScheduler(num_train_timesteps=total, original_inference_steps=original)
        reference.set_timesteps(steps)
        assert oracle.lcm_times(total, original, steps) == reference.timesteps.tolist()
    for t in (0, 1, 19, 999):
        expected = reference.get_scalings_for_boundary_condition_discrete(t)
        np.testing.assert_allclose(oracle.scalings(t), expected, rtol=1e-12)


def test_consistency_losses():
    """Between points of one path a denoiser that knows x has none; at the clean end no network is asked."""

    def know(z, t):
        return X

    for index in range(4):
        assert oracle.consistency_loss(SCHEDULE, know, know, know, X, NOISE, index, 4) == pytest.approx(0, abs=1e-4)
    z = SCHEDULE.alpha(15) * X + SCHEDULE.sigma(15) * NOISE
    off = oracle.consistency_function(student, z, 15) - teacher(z, 15)
    loss = oracle.consistency_loss(SCHEDULE, student, never, teacher, X, NOISE, 0, 4)
    assert loss == pytest.approx(np.mean(off**2))
    assert oracle.consistency_loss(
        SCHEDULE, student, never, teacher, X, NOISE, 0, 4, solver="heun", huber=0.3
    ) == pytest.approx(math.sqrt(np.sum(off**2) + 0.09) - 0.3)
    one, other = (
        oracle.consistency_loss(SCHEDULE, student, student, teacher, X, NOISE, 2, 4, solver=solver)
        for solver in ("ddim", "heun")
    )
    assert one != pytest.approx(other, rel=1e-4)


def test_multistep_sampling_noises_again_to_each_time():
    first, second = np.array([0.5, 0.5]), np.array([-1.0, 2.0])
    got = oracle.consistency_sampling(SCHEDULE, student, first, (63, 31), [second])
    x = oracle.consistency_function(student, first, 63)
    z = SCHEDULE.alpha(31) * x + SCHEDULE.sigma(31) * second
    np.testing.assert_array_equal(got, oracle.consistency_function(student, z, 31))


def test_ect_by_hand():
    """s = log 2: sigmoid(-s) = 1/3 and n = 11/3, so q = 22/3 halves s at stage 0; s, r, D = y + s."""
    s = math.log(2)
    assert oracle.ect_partner(s, 22 / 3, 0) == pytest.approx(s / 2)
    assert oracle.ect_partner(s, 2, 0) == 0
    assert oracle.ect_partner(5e4, 4, 1) == pytest.approx(5e4 * 15 / 16)

    def denoise(y, level):
        return y + level

    loss = oracle.ect_loss(denoise, X, NOISE, s, q=22 / 3, stage=0, c=0.1)
    off = s / 2 * (NOISE + 1)
    assert loss == pytest.approx((math.sqrt(np.sum(off**2) + 0.01) - 0.1) / (s / 2))
    clean = oracle.ect_loss(denoise, X, NOISE, s, q=2, stage=0)
    assert clean == pytest.approx(math.sqrt(np.sum((s * NOISE + s) ** 2)) / s)
