"""Discriminators: heads on a denoiser's features, which tell noisy real data from noisy samples.

DMD2's (Yin et al., 2024b, section 4.3) is one head on the fake denoiser, which learns with it, LADD's (Sauer et al.,
2024) are several on the frozen teacher. They lend the student what the teacher never learnt of the data, and cost the
weights of a head and a pass over the real data, but no network of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xmodal_kd.runtime.errors import UserError
from xmodal_kd.signals.capture import capture, find_modules, only_call

from ..data.condition import Condition, Text
from ..models.denoiser import Denoiser

#: Channels between the features and the logit, and the groups of their norm.
WIDTH, GROUPS = 64, 8


class Head(nn.Module):
    """One logit a sample of features ``(b, c, ...)``: a map of the channels, a norm, and a line over all places.

    Args:
        shape: ``(c, ...)`` of the features of one sample.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.narrow = nn.Conv1d(shape[0], WIDTH, 1)
        self.norm = nn.GroupNorm(GROUPS, WIDTH)
        self.out = nn.Linear(WIDTH * prod(shape[1:]), 1)

    def forward(self, features: Tensor, labels: Condition | None = None) -> Tensor:
        """``(b,)``: above 0 for real. It is told nothing of the condition."""
        logits: Tensor = self.out(self.places(features).flatten(1))
        return logits.squeeze(1)

    def places(self, features: Tensor) -> Tensor:
        """``(b, WIDTH, n)`` of all places."""
        found: Tensor = F.silu(self.norm(self.narrow(features.reshape(*features.shape[:2], -1))))
        return found


class ToldHead(Head):
    """A head that is told the condition: what its embedding and the mean over places have in common is added.

    As a projection discriminator (Miyato and Koyama, 2018), over the root of the width.

    Args:
        classes: that a condition is one of; None: it is a text, of `width` values a word.
    """

    def __init__(self, shape: Sequence[int], classes: int | None, width: int = 0) -> None:
        super().__init__(shape)
        self.told: nn.Module = nn.Embedding(classes, WIDTH) if classes is not None else nn.Linear(width, WIDTH)

    def forward(self, features: Tensor, labels: Condition | None = None) -> Tensor:
        """``(b,)``: above 0 for real samples of their condition."""
        assert labels is not None
        places = self.places(features)
        told = self.told(labels if isinstance(labels, Tensor) else whole(labels).to(places.dtype))
        return self.out(places.flatten(1)).squeeze(1) + (told * places.mean(dim=2)).sum(dim=1) / WIDTH**0.5  # type: ignore[no-any-return]


def whole(said: Text) -> Tensor:
    """One vector ``(b, d)`` of each prompt: the mean of its words that count.

    What stands beside the words says which count where it is as many numbers as there are words.
    """
    words = said.embedding
    if said.beside is None or said.beside.shape != words.shape[:2]:
        return words.mean(dim=1)
    counts = said.beside[:, :, None].to(words.dtype)
    return (words * counts).sum(dim=1) / counts.sum(dim=1).clamp(min=1)


def read_at(model: Denoiser, at: str) -> str:
    """The one module that `at` names. Raises `UserError` for none, or for several."""
    found = find_modules(model, at)
    if len(found) > 1:
        raise UserError(f"method.params.at: {at} names {len(found)} modules: name one")
    return found[0]


def head_for(model: Denoiser, at: str, z: Tensor, labels: Condition | None) -> Head:
    """With fresh weights from the global generator, made for what the module `at` says of z ``(b, ...)``."""
    with torch.no_grad(), capture(model, [at]) as taken:
        model(z, torch.zeros(len(z), dtype=torch.long, device=z.device), labels)
    features = only_call(at, taken[at])
    if features.ndim < 2:
        raise UserError(f"method.params.at: {at} puts out {tuple(features.shape)}: it has no channels to read")
    return Head(features.shape[1:]).to(features)


def judged(model: Denoiser, head: nn.Module, at: str, call: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """What `call` returns, which asks `model` once, and the head's logits ``(b,)`` of what it was asked about."""
    with capture(model, [at]) as taken:
        found = call()
    return found, head(only_call(at, taken[at]))


def read_all(model: Denoiser, at: Sequence[str]) -> list[str]:
    """All modules that the patterns `at` name, each once. Raises `UserError` for a pattern that names none."""
    return list(dict.fromkeys(name for pattern in at for name in find_modules(model, pattern)))


def heads_for(model: Denoiser, names: Sequence[str], z: Tensor, labels: Condition | None) -> nn.ModuleList:
    """A `head_for` each of the modules `names`."""
    return nn.ModuleList(head_for(model, name, z, labels) for name in names)


def features_at(
    model: Denoiser, names: Sequence[str], z: Tensor, t: Tensor, labels: Condition | None
) -> list[Tensor]:  # fmt: skip
    """What the modules `names` put out when `model` is asked about z ``(b, ...)`` at times t ``(b,)``."""
    with capture(model, names) as taken:
        model(z, t, labels)
    return [only_call(name, taken[name]) for name in names]


def hinge(real: Tensor, made: Tensor) -> Tensor:
    """What a critic minimises: ``(b,)`` means over k heads of max(0, 1 - D(real)) + max(0, 1 + D(made)), ``(k, b)``."""
    return (F.relu(1 - real) + F.relu(1 + made)).mean(dim=0)


__all__ = [
    "Head",
    "ToldHead",
    "features_at",
    "head_for",
    "heads_for",
    "hinge",
    "judged",
    "read_all",
    "read_at",
    "whole",
]
