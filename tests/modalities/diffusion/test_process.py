from __future__ import annotations

from itertools import pairwise, permutations

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler
from oracles import diffusion as oracle

from xmodal_kd.modalities.diffusion.models.process import Process
from xmodal_kd.runtime.errors import UserError

KINDS = ("epsilon", "sample", "v_prediction")
PAIRS = list(permutations(KINDS, 2))
#: diffusers' DPMSolverMultistepScheduler makes an array of a tensor in a way that NumPy 2 will refuse.
DIFFUSERS = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
STEPS = (1, 2, 4, 8, 16, 32, 50, 64)
EXACT = np.finfo(np.float64).eps


def whole_table(process):
    times = torch.arange(-1, process.T)
    return times, process.alpha(times).numpy(), process.sigma(times).numpy()


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


TABLES = [
    (lambda: Process.cosine(1000), oracle.cosine_table(1000)),
    (lambda: Process.cosine(1024), oracle.cosine_table(1024)),
    (lambda: Process.cosine(64), oracle.cosine_table(64)),
    (lambda: Process.linear(1000), oracle.linear_table(1000)),
    # the betas of 1000 steps, spread over T so that the end is as noisy
    (lambda: Process.linear(1024), oracle.linear_table(1024, 0.1 / 1024, 20 / 1024)),
    (lambda: Process([0.9, 0.5, 0.25, 0.0]), [0.9, 0.5, 0.25, 0.0]),
]


@pytest.mark.parametrize(("make", "table"), TABLES)
def test_alpha_sigma_and_snr_of_every_time(make, table):
    process, schedule = make(), oracle.Schedule(table)
    times, alpha, sigma = whole_table(process)
    assert len(table) == process.T
    np.testing.assert_allclose(alpha, [schedule.alpha(t) for t in times.tolist()], rtol=1e-12)
    np.testing.assert_allclose(sigma, [schedule.sigma(t) for t in times.tolist()], rtol=1e-12)
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=4 * EXACT)
    np.testing.assert_allclose(
        process.log_snr(times).numpy(), [schedule.log_snr(t) for t in times.tolist()], rtol=1e-12, atol=1e-12
    )
    assert (alpha[0], sigma[0]) == (1, 0)
    assert (float(process.alpha(-1)), float(process.sigma(0))) == (1, sigma[1])


def test_between_rows_the_log_noise_level_is_linear():
    process, schedule = Process.cosine(1024), oracle.Schedule(oracle.cosine_table(1024))
    times = torch.tensor([0.25, 3.5, 511.125, 1000.75, 1022.5], dtype=torch.float64)
    np.testing.assert_allclose(process.alpha(times).numpy(), [schedule.alpha(t) for t in times.tolist()], rtol=1e-12)
    np.testing.assert_allclose(process.sigma(times).numpy(), [schedule.sigma(t) for t in times.tolist()], rtol=1e-12)
    np.testing.assert_allclose(process.time_of(process.sigma(times) / process.alpha(times)), times, atol=1e-9)


def test_time_of_a_noise_level_is_its_inverse():
    process, schedule = Process.cosine(1024), oracle.Schedule(oracle.cosine_table(1024))
    rows = torch.arange(-1, 1024)
    levels = torch.tensor([schedule.noise_level(t) for t in rows.tolist()], dtype=torch.float64)
    np.testing.assert_allclose(process.time_of(levels).numpy(), rows, atol=1e-9)
    levels = torch.logspace(-6, 4, 101, dtype=torch.float64)
    times = process.time_of(levels)
    np.testing.assert_allclose(process.sigma(times) / process.alpha(times), levels, rtol=1e-10)
    assert (times.diff() > 0).all()
    assert times[0] > -1


@pytest.mark.parametrize("schedule", ["squaredcos_cap_v2", "linear", "scaled_linear"])
@pytest.mark.parametrize("total", [1000, 1024])
def test_the_table_of_a_diffusers_config(schedule, total):
    """Diffusers' betas are float32: 1 - beta is rounded to 6e-8 in each of T factors, 0.999 to 1e-4 of the last one."""
    reference = DDPMScheduler(num_train_timesteps=total, beta_schedule=schedule)
    process = Process.from_scheduler(reference.config)
    _, alpha, _ = whole_table(process)
    np.testing.assert_allclose(alpha[1:] ** 2, reference.alphas_cumprod.double().numpy(), rtol=5e-5)
    exact = {"squaredcos_cap_v2": "cosine_table", "linear": "linear_table", "scaled_linear": "scaled_linear_table"}
    np.testing.assert_allclose(alpha[1:] ** 2, getattr(oracle, exact[schedule])(total), rtol=1e-4)


def test_the_table_of_a_config_with_its_own_numbers():
    betas = [0.1, 0.3, 0.5]
    own = Process.from_scheduler(DDPMScheduler(num_train_timesteps=3, trained_betas=betas).config)
    np.testing.assert_allclose(whole_table(own)[1][1:] ** 2, [0.9, 0.63, 0.315], rtol=1e-6)
    reference = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    latent = Process.from_scheduler(reference.config)
    np.testing.assert_allclose(
        whole_table(latent)[1][1:] ** 2, oracle.scaled_linear_table(1000, 0.00085, 0.012), rtol=1e-4
    )


def test_a_config_of_zero_terminal_snr_ends_in_noise():
    """A is shifted and scaled so that it ends at 0 and starts as before (Lin et al., 2024, algorithm 1)."""
    _, alpha, sigma = whole_table(Process.from_scheduler(DDPMScheduler(rescale_betas_zero_snr=True).config))
    root = np.sqrt(oracle.linear_table(1000))
    np.testing.assert_allclose(alpha[1:], (root - root[-1]) * root[0] / (root[0] - root[-1]), rtol=0, atol=1e-6)
    assert (alpha[-1], sigma[-1]) == (0, 1)


@DIFFUSERS
@pytest.mark.parametrize("total", [1000, 1024])
@pytest.mark.parametrize("steps", STEPS)
def test_grids_are_diffusers_trailing(total, steps):
    grid = Process.cosine(total).grid(steps)
    assert list(grid) == oracle.trailing(total, steps)
    assert (grid[0], grid[-1]) == (total - 1, -1)
    assert all(type(t) is int for t in grid)
    for scheduler in (DDPMScheduler, DPMSolverMultistepScheduler):
        reference = scheduler(num_train_timesteps=total, timestep_spacing="trailing")
        reference.set_timesteps(steps)
        assert list(grid[:-1]) == reference.timesteps.tolist()


@pytest.mark.parametrize("total", [2, 3, 64, 1000, 1024])
def test_grids_of_any_number_of_steps_descend_and_contain_their_half(total):
    process = Process.cosine(total)
    for steps in {1, 2, 3, 5, 7, 15, 49, 61, 63, 333, total // 2, total}:
        if steps <= total:
            grid = process.grid(steps)
            assert list(grid) == oracle.trailing(total, steps)
            assert all(a > b for a, b in pairwise(grid))
            if steps % 2 == 0:
                assert process.grid(steps // 2) == grid[::2]
    assert process.grid(total) == tuple(range(total - 1, -2, -1))


@pytest.mark.parametrize("make", [Process.cosine, Process.linear])
@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_conversions_and_back_at_every_time(make, source, target):
    """To 1e-12; only epsilon to x0 or v, where 1 / alpha is above 1e3, may err by four roundings of z / alpha."""
    process = make(1024)
    times = torch.arange(process.T)
    _, alpha, sigma = (column[1:] for column in whole_table(process))
    x, eps = draw(process.T, 3), draw(process.T, 3, seed=1)
    z = process.add_noise(x, eps, times)
    value = {"epsilon": eps, "sample": x, "v_prediction": draw(process.T, 3, seed=2)}[source]
    there = process.convert(value, z, times, source, target)
    assert there.dtype == torch.float64
    expected = np.stack(
        [
            oracle.convert(row, state, a, s, source, target)
            for row, state, a, s in zip(value.numpy(), z.numpy(), alpha, sigma, strict=True)
        ]
    )
    worst = 1 / alpha if "epsilon" in (source, target) else np.ones(process.T)
    allowed = np.maximum(1e-12, 16 * EXACT * worst)[:, None]
    assert (np.abs(there.numpy() - expected) <= allowed * np.maximum(1, np.abs(expected))).all()
    back = process.convert(there, z, times, target, source)
    assert (np.abs(back.numpy() - value.numpy()) <= allowed * np.maximum(1, value.abs().numpy())).all()


def test_conversions_of_true_values_agree_with_each_other():
    process = Process.cosine(1000)
    times = torch.arange(1000)
    x, eps = draw(1000, 2, 3), draw(1000, 2, 3, seed=1)
    z = process.add_noise(x, eps, times)
    alpha, sigma = process.alpha(times)[:, None, None], process.sigma(times)[:, None, None]
    v = alpha * eps - sigma * x
    torch.testing.assert_close(process.convert(v, z, times, "v_prediction", "sample"), x, rtol=0, atol=1e-12)
    torch.testing.assert_close(process.convert(v, z, times, "v_prediction", "epsilon"), eps, rtol=0, atol=1e-12)
    torch.testing.assert_close(process.convert(x, z, times, "sample", "v_prediction"), v, rtol=0, atol=1e-12)


def test_conversions_at_the_clean_end():
    """z is x there, and a network's v is eps; nothing tells eps from x."""
    process = Process.cosine(64)
    times = torch.tensor([-1, -1])
    x, eps = draw(2, 5), draw(2, 5, seed=1)
    z = process.add_noise(x, eps, times)
    assert torch.equal(z, x)
    for source in ("epsilon", "v_prediction"):
        torch.testing.assert_close(process.convert(eps, z, times, source, "sample"), x, rtol=0, atol=1e-15)
    for pair in (("epsilon", "v_prediction"), ("v_prediction", "epsilon")):
        torch.testing.assert_close(process.convert(eps, z, times, *pair), eps, rtol=0, atol=1e-15)


def test_conversions_at_zero_terminal_snr():
    """z is eps there and v is -x: only epsilon says nothing of x."""
    process = Process([0.9, 0.5, 0.0])
    times = torch.tensor([2, 2])
    x, eps = draw(2, 5), draw(2, 5, seed=1)
    z = process.add_noise(x, eps, times)
    assert torch.equal(z, eps)
    assert torch.equal(process.convert(x, z, times, "sample", "v_prediction"), -x)
    assert torch.equal(process.convert(-x, z, times, "v_prediction", "sample"), x)
    for source in ("sample", "v_prediction"):
        assert torch.equal(process.convert(x, z, times, source, "epsilon"), eps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(4,), (3, 5), (3, 4, 2), (2, 3, 4, 2)])
def test_any_number_of_axes(shape, dtype):
    process, schedule = Process.cosine(1024), oracle.Schedule(oracle.cosine_table(1024))
    times = torch.tensor([1000, 0, 512, -1])
    x, eps = draw(4, *shape), draw(4, *shape, seed=1)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    z = process.add_noise(x.to(dtype), eps.to(dtype), times)
    v = process.convert(eps.to(dtype), z, times, "epsilon", "v_prediction")
    assert (z.shape, v.shape, z.dtype, v.dtype) == (x.shape, x.shape, dtype, dtype)
    for b, t in enumerate(times.tolist()):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        state = alpha * x[b].numpy() + sigma * eps[b].numpy()
        np.testing.assert_allclose(z[b].numpy(), state, rtol=0, atol=tolerance)
        expected = oracle.convert(eps[b].numpy(), state, alpha, sigma, "epsilon", "v_prediction")
        np.testing.assert_allclose(v[b].numpy(), expected, rtol=0, atol=10 * tolerance / alpha)


def test_one_time_for_the_whole_batch_and_a_time_of_each_are_the_same():
    process = Process.cosine(1024)
    x, eps = draw(3, 2, 2), draw(3, 2, 2, seed=1)
    each = torch.full((3,), 700)
    assert torch.equal(process.add_noise(x, eps, 700), process.add_noise(x, eps, each))
    for source, target in PAIRS:
        one = process.convert(x, eps, 700, source, target)
        assert torch.equal(one, process.convert(x, eps, each, source, target))


@pytest.mark.parametrize("steps", [0, -1, 65, 1000])
def test_a_grid_that_the_process_does_not_have(steps):
    with pytest.raises(UserError, match=rf"^{steps} steps .*64"):
        Process.cosine(64).grid(steps)


@pytest.mark.parametrize(("source", "target"), [("eps", "sample"), ("epsilon", "x0"), ("flow", "flow")])
def test_an_unknown_prediction_type(source, target):
    x = torch.zeros(1, 2)
    with pytest.raises(UserError, match=r"^unknown prediction type '(eps|x0|flow)' \((known|nearest): ") as caught:
        Process.cosine(8).convert(x, x, torch.tensor([3]), source, target)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000},
        {"num_train_timesteps": 1000, "beta_schedule": "sharp", "beta_start": 0.1, "beta_end": 0.2},
    ],
)
def test_a_config_without_a_variance_preserving_schedule(config):
    with pytest.raises(UserError) as caught:
        Process.from_scheduler(config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("table", [[0.5, 0.6], [1.5, 0.6], [0.5, -0.1], [0.9, float("nan")]])
def test_a_table_that_is_not_one(table):
    with pytest.raises(UserError, match="alphas_cumprod"):
        Process(table)
