"""The student's network as ONNX, its sampler as a table beside it, and what decodes its latents: no torch is needed.

``model.onnx``    ``sample`` (batch, c, h, w), ``timestep`` (batch,), what it is told; to ``prediction``, as ``sample``
``onnx.json``     the few steps as numbers (see `onnx_table`), and what the inputs are
``decoder.onnx``  of latents: ``latents`` (batch, c, h, w), as the network makes them, to ``images`` in [-1, 1]
``prompts.npz``   of a prompted model: what its text encoders say of its card's prompts, and where it is guided of none
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    FluxTransformer2DModel,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    UNet2DModel,
    VQModel,
)
from torch import Tensor, nn

from xmodal_kd.models import onnx
from xmodal_kd.runtime.checkpoint import read_object, write_bytes, write_json

from ..data.condition import Condition, Text, each, rows
from ..models.asked import ask, is_told
from ..models.denoiser import Denoiser, Sampling
from ..models.parts import Parts
from ..models.sizes import halvings
from .onnx_card import snippet
from .onnx_sampler import DECODER, EXTRA, FP32, PROMPTS, TABLE, measured
from .onnx_table import table
from .pipeline import README, SAMPLER, load_denoiser

#: Networks and autoencoders that take images of any size as ONNX, too: others compute places where they are traced.
ANY_SIZE = (UNet2DModel, UNet2DConditionModel, AutoencoderKL, VQModel)
#: Networks that the exporter does not follow for more than one sample at once.
ONE_BY_ONE = (FluxTransformer2DModel, SanaTransformer2DModel)
#: diffusers copies batches of this many for a kernel of torch's, which the graph does not: it takes any number.
TRACED_BATCH = 63
#: Samples that are made by ONNX Runtime and by torch.
SAMPLES = 4


class Network(nn.Module):
    """A denoiser's network, called by tensors alone: ``sample``, ``timestep``, and those of `told`."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.net, self.text = denoiser.net, denoiser.prompted
        self.whole = denoiser.process.kind == "vp"
        self.guided, self.classes = is_told(denoiser.net), denoiser.classes

    def forward(self, *given: Tensor) -> Tensor:
        sample, timestep, *told = given
        scale: Tensor | float = told.pop() if self.guided else 1.0
        condition: Condition | None = Text(*told) if self.text else told[0] if told else None
        return ask(self.net, sample, timestep.long() if self.whole else timestep, condition, scale)


class Decoder(nn.Module):
    """Images of latents."""

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.parts, self.codec = parts, parts.codec

    def forward(self, latents: Tensor) -> Tensor:
        return self.parts.decoded(self.codec, latents)


def names(denoiser: Denoiser) -> list[str]:
    """Of what the network is told beside sample and timestep, in order."""
    net = denoiser.net
    beside = "text_embeds" if isinstance(net, UNet2DConditionModel) else "encoder_attention_mask"
    beside = "pooled_projections" if isinstance(net, FluxTransformer2DModel | SD3Transformer2DModel) else beside
    found = ["class_labels"] if denoiser.classes is not None else []
    if denoiser.prompted:
        assert isinstance(denoiser.null, Text)
        found = ["encoder_hidden_states", beside, "sizes"][: len(each(denoiser.null))]
    return [*found, *(["guidance"] if is_told(net) else [])]


def told(denoiser: Denoiser, condition: Condition | None) -> list[Tensor]:
    """The tensors of `names`."""
    found = [] if condition is None else each(condition)
    return [*found, *([torch.full((len(found[0]),), float(denoiser.guidance))] if is_told(denoiser.net) else [])]


def export(folder: Path) -> dict[str, dict[str, Any]]:
    """Write the files beside the saved pipeline in `folder`, and sample by them as by torch.

    Returns:
        By file its ``bytes``, the ``free`` axes and the ``max_error`` of one evaluation; of ``model.onnx`` also
        ``steps`` and what `onnx_sampler.measured` has; of the folder, by its name, ``milliseconds`` of torch.

    Raises:
        RunError: an evaluation differs from torch's by more than 1e-4 of its largest value (or of 1), or a sample by
            more than it may.
        UserError: onnx, onnxscript or onnxruntime is missing.
    """
    denoiser, about = load_denoiser(folder, quiet=True), read_object(folder / SAMPLER)
    denoiser.sampling = Sampling(about["solver"], about["steps"], about["original"])
    prompts = about["prompts"] or [""]
    said = conditions(denoiser, prompts)
    found = {FP32: _network(denoiser, folder, said)}
    if denoiser.parts is not None:
        found[DECODER] = _decoder(denoiser, folder)
    if isinstance(said, Text):
        _write_prompts(denoiser, folder, rows(said, slice(len(prompts))))
    write_json(folder / TABLE, describe(denoiser, found))
    _tell(folder)
    ours, theirs = measured(denoiser, folder, said, dict(zip(names(denoiser), told(denoiser, said), strict=True)))
    found[FP32] |= {"steps": denoiser.sampling.steps, **ours}
    return {folder.name: theirs, **found}


def conditions(denoiser: Denoiser, prompts: Sequence[str]) -> Condition | None:
    """What `SAMPLES` samples are told, or as many as there are prompts: classes, or the prompts in turn."""
    if denoiser.prompted:
        assert denoiser.parts is not None
        return rows(denoiser.parts.prompts(prompts), torch.arange(max(SAMPLES, len(prompts))) % len(prompts))
    return None if denoiser.classes is None else torch.arange(SAMPLES) % denoiser.classes


def describe(denoiser: Denoiser, found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What ``onnx.json`` holds: the table, and what whoever samples without this package must know."""
    null = denoiser.null_class
    return {
        "format": 1, "inputs": ["sample", "timestep", *names(denoiser)], "shape": list(denoiser.shape),
        "batch": None if found[FP32]["free"] else 1, "classes": denoiser.classes,
        "multiple": _multiple(denoiser.net) if len(found[FP32]["free"]) > 1 else None,
        "null_class": None if null is None else int(null[0]), "guidance": denoiser.guidance,
        "evaluations": denoiser.cost, "decoder": DECODER if DECODER in found else None,
        **table(denoiser.process, denoiser.prediction, denoiser.sampling),
    }  # fmt: skip


def _network(denoiser: Denoiser, folder: Path, said: Condition | None) -> dict[str, Any]:
    network, free = Network(denoiser).eval(), _free(denoiser.net)
    time = denoiser.process.network(torch.zeros(1), torch.tensor([denoiser.process.T // 2]))[1].float()

    def given(count: int, larger: int) -> list[Tensor]:
        channels, *sides = denoiser.shape
        z = wave((count, channels, *(side + larger for side in sides)))
        return [z, time.repeat(count), *told(denoiser, None if said is None else rows(said, slice(count)))]

    inputs = dict(zip(["sample", "timestep", *names(denoiser)], given(2 if free else 1, 0), strict=True))
    batch = {axis: name for axis, name in free.items() if axis == 0}
    axes = {name: free if name == "sample" else batch for name in inputs}
    return _written(network, folder / FP32, inputs, "prediction", axes, given, 2 * _multiple(denoiser.net))


def _decoder(denoiser: Denoiser, folder: Path) -> dict[str, Any]:
    assert denoiser.parts is not None
    decoder = Decoder(denoiser.parts).eval()

    def given(count: int, larger: int) -> list[Tensor]:
        channels, *sides = denoiser.shape
        return [wave((count, channels, *(side + larger for side in sides)))]

    axes = {"latents": _free(decoder.codec)}
    return _written(decoder, folder / DECODER, {"latents": given(2, 0)[0]}, "images", axes, given, 2)


def _written(
    model: nn.Module, path: Path, inputs: Mapping[str, Tensor], output: str, axes: Mapping[str, Mapping[int, Any]],
    given: Callable[[int, int], list[Tensor]], larger: int,
) -> dict[str, Any]:  # fmt: skip
    """An exported file: its size, free axes and error, at the size that it was traced at and at a larger one."""
    free, errors = next(iter(axes.values())), list[float]()

    def check(made: Path) -> None:
        session = onnx.session(made, extra=EXTRA)
        for one in (given(1, 0), *([given(3, larger if len(free) > 1 else 0)] if free else [])):
            bound = onnx.TOLERANCE * max(1.0, float(model(*one).abs().max()))
            errors.append(onnx.prove(model, partial(onnx.run, session), *one, tolerance=bound))

    with torch.no_grad():
        onnx.export(model, path, inputs, [output], axes, check, extra=EXTRA)
    size = sum(part.stat().st_size for part in (path, onnx.weights_of(path)) if part.is_file())
    return {"bytes": size, "free": ["batch", "rows", "columns"][: len(free)], "max_error": max(errors)}


def _multiple(net: Any) -> int:
    """What both sides must divide by."""
    return 2 ** halvings(net) if isinstance(net, UNet2DModel | UNet2DConditionModel) else 1


def _free(net: Any) -> dict[int, Any]:
    """The axes of any size of what it is given first."""
    if isinstance(net, ONE_BY_ONE):
        return {}
    free: dict[int, Any] = {0: torch.export.Dim("batch", max=TRACED_BATCH)}
    if not isinstance(net, ANY_SIZE):
        return free
    multiple, sides = _multiple(net), (torch.export.Dim("rows"), torch.export.Dim("columns"))
    return free | {axis: side if multiple == 1 else multiple * side for axis, side in zip((2, 3), sides, strict=True)}


def _tell(folder: Path) -> None:
    """The program on a card that does not have it; a run writes its student's card anew afterwards."""
    card = folder / README
    text = card.read_text("utf-8") if card.is_file() else ""
    if text and TABLE not in text:
        write_bytes(card, f"{text}\n## By ONNX Runtime\n\n{snippet(read_object(folder / TABLE))}\n".encode())


def _write_prompts(denoiser: Denoiser, folder: Path, said: Condition) -> None:
    """A row for each prompt; where it is guided by the empty one, that too, as ``null_...``."""
    found = {name: part.numpy() for name, part in zip(names(denoiser), each(said), strict=False)}
    if denoiser.cost > 1:
        assert denoiser.null is not None
        found |= {f"null_{name}": part.numpy() for name, part in zip(found, each(denoiser.null), strict=True)}
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **found)
    write_bytes(folder / PROMPTS, buffer.getvalue())


def wave(shape: tuple[int, ...]) -> Tensor:
    """A fixed input rather than noise: exporting draws nothing from the global generator."""
    return torch.sin(torch.arange(torch.Size(shape).numel(), dtype=torch.float32)).reshape(shape)


__all__ = ["export"]
