"""The reload gate: passes what is right in a fresh process, and notices a scheduler that is not."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from toy_samples import Adapter

from xmodal_kd.modalities.diffusion.export.pipeline import load_denoiser, save_pipeline
from xmodal_kd.modalities.diffusion.export.reload_gate import PIPELINE, TRAINER, reload_gate, reload_gates
from xmodal_kd.modalities.diffusion.methods.adversarial import Ladd
from xmodal_kd.modalities.diffusion.models.denoiser import Denoiser, Sampling
from xmodal_kd.modalities.diffusion.models.paths import Edm, Flow
from xmodal_kd.modalities.diffusion.models.process import Process
from xmodal_kd.objective.objective import Objective
from xmodal_kd.recipe.recipe import Optimizer, Train
from xmodal_kd.runtime.checkpoint import read_json, write_json
from xmodal_kd.runtime.distributed import Ranks
from xmodal_kd.runtime.errors import RunError
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.runtime.timing import StepTimer
from xmodal_kd.training.method import Context

Make = Callable[..., Denoiser]
#: diffusers 0.42 makes arrays of tensors in a way that numpy 2 warns of.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning:diffusers"
)


def tamper(folder: Path, **changes: Any) -> None:
    path = folder / "scheduler" / "scheduler_config.json"
    write_json_with_infinity(path, read_json(path) | changes)


def write_json_with_infinity(path: Path, content: dict[str, Any]) -> None:
    """diffusers writes an infinite default of its own, which JSON does not have."""
    write_json(path, {key: value for key, value in content.items() if value != float("-inf")})


CASES = {
    "ddim-64-of-1000": (Process.linear(1000), "epsilon", Sampling("ddim", 64), None),
    "ddim-conditional": (Process.cosine(1024), "v_prediction", Sampling("ddim", 4), 3),
    "dpmpp": (Process.cosine(1024), "sample", Sampling("dpmpp_2m", 8), None),
    "dpmpp-conditional": (Process.linear(1000), "v_prediction", Sampling("dpmpp_2m", 20), 3),
    "lcm": (Process.cosine(1024), "v_prediction", Sampling("lcm", 2, 64), None),
    "lcm-conditional": (Process.linear(1000), "v_prediction", Sampling("lcm", 4, 50), 3),
}


def test_a_fresh_process_makes_the_same_images(make: Make, tmp_path: Path) -> None:
    places = {}
    for name, (process, prediction, sampling, classes) in CASES.items():
        denoiser = make(process, prediction, sampling, classes=classes)
        places[save_pipeline(denoiser, tmp_path / name, {})] = denoiser
    began = monotonic()
    found = reload_gates(places)
    assert monotonic() - began < 60, "it costs seconds"
    assert list(found) == list(places) and max(found.values()) <= 1e-4
    assert not list(tmp_path.rglob("*.npy"))


@pytest.mark.usefixtures("here")
def test_leading_spacing_and_other_weights_are_noticed(make: Make, tmp_path: Path) -> None:
    denoiser = make(Process.cosine(1024), "v_prediction", Sampling("ddim", 4))
    folder = save_pipeline(denoiser, tmp_path / "student", {})
    tamper(folder, timestep_spacing="leading")
    with pytest.raises(RunError, match=f"differs .* by 0.*{PIPELINE}.*{TRAINER}") as caught:
        reload_gate(folder, denoiser)
    assert "\n" not in str(caught.value)
    theirs, ours = np.load(folder / PIPELINE), np.load(folder / TRAINER)
    assert theirs.shape == ours.shape == (8, 1, 8, 8) and np.abs(theirs - ours).max() > 1e-2


@pytest.mark.usefixtures("here")
def test_the_trainer_is_measured_as_it_is_not_as_it_was_saved(make: Make, tmp_path: Path) -> None:
    denoiser = make(Process.cosine(64))
    folder = save_pipeline(denoiser, tmp_path / "student", {})
    with torch.no_grad():
        denoiser.net.conv_out.bias += 0.1
    with pytest.raises(RunError, match="differs"):
        reload_gate(folder, denoiser, samples=2)


@pytest.mark.full
def test_a_pipeline_that_does_not_run_says_why(make: Make, tmp_path: Path) -> None:
    denoiser = make(Process.cosine(64))
    folder = save_pipeline(denoiser, tmp_path / "student", {})
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"nothing")
    with pytest.raises(RunError, match="does not run in a fresh process") as caught:
        reload_gate(folder, denoiser, samples=2)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("here")
def test_heun_is_saved_as_ddim_of_the_same_cost_and_says_so(make: Make, tmp_path: Path) -> None:
    denoiser = make(Process.cosine(64), sampling=Sampling("heun", 3))
    folder = save_pipeline(denoiser, tmp_path / "student", {})
    assert read_json(folder / "sampler.json")["facts"]["measured_with"] == {"solver": "heun", "steps": 3}
    assert "heun" in (folder / "README.md").read_text()
    assert load_denoiser(folder).sampling == denoiser.sampling  # ours has that solver, diffusers has not
    assert reload_gate(folder, denoiser, samples=2) <= 1e-4


@pytest.mark.usefixtures("here")
def test_ladd_s_students_are_reloaded_on_every_process(make: Make, tmp_path: Path) -> None:
    """Its students as it leaves them, after a step of the heads and one of their own."""
    for process, steps in ((Process.cosine(64), 2), (Edm(steps=64), 1), (Flow(steps=64), 2)):
        teacher, student = (make(process, process.natural, Sampling("ddim", 8)) for _ in range(2))
        train = Train(steps=1, batch_size=2, optimizer=Optimizer(name="adam", lr=1e-2))
        method = Ladd(Adapter(), Objective(()), train, Streams(1), params=Ladd.Params(steps=steps))  # type: ignore[arg-type]
        roles: dict[str, nn.Module] = {"teacher": teacher.requires_grad_(False), "student": student}
        x, noise = torch.randn(2, 2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
        batch = {"ids": torch.arange(2), "x": x, "noise": noise, "u": torch.rand(2)}
        method.check(roles)
        stage = method.own_stages()[0]
        optimizers = method.begin(stage, roles, batch)
        for name, out in method.losses(batch, roles, Context(stage, 0, 0, Streams(1), StepTimer(x.device), Ranks())):
            optimizers[name].zero_grad()
            out.value().backward()
            optimizers[name].step()
        assert student.sampling == Sampling("lcm", steps, 64)
        z, t = process.start * noise, torch.full((2,), 63)
        with torch.no_grad():
            assert float((student.eval()(z, t) - teacher(z, t)).abs().max()) > 1e-3  # it has learnt
        folder = save_pipeline(student, tmp_path / process.kind, {"role": "student"})
        assert reload_gate(folder, student) <= 1e-4
        assert load_denoiser(folder, quiet=True).sampling == student.sampling
