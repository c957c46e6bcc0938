"""A segmenter or detector in an ONNX file as a teacher: one exported here by its card, any other by ``onnx.json``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import model_validator
from torch import Tensor, nn

from xmodal_kd.adapter.saved_model import CARD, folder_of
from xmodal_kd.models.onnx_teacher import ABOUT, Graph, OnnxAbout, described
from xmodal_kd.runtime.errors import UserError, nearest

from ..data.config import View
from ..models.onnx_network import GIVEN, Channels, OnnxDetector, OnnxSegmenter
from .onnx import EXTRA
from .saved_folder import Card, load_card

#: How far probabilities may be from a sum of 1.
CLOSE = 1e-3


class Network(OnnxAbout):
    """What ``onnx.json``, or the recipe's ``teacher.params``, says of a segmenter of points."""

    #: What each output means, by the data's names; null, or a name that the data have not: it is not asked for. None:
    #: the classes of the recipe, in their order.
    classes: tuple[str | None, ...] | None = None
    #: What it is given, in order, of what its view has: range, x, y, z (metres), valid, intensity; red, green, blue.
    channels: tuple[str, ...] | None = None
    #: What each channel is lessened by, and then divided by.
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    #: Whether it answers probabilities, as where it ends in a softmax.
    probabilities: bool = False

    @model_validator(mode="after")
    def _fits(self) -> Network:
        for name in ("mean", "std"):
            given = getattr(self, name)
            if given is not None and len(given) != len(self.channels or ()):
                raise ValueError(f"{name} has {len(given)} numbers, and channels {len(self.channels or ())}")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError("std is above 0")
        named = [name for name in self.classes or () if name is not None]
        if twice := next((name for name in named if named.count(name) > 1), None):
            raise ValueError(f"classes has {twice!r} twice: one output a class is expected")
        return self


def is_ours(path: Path) -> bool:
    """Whether an ONNX file lies where it was exported, beside its card."""
    folder = folder_of(path)
    return path != folder and (folder / CARD).is_file() and not (folder / ABOUT).is_file()


def load_ours(path: Path, *, detects: bool = False) -> tuple[nn.Module, Card]:
    """What this project exported, as `load_model` gives a folder's.

    Raises:
        UserError: it is not one of those that can be run by what a batch holds.
    """
    card = load_card(folder_of(path), detects=detects)
    if detects and card.view.sees == "image":
        raise UserError(f"{path}: a detector of photographs teaches from its folder alone: give {folder_of(path)}")
    graph = Graph(path, EXTRA)
    if detects:
        return OnnxDetector(graph).eval(), card
    return OnnxSegmenter(graph, None, len(card.classes), points=card.view.sees == "points").eval(), card


def load_theirs(
    path: Path, said: Mapping[str, Any], view: View, classes: Sequence[str], trial: Callable[[nn.Module], Tensor]
) -> tuple[nn.Module, tuple[str, ...]]:
    """A segmenter of whatever trained it, and what its outputs mean; a name that is no class is not asked for.

    Args:
        said: by the recipe, of what `Network` says.
        view: what the teacher sees.
        classes: those that it is to tell apart.
        trial: its answer to a real frame.

    Raises:
        UserError: it is described wrongly, lacks a class, or does not take or answer what it is said to.
    """
    file, about = described(Network, path, said)
    at = f"channels of {file.parent / ABOUT}, or of the teacher's params"
    known = GIVEN[view.sees][: view.channels]
    if about.channels is None:
        raise UserError(f"{file}: what is it given? say {at}, in order, of {', '.join(known)}")
    if odd := next((name for name in about.channels if name not in known), None):
        lacks = "set intensity of its view to true" if odd == "intensity" else f"name in {at} these alone"
        raise UserError(
            f"{file}: its view has no channel {odd!r}{nearest(odd, known)}, but {', '.join(known)}: {lacks}"
        )
    asked = classes if about.classes is None else about.classes
    names = tuple(name if name is not None and name in classes else "" for name in asked)
    if lacking := next((name for name in classes if name not in names), None):
        raise UserError(
            f"{file}: none of its outputs is {lacking!r}: name it among its classes, or set classes of its view to "
            "those that it tells apart"
        )
    width = len(about.channels)
    channels = Channels(view.sees, about.channels, about.mean or (0.0,) * width, about.std or (1.0,) * width)
    model = OnnxSegmenter(
        Graph(file, EXTRA), channels, len(names), points=view.sees == "points", probabilities=about.probabilities,
        about=about,
    ).eval()  # fmt: skip
    _check_scores(file, about, trial(model))
    return model, names


def _check_scores(file: Path, about: Network, scores: Tensor) -> None:
    """Raises `UserError` where probabilities are taken for logits, or the other way round."""
    if not scores.isfinite().all():
        raise UserError(f"{file}: its answer to the first frame is not finite: are channels, mean and std its own?")
    one = torch.tensor(1.0, device=scores.device)
    held = scores.exp() if about.probabilities else scores
    sums = bool(torch.isclose(held.sum(dim=1), one, atol=CLOSE).all() and (held >= 0).all())
    if sums and not about.probabilities:
        raise UserError(f"{file}: its answers are probabilities, not logits: say probabilities: true in {ABOUT}")
    if about.probabilities and not sums:
        raise UserError(f"{file}: its answers are no probabilities, which sum to 1: leave probabilities out")


__all__ = ["is_ours", "load_ours", "load_theirs"]
