"""EDM and flow matching: conversions, times and solvers against the mixture's oracle, files against diffusers."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    ConsistencyModelPipeline,
    DDPMPipeline,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from oracles import gaussian_mixture as oracle

from xmodal_kd.modalities.diffusion.adapter import DiffusionAdapter
from xmodal_kd.modalities.diffusion.data.config import DiffusionData
from xmodal_kd.modalities.diffusion.evaluate.bench import plane, unlabelled
from xmodal_kd.modalities.diffusion.evaluate.denoising import trust
from xmodal_kd.modalities.diffusion.export.pipeline import load_denoiser, save_pipeline
from xmodal_kd.modalities.diffusion.export.reload_gate import reload_gate
from xmodal_kd.modalities.diffusion.export.scheduler_lint import lint
from xmodal_kd.modalities.diffusion.export.schedulers import scheduler_for
from xmodal_kd.modalities.diffusion.methods.few_step import check_saveable
from xmodal_kd.modalities.diffusion.models.denoiser import Denoiser, Sampling
from xmodal_kd.modalities.diffusion.models.mixture import ExactDenoiser
from xmodal_kd.modalities.diffusion.models.networks import UNetConfig, build_unet
from xmodal_kd.modalities.diffusion.models.paths import Edm, Flow, path_of, process_of
from xmodal_kd.modalities.diffusion.models.process import Process
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams

Make = Callable[..., Denoiser]
CASES = Path(__file__).parents[4] / "shared/cases/diffusion"
NAMES = ("epsilon", "sample", "v_prediction", "flow_prediction")
KINDS = [Edm(), Edm(0.01, 20.0, 1.0, schedule="exponential"), Flow(), Flow(3.0)]
EVERY = pytest.mark.parametrize("process", KINDS, ids=["edm", "exponential", "flow", "shifted"])
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning:diffusers"
)


def named(scheduler: Any) -> dict[str, Any]:
    """Its configuration as it is saved."""
    return {**scheduler.config, "_class_name": type(scheduler).__name__}


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---------------------------------------------------------------- conversions and times


@EVERY
def test_conversions_are_what_the_truth_says_and_go_round(process: Process) -> None:
    x, noise, t = draw(40, 3), draw(40, 3, seed=1), torch.linspace(0, 1023, 40).round().long()
    z, names = process.add_noise(x, noise, t), NAMES + (process.predictions if process.kind == "edm" else ())
    told = {name: process.truth(name, x, noise, t) for name in names}
    torch.testing.assert_close(told["flow_prediction"], noise - x)
    for a, b in itertools.product(names, names):
        if a == "epsilon" and process.kind == "flow":
            there, here = told[a][:-1], process.convert(told[a][:-1], z[:-1], t[:-1], a, b)  # alpha is 0 at the last
            torch.testing.assert_close(here, told[b][:-1], rtol=1e-7, atol=1e-7)
            torch.testing.assert_close(process.convert(here, z[:-1], t[:-1], b, a), there, rtol=1e-7, atol=1e-7)
        else:
            torch.testing.assert_close(process.convert(told[a], z, t, a, b), told[b], rtol=1e-8, atol=1e-8)


@EVERY
def test_times_and_noise_levels_are_inverse(process: Process) -> None:
    t = torch.linspace(-1, 1022.9, 300, dtype=torch.float64)
    ratio = process.sigma(t) / process.alpha(t)
    torch.testing.assert_close(process.time_of(ratio), t, rtol=1e-9, atol=1e-9)
    whole = torch.arange(1023)
    torch.testing.assert_close(process.sigma(whole.double()), process.sigma(whole))
    assert float(process.sigma(-1)) == 0 and float(process.alpha(-1)) == 1
    assert repr(process_of(process.config()).config()) == repr(process.config())


def test_edm_is_preconditioned_as_diffusers_does() -> None:
    for prediction, name in (("epsilon", "edm"), ("v_prediction", "edm_v")):
        scheduler = EDMEulerScheduler(prediction_type=prediction, sigma_data=0.7)
        made = path_of(named(scheduler))
        assert made is not None and made[1] == name
        process, (t, z, out) = made[0], (torch.tensor([0, 500, 1023]), draw(3, 4), draw(3, 4, seed=1))
        given, times = process.network(z, t)
        sigma = process.sigma(t)
        torch.testing.assert_close(given, scheduler.precondition_inputs(z, sigma[:, None]))
        torch.testing.assert_close(times, scheduler.precondition_noise(sigma))
        theirs = scheduler.precondition_outputs(z, out, sigma[:, None])
        torch.testing.assert_close(process.convert(out, z, t, name, "sample"), theirs)
        assert process.start == pytest.approx(scheduler.init_noise_sigma)


@pytest.mark.parametrize("steps", [1, 2, 4, 64])
@EVERY
def test_the_saved_scheduler_goes_through_our_times(process: Process, steps: int) -> None:
    sampling = Sampling("ddim", steps)
    scheduler = scheduler_for(process, process.natural, sampling)
    scheduler.set_timesteps(steps)
    times = torch.tensor(sampling.times(process))
    torch.testing.assert_close(scheduler.sigmas.double(), process.sigma(times), rtol=2e-5, atol=1e-6)
    _, asked = process.network(draw(steps, 1), times[:-1])
    torch.testing.assert_close(scheduler.timesteps.double(), asked, rtol=2e-5, atol=2e-5)


# ---------------------------------------------------------------- the exact ODE


@pytest.mark.parametrize(("solver", "order"), [("ddim", 1), ("heun", 2), ("dpmpp_2m", 2)])
@pytest.mark.parametrize(
    ("process", "path", "start"),
    [(Edm(0.002, 8.0, steps=4096), oracle.edm, 8.0), (Flow(steps=4096), oracle.flow, 1.0 - 1 / 4096)],
    ids=["edm", "flow"],
)
def test_solvers_go_where_the_exact_ode_leads(
    process: Process, path: oracle.Path, start: float, solver: str, order: int
) -> None:
    """Errors that fall as the solver's order says, from a point of the noisy distribution."""
    mixture = unlabelled(plane())
    teacher = ExactDenoiser(mixture, process, process.natural)
    known = oracle.Mixture(
        mixture.log_weights.exp().tolist(), mixture.means.tolist(),
        (mixture.axes @ torch.diag_embed(mixture.variances) @ mixture.axes.mT).tolist(),
    )  # fmt: skip
    noise = draw(3, 2, seed=3)
    z = process.start * noise
    first = start
    if process.kind == "flow":  # at s = 1 x is the mean, and z the noise alone: one small step by hand
        mean = torch.as_tensor(known.weights @ known.means)
        z = start * noise + (1 - start) * mean
    exact = np.stack([oracle.solve_to_data(known, point, path, first) for point in z.numpy()])
    errors = []
    for steps in (64, 256):
        made = teacher.sample(noise, sampling=Sampling(solver, steps)).numpy()
        errors.append(np.sqrt(np.mean((made - exact) ** 2)))
    assert errors[1] < errors[0] / (2.5 if order == 1 else 5), errors
    assert errors[1] < (0.03 if order == 1 else 0.006), errors


# ---------------------------------------------------------------- files


CASES_OF_STUDENTS: dict[str, tuple[Process, str, Sampling, int | None]] = {
    "edm": (Edm(), "edm", Sampling("ddim", 4), None),
    "edm-conditional-v": (Edm(sigma_data=1.0), "edm_v", Sampling("ddim", 1), 3),
    "edm-exponential": (Edm(0.01, 50.0, schedule="exponential"), "edm", Sampling("ddim", 1), None),
    "edm-one-step": (Edm(), "edm", Sampling("lcm", 1, 64), None),
    "flow": (Flow(), "flow_prediction", Sampling("ddim", 8), None),
    "flow-shifted": (Flow(3.0), "flow_prediction", Sampling("ddim", 4), None),
    "flow-lcm": (Flow(), "flow_prediction", Sampling("lcm", 4, 64), None),
}


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", list(CASES_OF_STUDENTS))
def test_a_saved_student_reloads_and_samples_the_same(make: Make, tmp_path: Path, name: str) -> None:
    process, prediction, sampling, classes = CASES_OF_STUDENTS[name]
    denoiser = make(process, prediction, sampling, classes=classes)
    folder = save_pipeline(denoiser, tmp_path / "student", {})
    assert reload_gate(folder, denoiser, samples=2) <= 1e-4
    again = load_denoiser(folder, quiet=True)
    assert again.process.config() == process.config() and again.sampling == sampling
    assert [finding for finding in lint(folder) if finding.status == "fail"] == []
    noise = draw(2, 1, 8, 8).float()
    labels = None if classes is None else torch.tensor([0, 2])
    how = [torch.Generator().manual_seed(4) for _ in range(2)]
    torch.testing.assert_close(
        again.sample(noise, labels, generator=how[0]), denoiser.sample(noise, labels, generator=how[1])
    )


def adapter(**data: Any) -> DiffusionAdapter:
    return DiffusionAdapter(DiffusionData(sources="digits", **data), Streams(1), 16)


@pytest.mark.parametrize(("case", "kind"), [("edm_euler", "edm"), ("flow", "flow")])
def test_teachers_that_people_bring(case: str, kind: str) -> None:
    if not CASES.is_dir():
        pytest.skip(f"no {CASES}")
    made = adapter(sampling={"steps": 16})
    teacher = made.load("teacher", CASES / case)
    assert teacher.process.kind == kind and teacher.prediction == teacher.process.natural
    student = made.build("student", "like_teacher", {})
    assert student.process is teacher.process and student.prediction == teacher.prediction
    source = made.data("train")
    batch = source.collate([source.sample(i, 0) for i in range(8)])
    said = made.signals("teacher", teacher, batch)
    assert said.rows("prediction").shape == said.rows("labels").shape == (8 * 64, 1)
    assert [status for status, _, _ in trust(teacher, batch)] == ["warn"]  # its weights are random


def test_an_edm_teacher_is_sampled_as_diffusers_does(tmp_path: Path) -> None:
    """Through the whole ladder from sigma_max on, in the pipeline that scales the noise."""
    torch.manual_seed(0)
    net = build_unet(UNetConfig(channels=(8, 16)), (1, 8, 8), None).eval()
    DDPMPipeline(net, EDMEulerScheduler(sigma_max=10.0)).save_pretrained(tmp_path / "teacher")
    assert any("neither scales" in finding.what for finding in lint(tmp_path / "teacher"))
    teacher = load_denoiser(tmp_path / "teacher", quiet=True, sampling=Sampling("ddim", 8))
    last = float(teacher.process.sigma(teacher.process.grid(8)[-2]))
    pipeline = ConsistencyModelPipeline(net, EDMEulerScheduler(sigma_max=10.0, sigma_min=last))
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        batch_size=2, num_inference_steps=8, generator=torch.Generator().manual_seed(1), output_type="pt"
    ).images
    ours = teacher.sample(torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1)))
    torch.testing.assert_close((ours / 2 + 0.5).clamp(0, 1), theirs, rtol=0, atol=1e-4)


# ---------------------------------------------------------------- refusals


def test_what_is_not_understood_is_refused() -> None:
    flow, edm = FlowMatchEulerDiscreteScheduler, EDMEulerScheduler
    for config, words in [
        (named(flow(use_dynamic_shifting=True)), "use_dynamic_shifting is on"),
        (named(flow(invert_sigmas=True)), "invert_sigmas is on"),
        (named(flow(invert_sigmas=True, use_dynamic_shifting=True)), "invert_sigmas is on"),
        (named(edm()) | {"prediction_type": "sample"}, "prediction_type 'sample' is not one of"),
        (named(edm()) | {"sigma_min": 90.0}, "0 < sigma_min < sigma_max"),
        (named(edm()) | {"sigma_schedule": "linear"}, "sigma_schedule 'linear'"),
    ]:
        with pytest.raises(UserError, match=words):
            path_of(config)
    assert path_of({"_class_name": "DDPMScheduler"}) is None
    for said, words in [
        ({"kind": "vp"}, "no kind 'vp'"), ({"kind": "flow", "steps": 1 << 40}, "steps 1099511627776: a number from 2"),
        ({"kind": "edm", "sigma_max": float("inf")}, "0 < sigma_min"), ({"kind": "flow", "shift": "a"}, "process:"),
        ({"kind": "edm", "sigma": 1.0}, "process:"),
    ]:  # fmt: skip
        with pytest.raises(UserError, match=words):
            process_of(said)
    with pytest.raises(UserError, match="unknown prediction type 'epsilon'"):
        ExactDenoiser(unlabelled(plane()), Flow(), "epsilon")
    for process, steps, words in [(Edm(), 2, "set it to 1"), (Flow(), 3, "does not divide 1024")]:
        with pytest.raises(UserError, match=words):
            check_saveable(process, steps)
    check_saveable(Process.cosine(8), 3)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"process": {"schedule": "flow"}, "conditional": True}, "takes classes for flow matching"),
        ({"process": {"schedule": "edm"}, "sampling": {"steps": 48}}, "48 does not divide the 1024 timesteps of edm"),
    ],
)
def test_recipes_that_could_not_be_saved(data: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        adapter(**data).build("teacher", "unet", {"channels": (8, 16)})


def test_recipes_train_such_teachers() -> None:
    for schedule, prediction in (("edm", "edm"), ("flow", "flow_prediction")):
        made = adapter(process={"schedule": schedule}, sampling={"steps": 16})
        teacher = made.build("teacher", "unet", {"channels": (8, 16)})
        assert (teacher.process.kind, teacher.prediction) == (schedule, prediction)
    with pytest.raises(ValueError, match="prescribes what is predicted"):
        adapter(process={"schedule": "edm", "prediction": "epsilon"})
