"""What would make a saved pipeline sample otherwise than it was trained, found in its configuration files.

Each rule is a trap of diffusers 0.42 that gives worse images without an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from xmodal_kd.runtime.checkpoint import read_object
from xmodal_kd.runtime.errors import UserError

from ..models.process import LITTLE_SIGNAL, Process

#: Schedulers that choose their times in their own way, whatever ``timestep_spacing`` says.
OWN_SPACING = ("LCMScheduler", "TCDScheduler")
#: Schedulers of EDM and flow matching.
PATHS = ("EDM", "FlowMatch")
#: Pipelines that tell their scheduler where to step, down to a last step as long as the others.
OWN_SIGMAS = ("FluxPipeline",)
#: What a scheduler does where its configuration is silent (diffusers' defaults); the others default to ``leading``.
LINSPACE = ("DPMSolver", "UniPC", "Euler", "Heun", "DEIS", "LMS", "KDPM2")


@dataclass(frozen=True)
class Finding:
    """One trap: ``fail`` where samples would be wrong, ``warn`` where they may be, or are needlessly slow."""

    status: Literal["warn", "fail"]
    what: str
    advice: str

    def __str__(self) -> str:
        return f"{self.what} ({self.advice})"


def lint(folder: Path | str, steps: int | None = None) -> list[Finding]:
    """Findings about a pipeline folder, or a folder with a ``scheduler_config.json`` alone; none when all is well.

    Args:
        steps: what it is to be sampled with; None: what its ``sampler.json`` says, if it has one.

    Raises:
        UserError: there is no scheduler configuration, or it is not JSON.
    """
    folder = Path(folder)
    inside = folder / "scheduler" / "scheduler_config.json"
    config = read_object(inside if inside.is_file() else folder / "scheduler_config.json")
    index = read_object(folder / "model_index.json") if (folder / "model_index.json").is_file() else {}
    own = read_object(folder / "sampler.json") if (folder / "sampler.json").is_file() else {}
    wanted = own.get("steps") if steps is None else steps
    return lint_scheduler(config, wanted, pipeline=index.get("_class_name", ""), ours=bool(own))


def lint_scheduler(
    config: Mapping[str, Any], steps: int | None = None, *, pipeline: str = "", ours: bool = False
) -> list[Finding]:
    """As `lint`, of a scheduler's configuration.

    Args:
        pipeline: the class of the pipeline around it.
        ours: it was saved by this package, whose samplers never clip.
    """
    scheduler = str(config.get("_class_name", ""))
    if scheduler.startswith(PATHS) or config.get("use_flow_sigmas"):
        return [*_pipeline(pipeline, scheduler), *_bent(config, scheduler, ours or pipeline in OWN_SIGMAS)]
    found = [*_pipeline(pipeline, scheduler), *_spacing(config, scheduler), *_clipping(config, ours)]
    return [*found, *_signal(config), *_steps(config, scheduler, steps)]


def _pipeline(pipeline: str, scheduler: str) -> Iterator[Finding]:
    if pipeline == "DDIMPipeline" and scheduler != "DDIMScheduler":
        yield Finding(
            "fail",
            f"DDIMPipeline silently replaces {scheduler} by DDIMScheduler",
            "save it as ConsistencyModelPipeline",
        )
    if pipeline == "DDPMPipeline":
        yield Finding("warn", "DDPMPipeline takes 1,000 steps unless told", "pass num_inference_steps")
        if scheduler.startswith("EDM"):
            what = f"DDPMPipeline neither scales the noise to {scheduler}'s nor the network's input"
            yield Finding("fail", what, "save it as ConsistencyModelPipeline")


def _bent(config: Mapping[str, Any], scheduler: str, ours: bool) -> Iterator[Finding]:
    """Of EDM and flow matching: the last step before the clean sample is of the scheduler's own choice."""
    if config.get("final_sigmas_type") == "sigma_min":
        yield Finding("fail", "final_sigmas_type 'sigma_min': noise is left", "set final_sigmas_type='zero'")
    if scheduler.startswith("FlowMatch") and not config.get("shift_terminal") and not ours:
        what = f"{scheduler} spends its last step on the last thousandth of the noise"
        yield Finding("warn", what, "set shift_terminal to 1 / steps, or pass sigmas")


def _spacing(config: Mapping[str, Any], scheduler: str) -> Iterator[Finding]:
    default = "linspace" if scheduler.startswith(LINSPACE) else "leading"
    spacing = config.get("timestep_spacing", default)
    if scheduler in OWN_SPACING or spacing == "trailing":
        return
    why = "starts below the noise that sampling starts from" if spacing == "leading" else "visits other times"
    yield Finding("fail", f"timestep_spacing {spacing!r} {why}", "set timestep_spacing='trailing'")


def _clipping(config: Mapping[str, Any], ours: bool) -> Iterator[Finding]:
    for key in ("clip_sample", "thresholding"):
        if config.get(key):
            status: Literal["warn", "fail"] = "fail" if ours else "warn"
            yield Finding(status, f"{key} is on: predictions outside of [-1, 1] are cut", f"set {key}=False")


def _signal(config: Mapping[str, Any]) -> Iterator[Finding]:
    """How much of x is left at the last timestep, where a network that predicts epsilon says nothing of it."""
    if config.get("prediction_type", "epsilon") != "epsilon":
        return
    try:
        left = float(Process.from_scheduler(config).alpha(-1 + int(config["num_train_timesteps"])))
    except UserError:  # not variance preserving: said where it is loaded
        return
    if left == 0 or config.get("rescale_betas_zero_snr"):
        advice = "only v_prediction or sample can start there"
        yield Finding("fail", "zero terminal SNR with epsilon prediction: x cannot be told from the noise", advice)
    elif left < LITTLE_SIGNAL:
        advice = "prefer v_prediction"
        yield Finding("warn", f"epsilon prediction with alpha {left:.0e} at the last timestep", advice)


def _steps(config: Mapping[str, Any], scheduler: str, steps: int | None) -> Iterator[Finding]:
    total, original = config.get("num_train_timesteps", 1000), config.get("original_inference_steps", 50)
    if scheduler in OWN_SPACING and total % original:
        advice = f"choose a divisor of {total}"
        yield Finding("fail", f"original_inference_steps {original} does not divide {total} timesteps", advice)
    if steps is None:
        return
    most = original if scheduler in OWN_SPACING else total
    if steps > most:
        yield Finding("fail", f"{steps} steps are more than the {most} there are", f"sample with at most {most}")
    elif scheduler == "DDIMScheduler" and total % steps:
        advice = "DPMSolverMultistepScheduler(solver_order=1) is DDIM for any number of steps"
        yield Finding("fail", f"DDIMScheduler steps to wrong times: {steps} steps do not divide {total}", advice)
    elif scheduler not in OWN_SPACING and (times := len(np.arange(total, 0, -total / steps))) != steps:
        advice = "choose another number of steps"
        yield Finding("fail", f"trailing spacing gives {times} times for {steps} steps of {total}", advice)


__all__ = ["Finding", "lint", "lint_scheduler"]
