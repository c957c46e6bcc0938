"""The diffusers scheduler that samples a saved model as the trainer did."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchLCMScheduler,
    LCMScheduler,
    TCDScheduler,
)

from xmodal_kd.runtime.errors import UserError

from ..models.denoiser import LCM, TCD, TIMESTEP_SCALING, Sampling
from ..models.paths import Edm, Flow, shifted
from ..models.process import Process

#: How far log(alpha_t^2) of a named schedule may be from the process's: diffusers itself computes in float32.
SAME = 1e-9


def scheduler_for(process: Process, prediction: str, sampling: Sampling, *, given: bool = False) -> Any:
    """A scheduler with the process's own betas that visits the trainer's timesteps.

    ``ddim`` is saved as DPM-Solver++ of first order, which is DDIM exactly, for any number of steps: diffusers'
    `DDIMScheduler` steps to the wrong time unless the number of steps divides T. Of EDM and flow matching DDIM is
    Euler's method, and the scheduler's grid is bent to the trainer's for the steps that the model is saved with.

    Args:
        given: whether its pipeline tells the scheduler sigmas of its own, which are our grid before the shift.

    Raises:
        ValueError: there is no such scheduler; see `saveable`.
    """
    if isinstance(process, Edm):
        return _edm(process, prediction, sampling)
    if isinstance(process, Flow):
        return _flow(process, sampling, given)
    common = schedule_of(process) | {"prediction_type": prediction, "timestep_spacing": "trailing"}
    if sampling.solver == LCM:
        return LCMScheduler(
            **common, original_inference_steps=sampling.original, timestep_scaling=TIMESTEP_SCALING, clip_sample=False,
            set_alpha_to_one=True,
        )  # fmt: skip
    if sampling.solver == TCD:
        return TCDScheduler(**common, original_inference_steps=sampling.original, clip_sample=False)
    if sampling.solver not in ("ddim", "dpmpp_2m"):
        raise ValueError(f"no scheduler of diffusers equals our {sampling.solver}")
    return DPMSolverMultistepScheduler(
        **common, solver_order=2 if sampling.solver == "dpmpp_2m" else 1, algorithm_type="dpmsolver++",
        final_sigmas_type="zero", lower_order_final=True, thresholding=False,
    )  # fmt: skip


def _edm(process: Edm, prediction: str, sampling: Sampling) -> Any:
    """Its grid runs from sigma_max to sigma_min, both among its steps: ours ends before, so that is its sigma_min."""
    if sampling.solver != "ddim" and not (sampling.solver == LCM and sampling.steps == 1):
        raise ValueError(f"no scheduler of diffusers equals our {sampling.solver} of EDM")
    last = float(process.sigma(sampling.times(process)[-2]))
    if sampling.steps == 1:  # a single step is of sigma_max, but of sigma_min where it is exponential
        last = process.sigma_min if process.schedule == "karras" else process.sigma_max * (1 - 1e-6)
    return EDMEulerScheduler(
        sigma_min=last, sigma_max=process.sigma_max, sigma_data=process.sigma_data, rho=process.rho,
        sigma_schedule=process.schedule, prediction_type={"edm": "epsilon", "edm_v": "v_prediction"}[prediction],
    )  # fmt: skip


def _flow(process: Flow, sampling: Sampling, given: bool) -> Any:
    """The scheduler's steps are equally far apart before its shift, down to its own shifted 1 / T, and then stretched.

    With steps d apart, the shift q whose stretched times are ours, shifted by s, has q / N = (q - 1) / (s - 1) s d.
    """
    kinds = {"ddim": FlowMatchEulerDiscreteScheduler, LCM: FlowMatchLCMScheduler}
    if sampling.solver not in kinds:
        raise ValueError(f"no scheduler of diffusers equals our {sampling.solver} of flow matching")
    steps, scale, shift, q = sampling.steps, int(process.scale), process.shift, process.shift
    if steps == 1 or given:
        return kinds[sampling.solver](num_train_timesteps=scale, shift=shift)
    for _ in range(100):
        lowest = float(shifted(torch.tensor(1 / scale, dtype=torch.float64), q))
        apart = steps * shift * (1 - lowest) / (steps - 1)
        q = apart / (apart - shift + 1)
    last = float(process.sigma(sampling.times(process)[-2]))
    return kinds[sampling.solver](num_train_timesteps=scale, shift=q, shift_terminal=last)


def saveable(sampling: Sampling, process: Process) -> Sampling:
    """`sampling`, or DDIM at as many evaluations where diffusers has not our solver or computes it otherwise.

    Those are Heun's method, and beside betas DPM-Solver++ too.
    """
    exact = ("ddim", LCM, TCD, "dpmpp_2m") if process.kind == "vp" else ("ddim", LCM)
    return sampling if sampling.solver in exact else Sampling("ddim", min(sampling.nfe, process.T))


def schedule_of(process: Process) -> dict[str, Any]:
    """The process as keywords of a scheduler: by name where a named schedule has this very table, else its betas."""
    table = process.alphas_cumprod
    if float(table[-1]) <= 0:
        raise UserError("the last timestep keeps no signal (zero terminal SNR): diffusers' schedulers divide by it")
    betas = 1 - table / torch.cat([table.new_ones(1), table[:-1]])
    start, end = (float(f"{float(beta):.10g}") for beta in (betas[0], betas[-1]))
    for name in ("squaredcos_cap_v2", "linear", "scaled_linear"):
        ends = {} if name == "squaredcos_cap_v2" else {"beta_start": start, "beta_end": end}
        config = {"num_train_timesteps": process.T, "beta_schedule": name, **ends}
        if _same(table, config):
            return config
    return {"num_train_timesteps": process.T, "trained_betas": betas.tolist()}


def _same(table: torch.Tensor, config: dict[str, Any]) -> bool:
    try:
        named = Process.from_scheduler({"beta_start": 1e-4} | config).alphas_cumprod
    except UserError:  # these ends make no falling table
        return False
    return bool(((named.log() - table.log()).abs() <= SAME).all())
