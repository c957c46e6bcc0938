"""What a model and the data of a recipe must have in common, and what no pipeline of diffusers can do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import PixArtTransformer2DModel

from xmodal_kd.adapter.adapter import is_teacher
from xmodal_kd.adapter.images.found import shown
from xmodal_kd.runtime.binary_packages import load
from xmodal_kd.runtime.errors import UserError

from ..data.config import FEWEST, SPLITS, DiffusionData
from ..data.source import load_split
from ..models.asked import by_waves
from ..models.denoiser import Denoiser
from ..models.some_classes import keep_classes
from .onnx_sampler import EXTRA


def check_loaded(model: Denoiser, role: str, folder: Path, data: DiffusionData, names: Sequence[str] | None) -> None:
    """Raises `UserError` where a saved model is of other samples than the data's.

    A network with one class more than the data has is taken to know that of no class.
    """
    images, parts = tuple(load_split(data, "train").x.shape[1:]), model.parts
    made = model.shape if parts is None else parts.image_shape(model.shape)
    if made != images:
        latents = "" if parts is None else f" (of latents {shown(model.shape)})"
        raise UserError(
            f"{folder}: its {role} makes samples of {made}{latents}, the data's are {images}: resize or convert them"
        )
    if parts is not None and any(side % parts.family.multiple for side in made[1:]):
        raise UserError(
            f"{folder}: a {parts.kind} makes images whose sides are multiples of {parts.family.multiple}, and its "
            f"network those of {shown(made)}: use another teacher"
        )
    if parts is not None and data.latents:
        raise UserError("data.latents: the teacher has an autoencoder of its own: give images, and leave it out")
    if model.prompted != data.captions:
        wanted = "true, and every image a caption" if model.prompted else "false"
        told = "is prompted by text" if model.prompted else "takes no text"
        raise UserError(f"{folder}: its {role} {told}: set data.captions to {wanted}")
    classes = None if names is None else len(names)
    if by_waves(model.net):  # of any number of classes
        model.classes = classes
        if classes is None:
            raise UserError(f"{folder}: its {role} is told the number of a class: set data.conditional to true")
    if classes is not None and model.classes == classes + 1 and model.null is None:
        model.classes, model.null = classes, torch.tensor([classes])
    if is_teacher(role) and names is not None and model.classes is not None and _others(model, names, data):
        keep_classes(model, folder, names, data.teacher_classes)
    if model.classes != classes and not model.prompted:
        there = "no" if model.classes is None else model.classes
        raise UserError(
            f"{folder}: its {role} is conditioned on {there} classes, the data have "
            f"{'no labels in use' if names is None else len(names)} (data.conditional)"
        )
    if model.class_names is not None and names is not None and model.class_names != names:
        raise UserError(
            f"{folder}: its {role} orders the classes {model.class_names}, the data {names}: rename the data's classes"
        )


def _others(model: Denoiser, names: Sequence[str], data: DiffusionData) -> bool:
    """Whether a teacher's classes are not the data's, but may hold them."""
    named = model.class_names is not None and model.class_names != tuple(names)
    return bool(data.teacher_classes) or named or (model.classes or 0) > len(names)


def check_guidance(model: Denoiser, scale: float) -> None:
    """Raises `UserError` for a scale of guidance that a teacher cannot be sampled at."""
    if scale != 1 and not model.guidable:
        raise UserError(
            f"data.sampling.guidance: {scale:g} needs a teacher that knows a null condition beside its own (the empty "
            "prompt, or one class more than the data has): set it to 1"
        )


def check_saveable(model: Denoiser, data: DiffusionData) -> None:
    """Raises `UserError` for what would only be refused after the training."""
    model.sampling.times(model.process)  # more steps than there are timesteps
    check_exportable(model, data)
    kind, shape = model.process.kind, model.shape
    if kind != "vp" and model.process.T % model.sampling.steps:
        raise UserError(
            f"data.sampling.steps: {model.sampling.steps} does not divide the {model.process.T} timesteps of {kind}"
            ": take a power of 2"
        )
    if model.classes is not None and kind == "flow":
        raise UserError(
            "data.conditional: no diffusers pipeline takes classes for flow matching: set data.conditional to false"
        )
    if kind == "edm" and len(set(shape[1:])) > 1:
        raise UserError(
            f"no diffusers pipeline samples EDM's process for images that are not square {shape}: crop them"
        )
    if model.classes is not None and len(set(shape[1:])) > 1:
        raise UserError(
            f"data.conditional: no diffusers pipeline takes classes for images that are not square {shape}: "
            "crop them to squares, or set data.conditional to false"
        )
    for split in SPLITS:  # fewer than can be measured
        if (count := len(load_split(data, split))) < FEWEST:
            raise UserError(f"data: {count} {split} samples are too few to measure with: give at least {FEWEST}")


def check_exportable(model: Denoiser, data: DiffusionData) -> None:
    """Raises `UserError` where ``data.onnx`` is asked for and a package is missing, or no file can be made."""
    if not data.onnx:
        return
    for package in ("onnx", "onnxscript", "onnxruntime"):
        load(package, EXTRA)
    if isinstance(model.net, PixArtTransformer2DModel):
        raise UserError(f"data.onnx: torch's exporter does not follow a {type(model.net).__name__}: set it to false")


__all__ = ["check_exportable", "check_guidance", "check_loaded", "check_saveable"]
