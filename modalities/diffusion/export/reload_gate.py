"""The reload gate: a saved pipeline, loaded by diffusers in a fresh process, samples what the trainer's sampler does.

As a program, ``python -m xmodal_kd.modalities.diffusion.export.reload_gate SAMPLES FOLDER...``, it knows diffusers and
``sampler.json`` only, so that nothing of the trainer can hide a wrong scheduler.
"""

from __future__ import annotations

import copy
import inspect
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from ..data.condition import Condition
    from ..models.denoiser import Denoiser

SEED = 20
#: Samples at most where each of them is decoded to an image.
DECODED = 2
#: Written into the folder and left there when they differ: what the pipeline and what the trainer's sampler made.
PIPELINE, TRAINER = "reload-pipeline.npy", "reload-trainer.npy"
#: Seconds that the fresh process may take for a pipeline.
PATIENCE = 900


def reload_gate(folder: Path | str, denoiser: Denoiser, *, samples: int = 8, tolerance: float = 1e-4) -> float:
    """The largest difference of a pixel in [0, 1] between the pipeline in `folder` and `denoiser`, from the same noise.

    Both run on the CPU in float32. The order of the draws is the pipeline's: the starting noise first, then what
    consistency sampling adds.

    Raises:
        RunError: the pipeline does not run, or differs by more than `tolerance`; both arrays stay in the folder.
    """
    return reload_gates({Path(folder): denoiser}, samples=samples, tolerance=tolerance)[Path(folder)]


def reload_gates(
    places: Mapping[Path, Denoiser], *, samples: int = 8, tolerance: float = 1e-4
) -> dict[Path, float]:  # fmt: skip
    """`reload_gate` of several pipelines in one fresh process, whose start is most of the cost."""
    _in_a_fresh_process(list(places), samples)
    return {folder: _difference(folder, denoiser, samples, tolerance) for folder, denoiser in places.items()}


def _difference(folder: Path, denoiser: Denoiser, samples: int, tolerance: float) -> float:
    from xmodal_kd.runtime.errors import RunError

    from ..models.denoiser import Sampling

    about = json.loads((folder / "sampler.json").read_text())
    theirs = np.load(folder / PIPELINE, allow_pickle=False)
    ours = _trainer(
        denoiser, Sampling(about["solver"], about["steps"], about["original"]), samples, about.get("prompts") or [""]
    )
    difference = float(np.abs(theirs - ours).max()) if theirs.shape == ours.shape else float("inf")
    if not difference <= tolerance:  # NaN too
        np.save(folder / TRAINER, ours)
        raise RunError(
            f"{folder}: the saved pipeline differs from the trainer's sampler by {difference:.2g} of 1 (at most "
            f"{tolerance:g}) from the same noise: compare {folder / PIPELINE} with {folder / TRAINER}"
        )
    (folder / PIPELINE).unlink()
    (folder / TRAINER).unlink(missing_ok=True)
    return difference


def _in_a_fresh_process(folders: Sequence[Path], samples: int) -> None:
    """Each folder's pipeline writes what it samples into its folder."""
    from xmodal_kd.runtime.child import python, with_package
    from xmodal_kd.runtime.errors import RunError

    environment = with_package() | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = python("-m", __name__, str(samples), *map(str, folders))
    patience = PATIENCE * len(folders)
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=patience, check=False)
    except subprocess.TimeoutExpired as error:
        raise RunError(f"{folders[0]}: saved pipelines took more than {patience} s for {samples} samples") from error
    if done.returncode:
        at = (done.stdout.strip().splitlines() or [str(folders[0])])[-1]
        last = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise RunError(f"{at}: the saved pipeline does not run in a fresh process: {last}")


def _trainer(denoiser: Denoiser, how: Any, samples: int, prompts: Sequence[str]) -> np.ndarray:
    """What the trainer's sampler makes, in [0, 1] as pipelines give it: ``(samples, c, h, w)``."""
    model = copy.deepcopy(denoiser).cpu().float().eval()
    generator = torch.Generator().manual_seed(SEED)
    samples = samples if model.parts is None else min(samples, DECODED)
    noise = torch.randn(samples, *model.shape, generator=generator)
    labels: Condition | None = torch.arange(samples) % model.classes if model.classes is not None else None
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the fresh process: on a busy machine threads of so small a job wait for each other
    try:
        if model.parts is not None and model.parts.text:
            labels = model.parts.prompts([prompts[i % len(prompts)] for i in range(samples)])
        x = model.sample(noise, labels, how, generator)
        x = x if model.parts is None else model.parts.decode(x)
    finally:
        torch.set_num_threads(threads)
    return np.asarray((x / 2 + 0.5).clamp(0, 1).numpy())


def main(folder: str, samples: int) -> None:
    """Run the pipeline as anyone would, with diffusers alone, and write its images ``(samples, c, h, w)``."""
    from diffusers import DiffusionPipeline

    about = json.loads((Path(folder) / "sampler.json").read_text())
    none: dict[str, Any] = dict.fromkeys(about.get("absent", ()))
    pipeline = DiffusionPipeline.from_pretrained(folder, use_safetensors=True, local_files_only=True, **none)
    pipeline.set_progress_bar_config(disable=True)
    known = inspect.signature(pipeline.__call__).parameters
    if "vae" in pipeline.components or "vqvae" in pipeline.components:
        samples = min(samples, DECODED)
    told: dict[str, Any] = {} if "prompt" in known or "guidance_scale" in known else {"batch_size": samples}
    if about["classes"]:
        told["class_labels"] = [i % about["classes"] for i in range(samples)]
    if "prompt" in known:
        prompts = about.get("prompts") or [""]
        told["prompt"] = [prompts[i % len(prompts)] for i in range(samples)]
    if "guidance_scale" in known:
        told["guidance_scale"] = about.get("guidance", 1.0)
    if about.get("size"):
        told["height"], told["width"] = about["size"]
    if "use_resolution_binning" in known:
        told["use_resolution_binning"] = False  # images have the size that the network was made for
    if "eta" in known and about["solver"] == "tcd":  # such pipelines hand their own to the scheduler, which is 0
        told["eta"] = 0.3
    if getattr(pipeline, "safety_checker", None) is not None:
        pipeline.safety_checker = None  # it judges images, and makes none
    # torch's own generator: some pipelines do not hand theirs to their scheduler, which then draws from this one
    generator = torch.manual_seed(SEED)
    made = pipeline(num_inference_steps=about["steps"], generator=generator, output_type="pt", **told).images
    images = made.numpy() if isinstance(made, torch.Tensor) else made.transpose(0, 3, 1, 2)
    np.save(Path(folder) / PIPELINE, images)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for place in sys.argv[2:]:
        print(place, flush=True)  # whoever reads knows where it ended
        main(place, int(sys.argv[1]))
