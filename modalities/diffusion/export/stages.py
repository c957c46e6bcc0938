"""A student and those of its stages beside it, each through the reload gate."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..models.denoiser import Denoiser
from .pipeline import load_denoiser, network_folder
from .reload_gate import reload_gates


def gated(folder: Path, model: Denoiser) -> Mapping[str, Any]:
    """Bytes, steps and reload difference of each, by the name of its folder. Raises `RunError` as the gate does."""
    stages = sorted(path.parent for path in folder.glob("*/model_index.json"))
    places = {folder: model} | {path: load_denoiser(path, quiet=True) for path in stages}
    differences = reload_gates(places)
    return {
        place.name: {
            "bytes": sum(path.stat().st_size for path in network_folder(place).glob("*.safetensors")),
            "steps": denoiser.sampling.steps,
            "reload_difference": differences[place],
        }
        for place, denoiser in places.items()
    }


__all__ = ["gated"]
