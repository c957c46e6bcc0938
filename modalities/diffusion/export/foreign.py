"""Models of other kinds than these methods distil: what they are, and what to do instead, in one line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from xmodal_kd.adapter.saved_model import model_inside, student_of

#: How a network of one's own is given.
OWN_MODELS = "docs/own_models.md"
#: Parts that turn images into latents, and that make a prompt into numbers.
CODECS = ("vae", "vqvae", "movq", "prior", "decoder")
TEXT = ("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "bert")
OWN = (
    "give a pipeline of a UNet2DModel and its scheduler, a StableDiffusionPipeline, StableDiffusionXLPipeline, "
    "StableDiffusion3Pipeline, FluxPipeline, SanaPipeline, PixArtAlphaPipeline, PixArtSigmaPipeline, LDMPipeline or "
    "DiTPipeline, or let the recipe train a teacher (teacher.model)"
)


def foreign_parts(parts: Mapping[str, str]) -> str | None:
    """Why a pipeline of these parts, class by name, is not distilled; None for a ``UNet2DModel`` alone."""
    codec = next((name for name in CODECS if name in parts), None)
    over = f" on the latents of its {codec} ({parts[codec]})" if codec else ""
    if "unet" not in parts:
        if "transformer" in parts:
            return f"a {parts['transformer']}{over}, in a pipeline that is not distilled: {OWN}"
        return f"names no unet, only {', '.join(sorted(parts)) or 'nothing'}: {OWN}"
    kind = parts["unet"]
    if kind != "UNet2DModel":
        prompted = " prompted by text" if kind == "UNet2DConditionModel" else ""
        return f"its unet is a {kind}{prompted}{over}, in a pipeline that is not distilled: {OWN}"
    if codec:
        return (
            f"a UNet2DModel{over}: only an LDMPipeline's is run here: save it as one "
            "(LDMPipeline(vqvae, unet, scheduler).save_pretrained), or unet and scheduler alone (DDPMPipeline) and "
            "distil it on latents of your images in an .npz (data.sources: arrays, data.latents: true)"
        )
    if more := sorted(set(parts) - {"unet", "scheduler"}):
        return f"has {', '.join(more)} beside unet and scheduler, which would be left out of the student: {OWN}"
    return None


def foreign_schedule(scheduler: str) -> str | None:
    """Why a diffusers scheduler has no process that these methods know; None where its class says nothing of it."""
    kinds = {
        "FlowMap": "a flow map, a few-step model already",
        "Karras": "variance exploding, noise added to samples that are not scaled",
        "SCM": "TrigFlow, x_t = cos(s) x + sin(s) noise",
        "CMStochastic": "a consistency model on EDM's sigmas, a few-step model already",
    }
    kind = next((told for word, told in kinds.items() if word in scheduler), None)
    if kind is None:
        return None
    return (
        f"{scheduler} is of another process ({kind}): models are distilled whose scheduler has betas (DDPM, DDIM, "
        f"DPM-Solver), of EDM (EDMEulerScheduler) or of flow matching (FlowMatchEulerDiscreteScheduler): {OWN}"
    )


def instead(place: Path) -> str | None:
    """What is at a place that is no pipeline's folder, and what to do; None where that is not known."""
    if (student := student_of(place)) is not None:
        return f"it is a run: name its student {student}, or its teacher"
    if (inner := model_inside(place)) is not None:
        return f"name the folder in it: {inner}"
    names = (
        [path.name for path in sorted(place.iterdir())] if place.is_dir() else [place.name] if place.exists() else []
    )
    if any(name == "adapter_config.json" or "lora" in name.lower() for name in names):
        return (
            "a LoRA without its model: load it into its pipeline (pipeline.load_lora_weights, pipeline.fuse_lora) and "
            "give the folder of pipeline.save_pretrained"
        )
    if pickle := next((name for name in names if name.endswith(".pkl")), None):
        return f"{pickle} is a pickle, which can run code and is not read: give its network as your own ({OWN_MODELS})"
    single = [name for name in names if name.endswith((".safetensors", ".ckpt"))]
    if single and len(names) == len(single):
        return (
            f"{single[0]} is a checkpoint in a single file: load it once "
            "(StableDiffusionPipeline.from_single_file(FILE)) and give the folder of pipeline.save_pretrained"
        )
    return None


__all__ = ["foreign_parts", "foreign_schedule", "instead"]
