from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from oracles import diffusion as oracle

from xmodal_kd.modalities.diffusion.models.process import Process
from xmodal_kd.modalities.diffusion.models.solvers import SOLVERS, evaluations, solve
from xmodal_kd.runtime.errors import UserError

MEAN = np.array([0.3, -0.6, 0.0, 0.9])
VARIANCE = np.array([0.25, 0.01, 1.0, 2.0])
#: diffusers' DPMSolverMultistepScheduler makes an array of a tensor in a way that NumPy 2 will refuse.
DIFFUSERS = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


class Recorder:
    """The optimal denoiser of Gaussian data, in torch and in NumPy, and all that it was asked."""

    def __init__(self, schedule):
        self.schedule, self.calls = schedule, []

    def __call__(self, z, t):
        state = z.numpy().copy() if isinstance(z, torch.Tensor) else z
        self.calls.append((state, t))
        x = oracle.optimal_denoiser(state, self.schedule.alpha(t), self.schedule.sigma(t), MEAN, VARIANCE)
        return torch.from_numpy(x) if isinstance(z, torch.Tensor) else x


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


TABLES = {
    "cosine": (lambda: Process.cosine(1024), oracle.cosine_table(1024)),
    "cosine of 1000": (lambda: Process.cosine(1000), oracle.cosine_table(1000)),
    "linear": (lambda: Process.linear(1000), oracle.linear_table(1000)),
}


def test_the_solvers_are_these():
    assert tuple(SOLVERS) == ("ddim", "heun", "dpmpp_2m")


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("steps", [1, 2, 3, 8, 50, 64])
def test_step_for_step_as_the_oracle(solver, table, steps):
    process, schedule = TABLES[table][0](), oracle.Schedule(TABLES[table][1])
    noise = draw(3, 4)
    ours, theirs = Recorder(schedule), Recorder(schedule)
    x = solve(ours, process, noise, process.grid(steps), solver)
    expected = oracle.SOLVERS[solver](schedule, theirs, noise.numpy(), oracle.trailing(process.T, steps))
    assert [t for _, t in ours.calls] == [t for _, t in theirs.calls]
    for (z, _), (reference, _) in zip(ours.calls, theirs.calls, strict=True):
        np.testing.assert_allclose(z, reference, rtol=1e-9, atol=1e-9)
    assert x.dtype == torch.float64
    np.testing.assert_allclose(x.numpy(), expected, rtol=1e-9, atol=1e-9)
    assert len(ours.calls) == evaluations(solver, steps)


@pytest.mark.parametrize("solver", SOLVERS)
def test_any_times_that_descend(solver):
    """Uneven steps, a start below T - 1, and the way to row 0 before the clean end."""
    process, schedule = Process.cosine(1024), oracle.Schedule(oracle.cosine_table(1024))
    noise, times = draw(2, 4), (900, 899, 500, 60, 3, 0, -1)
    x = solve(Recorder(schedule), process, noise, times, solver)
    expected = oracle.SOLVERS[solver](schedule, Recorder(schedule), noise.numpy(), times)
    np.testing.assert_allclose(x.numpy(), expected, rtol=1e-9, atol=1e-9)


def test_ddim_is_the_default_and_leaves_the_noise_as_it_was():
    process, schedule = Process.cosine(64), oracle.Schedule(oracle.cosine_table(64))
    noise = draw(2, 4)
    before = noise.clone()
    x = solve(Recorder(schedule), process, noise, process.grid(4))
    assert torch.equal(x, solve(Recorder(schedule), process, noise, process.grid(4), "ddim"))
    for solver in SOLVERS:
        solve(Recorder(schedule), process, noise, process.grid(4), solver)
    assert torch.equal(noise, before)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_sample_does_not_depend_on_its_axes_or_its_batch(solver):
    process = Process.cosine(1024)

    def predict(z, t):
        return torch.tanh(2 * z)

    noise = draw(4, 24)
    flat = solve(predict, process, noise, process.grid(6), solver)
    for shape in [(2, 12), (2, 3, 4), (2, 3, 2, 2)]:
        x = solve(predict, process, noise.view(4, *shape), process.grid(6), solver)
        torch.testing.assert_close(x.flatten(1), flat, rtol=0, atol=1e-14)
    torch.testing.assert_close(solve(predict, process, noise[2:3], process.grid(6), solver), flat[2:3])
    single = solve(predict, process, noise.float(), process.grid(6), solver)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), flat, rtol=0, atol=2e-3)


def start(schedule, t):
    """Draws of z_t of the Gaussian data."""
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    return torch.from_numpy(alpha * MEAN + np.sqrt(alpha**2 * VARIANCE + sigma**2) * draw(5, 4).numpy())


def even_in_lambda(total):
    """log(S / A) from log 30 down to log 0.005 in equal steps."""
    return [1 / (1 + (0.005 * 6000 ** (t / (total - 1))) ** 2) for t in range(total)]


@pytest.mark.parametrize(("solver", "order"), [("ddim", 1), ("heun", 2), ("dpmpp_2m", 2)])
def test_the_order_on_grids_even_in_lambda(solver, order):
    """Down to row 0 exactly, and from there Euler's step to clean data, which every solver takes."""
    process, schedule = Process(even_in_lambda(16385)), oracle.Schedule(even_in_lambda(16385))
    top, end = ((schedule.alpha(t), schedule.sigma(t)) for t in (16384, 0))
    z = start(schedule, 16384)
    last = oracle.exact_flow(z.numpy(), MEAN, VARIANCE, *top, *end)
    exact = oracle.optimal_denoiser(last, *end, MEAN, VARIANCE)
    errors = []
    for steps in (128, 256, 512, 1024):
        times = (*range(16384, -1, -16384 // steps), -1)
        x = solve(Recorder(schedule), process, z, times, solver)
        errors.append(np.sqrt(np.mean((x.numpy() - exact) ** 2)))
    np.testing.assert_allclose(-np.diff(np.log2(errors)), order, atol=0.1)


def smooth_table(total):
    """S / A = tan(0.4 pi u), u = (t + 1) / T: smooth and bounded, so that a trailing grid refines evenly."""
    return [np.cos(0.4 * np.pi * (t + 1) / total) ** 2 for t in range(total)]


@pytest.mark.parametrize("solver", SOLVERS)
def test_convergence_to_the_exact_flow_on_trailing_grids(solver):
    """Errors a / N for DDIM, a / N^2 for Heun, (a log N + b) / N^2 for DPM-Solver++(2M).

    The steps in lambda stay long at the clean end: k steps from it, h is 1 / k, and the local error h^3 dx/dlambda
    is k^-3 (k / N)^2, whose sum over k is log N / N^2.
    """
    process, schedule = Process(smooth_table(16384)), oracle.Schedule(smooth_table(16384))
    z = start(schedule, 16383)
    exact = oracle.exact_flow(
        z.numpy(), MEAN, VARIANCE, schedule.alpha(16383), schedule.sigma(16383), schedule.alpha(-1), schedule.sigma(-1)
    )
    counts = np.array([512, 1024, 2048, 4096])
    errors = np.stack(
        [solve(Recorder(schedule), process, z, process.grid(int(n)), solver).numpy() - exact for n in counts]
    )
    scaled = errors * counts[:, None, None] ** (1 if solver == "ddim" else 2)
    if solver == "dpmpp_2m":
        scaled = np.diff(scaled, axis=0)
    np.testing.assert_allclose(scaled[1:], scaled[:-1], rtol=0.05)
    assert np.abs(errors[-1]).max() < (1e-3 if solver == "ddim" else 1e-5)


class Ported:
    """diffusers' scheduler in its exact-DDIM form, or of order 2, over the same grid."""

    def __init__(self, total, schedule, order, prediction):
        self.scheduler = DPMSolverMultistepScheduler(
            num_train_timesteps=total,
            beta_schedule=schedule,
            solver_order=order,
            algorithm_type="dpmsolver++",
            final_sigmas_type="zero",
            timestep_spacing="trailing",
            prediction_type=prediction,
        )

    def run(self, network, noise, steps):
        self.scheduler.set_timesteps(steps)
        z = noise
        for t in self.scheduler.timesteps:
            z = self.scheduler.step(network(z, int(t)), t, z, return_dict=False)[0]
        return z


@DIFFUSERS
@pytest.mark.parametrize(("solver", "order"), [("ddim", 1), ("dpmpp_2m", 2)])
@pytest.mark.parametrize("prediction", ["sample", "v_prediction"])
@pytest.mark.parametrize(
    ("total", "betas"), [(1024, "squaredcos_cap_v2"), (1000, "squaredcos_cap_v2"), (1000, "linear")]
)
@pytest.mark.parametrize("steps", [1, 4, 14, 16, 50, 64])
def test_as_diffusers_dpm_solver(solver, order, prediction, total, betas, steps):
    """With a network that is not linear; its output is x0 or v of the time it is asked at."""
    ported = Ported(total, betas, order, prediction)
    process = Process.from_scheduler(ported.scheduler.config)

    def network(z, t):
        return torch.tanh(1.5 * z - 0.2) * (0.5 + t / total)

    def predict_x(z, t):
        return process.convert(network(z, t), z, t, prediction, "sample")

    noise = draw(4, 3, 2, 2)
    x = solve(predict_x, process, noise, process.grid(steps), solver)
    torch.testing.assert_close(x, ported.run(network, noise, steps), rtol=0, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 3, 64])
def test_network_evaluations(steps):
    counts = {solver: evaluations(solver, steps) for solver in SOLVERS}
    assert counts == {"ddim": steps, "heun": max(1, 2 * steps - 2), "dpmpp_2m": steps}


@pytest.mark.parametrize("solver", ["ddim", "dpmpp_2m"])
def test_zero_terminal_snr_starts_at_pure_noise(solver):
    table = [*oracle.cosine_table(64)[:-1], 0.0]
    process, schedule = Process(table), oracle.Schedule(table)
    noise = draw(2, 4)
    x = solve(Recorder(schedule), process, noise, process.grid(8), solver)
    expected = oracle.SOLVERS[solver](schedule, Recorder(schedule), noise.numpy(), oracle.trailing(64, 8))
    np.testing.assert_allclose(x.numpy(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("solver", ["euler", "DDIM", ""])
def test_an_unknown_solver(solver):
    process = Process.cosine(8)
    with pytest.raises(UserError, match=rf"^unknown solver '{solver}'[^\n]*$"):
        solve(lambda z, t: z, process, draw(1, 2), process.grid(2), solver)
