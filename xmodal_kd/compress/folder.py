"""Weights of a saved folder, plain or packed: its card and ``packed.safetensors`` alone will do."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from ..runtime.checkpoint import load_weights, read_tensors
from .low_rank import take_apart
from .packed import PACKED


def load(model: nn.Module, path: Path) -> None:
    """Give a model the weights of `path`, or where that is not kept, of the packed file beside it.

    Layers that the file holds as two factors of low rank are such in the model then.

    Raises:
        UserError: both are missing, or the file is damaged or another model's.
    """
    small = path.with_name(PACKED)
    if path.exists() or not small.exists():
        tensors = read_tensors(path)
        take_apart(model, tensors)
        load_weights(model, tensors, path)
    else:
        from . import qat  # with all that trains a model

        qat.unpack(model, small)
