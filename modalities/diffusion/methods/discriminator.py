"""DMD2's discriminator: a head on the fake denoiser's features, which tells noisy real data from noisy samples.

Yin et al. (2024b), section 4.3. It lends the student what the teacher never learnt of the data. The denoiser learns
with its head, so that it costs a head's weights and a pass over the real data, and no network of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xmodal_kd.runtime.errors import UserError
from xmodal_kd.signals.capture import capture, find_modules, only_call

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

    def forward(self, features: Tensor) -> Tensor:
        """``(b,)``: above 0 for real."""
        places = features.reshape(*features.shape[:2], -1)
        logits: Tensor = self.out(F.silu(self.norm(self.narrow(places))).flatten(1))
        return logits.squeeze(1)


def read_at(model: Denoiser, at: str) -> str:
    """The one module that `at` names. Raises `UserError` for none, or for several."""
    found = find_modules(model, at)
    if len(found) > 1:
        raise UserError(f"method.params.at: {at} names {len(found)} modules: name one")
    return found[0]


def head_for(model: Denoiser, at: str, z: Tensor, labels: Tensor | None) -> Head:
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


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """No parameter of `modules` is part of what is computed inside the block; gradients pass through them."""
    learning = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


__all__ = ["Head", "frozen", "head_for", "judged", "read_at"]
