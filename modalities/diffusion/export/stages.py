"""A student and those of its stages beside it, each through the reload gate; the student also as ONNX."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..models.denoiser import Denoiser
from .onnx_network import export
from .pipeline import load_denoiser, network_folder
from .reload_gate import reload_gates


def gated(folder: Path, model: Denoiser, *, as_onnx: bool = False) -> Mapping[str, Any]:
    """Bytes, steps and reload difference of each, by the name of its folder; of ONNX files as `onnx_network.export`.

    Raises:
        RunError: as the gate does, and `onnx_network.export`.
    """
    stages = sorted(path.parent for path in folder.glob("*/model_index.json"))
    places = {folder: model} | {path: load_denoiser(path, quiet=True) for path in stages}
    differences = reload_gates(places)
    found = {
        place.name: {
            "bytes": sum(path.stat().st_size for path in network_folder(place).glob("*.safetensors")),
            "steps": denoiser.sampling.steps,
            "reload_difference": differences[place],
        }
        for place, denoiser in places.items()
    }
    for name, entry in export(folder).items() if as_onnx else ():
        found[name] = {**found.get(name, {}), **entry}
    return found


__all__ = ["gated"]
