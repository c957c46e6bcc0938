"""Pairs of noise and the sample that a teacher of many steps makes of it: reflow's, and those of DMD's regression."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..data.condition import Condition, Prompts
from ..models.denoiser import Denoiser


class Pairs(nn.Module):
    """Where a model of many steps starts and arrives, ``(n, ...)`` each, and what it was told.

    Args:
        told: ``(n,)``: classes, or which training samples' captions; None of models that are told nothing.
        said: what captions say; they are kept by number, for what a prompt says is larger than an image.
    """

    def __init__(
        self, noise: Tensor, x: Tensor, told: Tensor | None, said: Callable[[Tensor], Condition] | None = None
    ) -> None:
        super().__init__()
        self.register_buffer("noise", noise)
        self.register_buffer("x", x)
        self.register_buffer("told", told)
        self.said = said

    noise: Tensor
    x: Tensor
    told: Tensor | None

    def some(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Condition | None]:
        """Noise, samples and conditions of `count` of them."""
        i = torch.randint(len(self.x), (count,), generator=generator).to(self.x.device)
        return self.noise[i], self.x[i], self.condition(i)

    def condition(self, i: Tensor) -> Condition | None:
        """What pairs `i` were told."""
        if self.told is None:
            return None
        return self.told[i] if self.said is None else self.said(self.told[i])


def draw_pairs(
    teacher: Denoiser, count: int, x: Tensor, generator: torch.Generator, prompts: Prompts | None = None
) -> Pairs:
    """By the teacher's own sampler, guided as it is, in parts of the size of the batch x ``(b, ...)``.

    Classes, or captions of the training samples, where there are some, are as often as one another.
    """
    noise, kinds = torch.randn(count, *x.shape[1:], generator=generator).to(x), teacher.classes
    if prompts is not None:
        kinds = prompts[0]
    told = None if kinds is None else torch.randint(kinds, (count,), generator=generator).to(x.device)
    pairs = Pairs(noise, torch.empty_like(noise), told, None if prompts is None else prompts[1])
    for part in torch.arange(count, device=x.device).split(len(x)):
        pairs.x[part] = teacher.sample(noise[part], pairs.condition(part))
    return pairs


__all__ = ["Pairs", "draw_pairs"]
