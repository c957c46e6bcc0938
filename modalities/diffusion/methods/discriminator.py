"""Discriminators: heads on a denoiser's features, which tell noisy real data from noisy samples.

DMD2's (Yin et al., 2024b, section 4.3) is one head on the fake denoiser, which learns with it, LADD's (Sauer et al.,
2024) are several on the frozen teacher. They lend the student what the teacher never learnt of the data, and cost the
weights of a head and a pass over the real data, but no network of their own. SDXL-Lightning's (Lin et al., 2024) is a
network, and knows no data: it tells where a student's step leads from where its teacher's do.
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


class StridedHead(nn.Module):
    """One logit a sample of features ``(b, c, h, w)``: convolutions of 4 x 4 at stride 2, each with norm and SiLU.

    They end where a side is one place (Lin et al., 2024, section 3.3, which does not say how wide they are).

    Args:
        shape: ``(c, h, w)`` of the features of one sample.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        channels, *sides = shape
        layers: list[nn.Module] = []
        while min(sides) > 1:
            layers += [nn.Conv2d(channels, WIDTH, 4, stride=2, padding=1), nn.GroupNorm(GROUPS, WIDTH), nn.SiLU()]
            channels, sides = WIDTH, [side // 2 for side in sides]
        self.narrow = nn.Sequential(*layers)
        self.out = nn.Linear(channels * prod(sides), 1)

    def forward(self, features: Tensor) -> Tensor:
        """``(b,)``: above 0 for real."""
        logits: Tensor = self.out(self.narrow(features).flatten(1))
        return logits.squeeze(1)


class PairDiscriminator(nn.Module):
    """A denoiser as far as a module `at`, and a head on it, all of which learn: SDXL-Lightning's (Lin et al., 2024).

    Of a pair, the two ends of a step, the backbone sees each by itself, and the head both beside one another (eq. 22);
    else the head sees the later end alone (eq. 23). What comes after the module is computed and has no effect.

    Args:
        backbone: becomes part of it.
        z, labels: samples ``(b, ...)`` of the kind that it will see; the head has fresh weights from the global
            generator.
    """

    def __init__(self, backbone: Denoiser, at: str, z: Tensor, labels: Condition | None, *, pair: bool) -> None:
        super().__init__()
        self.backbone, self.at, self.pair = backbone.train().requires_grad_(True), at, pair
        weights = list(backbone.parameters())
        with torch.enable_grad():
            features = self.features(z, torch.zeros(len(z), dtype=torch.long, device=z.device), labels)
            slopes = torch.autograd.grad(features.sum(), weights, allow_unused=True)
        for weight, slope in zip(weights, slopes, strict=True):
            weight.requires_grad_(slope is not None)
        if features.ndim < 2:
            raise UserError(f"method.params.at: {at} puts out {tuple(features.shape)}: it has no channels to read")
        shape = (features.shape[1] * (2 if pair else 1), *features.shape[2:])
        self.head = (StridedHead if len(shape) == 3 and min(shape[1:]) > 1 else Head)(shape).to(features)

    backbone: Denoiser

    def features(self, z: Tensor, t: Tensor, labels: Condition | None) -> Tensor:
        """Of z ``(b, ...)`` at times t ``(b,)``."""
        return features_at(self.backbone, [self.at], z, t, labels)[0]

    def forward(self, end: Tensor, start: Tensor | None = None) -> Tensor:
        """Logits ``(b,)``, above 0 for the teacher's, of features of the later and the earlier end."""
        assert (start is not None) == self.pair
        found: Tensor = self.head(end if start is None else torch.cat([end, start], dim=1))
        return found


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
    "PairDiscriminator",
    "StridedHead",
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
