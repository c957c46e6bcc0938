"""The diffusers scheduler that samples a saved model as the trainer did."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler, LCMScheduler, TCDScheduler

from xmodal_kd.runtime.errors import UserError

from ..models.denoiser import LCM, TCD, TIMESTEP_SCALING, Sampling
from ..models.process import Process

#: How far log(alpha_t^2) of a named schedule may be from the process's: diffusers itself computes in float32.
SAME = 1e-9


def scheduler_for(process: Process, prediction: str, sampling: Sampling) -> Any:
    """A scheduler with the process's own betas that visits the trainer's timesteps.

    ``ddim`` is saved as DPM-Solver++ of first order, which is DDIM exactly, for any number of steps: diffusers'
    `DDIMScheduler` steps to the wrong time unless the number of steps divides T.
    """
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


def saveable(sampling: Sampling, process: Process) -> Sampling:
    """`sampling`, or for Heun's method, which diffusers computes otherwise, DDIM at the same number of evaluations."""
    return sampling if sampling.solver != "heun" else Sampling("ddim", min(sampling.nfe, process.T))


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
