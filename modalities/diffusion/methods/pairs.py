"""Pairs of noise and the sample that a teacher of many steps makes of it: reflow's, and those of DMD's regression."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from xmodal_kd.runtime.errors import UserError

from ..models.denoiser import Denoiser


class Pairs(nn.Module):
    """Where a model of many steps starts and arrives, ``(n, ...)`` each, and labels ``(n,)`` where it knows classes."""

    def __init__(self, noise: Tensor, x: Tensor, labels: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("noise", noise)
        self.register_buffer("x", x)
        self.register_buffer("labels", labels)

    noise: Tensor
    x: Tensor
    labels: Tensor | None

    def some(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor | None]:
        """Noise, samples and labels of `count` of them."""
        i = torch.randint(len(self.x), (count,), generator=generator).to(self.x.device)
        return self.noise[i], self.x[i], None if self.labels is None else self.labels[i]


def check_unprompted(what: str, teacher: Denoiser) -> None:
    """Raises `UserError` for a teacher that makes nothing without a text."""
    if teacher.prompted:
        raise UserError(f"{what} makes pairs of noise and samples without prompts: take lcm for a prompted teacher")


def draw_pairs(teacher: Denoiser, count: int, x: Tensor, generator: torch.Generator) -> Pairs:
    """By the teacher's own sampler, in parts of the size of the batch x ``(b, ...)``.

    Classes, where there are some, are as often as one another.
    """
    noise, parts = torch.randn(count, *x.shape[1:], generator=generator).to(x), []
    labels = None
    if teacher.classes is not None:
        labels = torch.randint(teacher.classes, (count,), generator=generator).to(x.device)
    for i in range(0, count, len(x)):
        given = None if labels is None else labels[i : i + len(x)]
        parts.append(teacher.sample(noise[i : i + len(x)], given))
    return Pairs(noise, torch.cat(parts), labels)


__all__ = ["Pairs", "check_unprompted", "draw_pairs"]
