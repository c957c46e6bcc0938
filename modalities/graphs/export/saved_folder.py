"""A saved network of nodes: ``card.json`` and ``model.safetensors`` or ``packed.safetensors``; its card; ONNX."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, ValidationError
from torch import Tensor

from xmodal_kd.adapter import saved_model as saved
from xmodal_kd.adapter.saved_model import CARD, WEIGHTS, About, explain, read_card
from xmodal_kd.compress.folder import load
from xmodal_kd.models import onnx
from xmodal_kd.runtime.allocation import bounded
from xmodal_kd.runtime.checkpoint import write_json, write_tensors
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.timing import latency

from ..models import MODELS, Network

FP32, EXTRA = "model.onnx", "graphs"
USE = """```python
from pathlib import Path

import torch
from xmodal_kd.modalities.graphs.export.saved_folder import load_model

model = load_model(Path("path/to/this/folder"))
{call}
```
"""
ALONE = "scores = model(torch.zeros(3, {features}))  # nodes, features: no neighbours"
AROUND = """x = torch.zeros(3, {features})  # nodes, features
edges = torch.tensor([[1, 0, 2, 0], [0, 1, 0, 2]])  # from, to: each edge both ways, no loops
scores = model(x, edges, degree=torch.tensor([2.0, 1.0, 1.0]))  # neighbours of each node"""
ONNX = """
`model.onnx`, where it lies here, takes `x` (batch, {features}) and gives `logits` (batch, {classes})."""


class Card(saved.Card):
    """All that a network of nodes needs beside its weights."""

    modality: str = Field(pattern="^graphs$")
    features: int = Field(ge=1, le=1 << 24)
    """Of a node."""
    classes: tuple[str, ...]
    """What each output means, in order."""


def build(card: Card) -> Network:
    """The network that a card names, with fresh weights."""
    kind = MODELS[card.model]
    model: Network = kind(kind.Config.model_validate(card.params), features=card.features, classes=len(card.classes))
    model.card = card.model_dump(mode="json")
    return model


def save_model(folder: Path, model: Network, extra: Mapping[str, Any]) -> None:
    """Write a folder that `load_model` reads; the card, which makes it a model, comes last."""
    write_tensors(folder / WEIGHTS, model.state_dict())
    write_json(folder / CARD, {**model.card, **extra})


def load_card(folder: Path) -> Card:
    """The card of a saved network of nodes. Raises `UserError` that names what is missing or wrong."""
    return read_card(folder, Card, "network of nodes")


def load_model(folder: Path) -> Network:
    """The model of a saved folder, in eval mode on the CPU.

    Raises:
        UserError: a file is missing or damaged, or the weights are not those of the model that the card names.
    """
    card = load_card(folder)
    try:
        with bounded(f"{folder / CARD}: params"):
            model = build(card)
    except ValidationError as error:
        raise UserError(f"{folder / CARD}: {explain(error, 'params')}") from error
    load(model, folder / WEIGHTS)
    return model.eval()


def about(card: Card) -> About:
    """What it sees of a node, and its classes."""
    sees = MODELS[card.model].sees_edges
    named = ", ".join(card.classes[:20]) + (", ..." if len(card.classes) > 20 else "")
    by = "its features and what lies around it" if sees else "its own features alone"
    what = (
        f"It names the class of a node of a graph by {by} ({card.features} numbers a node): one of "
        f"{len(card.classes)} ({named})."
    )
    use = USE.replace("{call}", AROUND if sees else ALONE) + ("" if sees else ONNX)
    use = use.replace("{features}", str(card.features)).replace("{classes}", str(len(card.classes)))
    return About("Classifier of nodes", what, use, {"pipeline_tag": "graph-ml"})


def export(model: Network, folder: Path) -> dict[str, Any]:
    """Write ``model.onnx`` beside the saved model in `folder`, where it sees no neighbours.

    Returns:
        Of the file its ``bytes``, the largest difference from torch (``max_error``), and the latency of a node:
        ``milliseconds`` (median), ``p95_ms``, ``runs``, ``threads``. Of others the bytes of the weights.

    Raises:
        RunError: the exported model differs from torch by more than 1e-4.
        UserError: onnx, onnxscript or onnxruntime is missing.
    """
    if model.sees_edges:
        return {path.name: {"bytes": path.stat().st_size} for path in folder.glob("*.safetensors")}
    errors, threads, features = list[float](), torch.get_num_threads(), load_card(folder).features

    def check(path: Path) -> None:
        run = partial(onnx.run, onnx.session(path, extra=EXTRA))
        errors.extend(onnx.prove(model, run, _wave(n, features)) for n in (1, 3))

    example = torch.zeros(2, features, device=next(model.parameters()).device)
    path = onnx.export(model, folder / FP32, {"x": example}, ["logits"], {"x": {0: "batch"}}, check, extra=EXTRA)
    found = latency(partial(onnx.run, onnx.session(path, threads=threads, extra=EXTRA), _wave(1, features)))
    times = {"milliseconds": found["median_ms"], "p95_ms": found["p95_ms"], "runs": found["runs"]}
    return {FP32: {"bytes": path.stat().st_size, "max_error": max(errors), **times, "threads": threads}}


def _wave(nodes: int, features: int) -> Tensor:
    """Fixed features rather than noise: exporting draws nothing from the global generator."""
    return torch.sin(torch.arange(nodes * features, dtype=torch.float32)).reshape(nodes, features)


__all__ = ["FP32", "Card", "about", "build", "export", "load_card", "load_model", "save_model"]
