"""Feature losses that take the student's features for the teacher's with noise, and denoise them first."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from .base import Positive, item_mean, loss
from .connectors import Kernel, NormKind, Place, RowNorm, built_for, grid_conv
from .logits import kl

#: Times of the noise process, whose variances rise evenly from 1e-4 to 0.02 (Ho et al., 2020).
TIMES = 1000
Weight = Annotated[float, Field(ge=0)]


class _Bottleneck(nn.Module):
    """``x + f(x)``: to fewer channels, a convolution, and back, each with a norm."""

    def __init__(self, width: int, reduction: int, kernel: Kernel, axes: int, norm: NormKind) -> None:
        super().__init__()
        inner = max(1, width // reduction)
        self.maps = nn.ModuleList(
            [nn.Linear(width, inner), grid_conv(inner, inner, kernel, axes), nn.Linear(inner, width)]
        )
        self.norms = nn.ModuleList(RowNorm(norm, wide) for wide in (inner, inner, width))

    def forward(self, rows: Tensor, place: Place) -> Tensor:
        x = rows
        for i, (layer, norm) in enumerate(zip(self.maps, self.norms, strict=True)):
            x = norm(place.apply(layer, x))
            x = F.relu(x) if i < 2 else x
        return rows + x


class _Denoiser(nn.Module):
    """The noise in rows ``(n, w)`` at times ``(n,)``."""

    def __init__(self, width: int, kernel: Kernel, axes: int, norm: NormKind) -> None:
        super().__init__()
        self.time = nn.Embedding(TIMES, width)
        self.blocks = nn.ModuleList(_Bottleneck(width, 4, kernel, axes, norm) for _ in range(2))
        self.out, self.norm = nn.Linear(width, width), RowNorm(norm, width)

    def forward(self, rows: Tensor, time: Tensor, place: Place) -> Tensor:
        rows = rows + self.time(time)
        for block in self.blocks:
            rows = block(rows, place)
        noise: Tensor = self.norm(self.out(rows))
        return noise


@loss(
    "diffkd", reduction="rows", family="features", year=2023, needs="features",
    paper="Huang et al.: Knowledge Diffusion for Distillation", properties="widths_differ batch_statistics random",
)  # fmt: skip
class Diffkd(nn.Module):
    """``mean_c (P d(s') - t)^2 + diffusion mean_c (e(t_tau, tau) - noise)^2 + reconstruction mean_c (D E t - t)^2``.

    What a small student's features lack looks like noise. A small diffusion model e learns the noise in the teacher's
    features at random times, one an item. The student's, through a linear map, are mixed with as much noise as an
    adapter finds that they still need, one share an item, and d denoises them in `steps` steps of DDIM over the lower
    half of the times; P is linear. All parts learn by the whole loss. With `latent`, t stands for ``E t``, a linear map
    and a norm of the teacher's features to fewer channels, without gradient from the first two parts; without it the
    third is left out. For maps, and row by row where there is no grid. Published with a weight of 1 and, for
    classification, a latent of half the channels. Class scores (``on: logits``) are compared by T^2 KL of softmaxes,
    as published without a latent, row by row and beside a term of features.

    Args:
        latent: channels of E t.
        norm: of every layer, as in `RowNorm`.
        compare: denoised and teacher's rows: ``squares``, or ``kl`` of class scores.
        temperature: T of the latter.
    """

    share: Tensor

    def __init__(
        self, student_width: int, teacher_width: int, axes: int,
        *, kernel: Kernel = 3, steps: Annotated[int, Field(ge=1, le=TIMES // 2)] = 5,
        latent: Annotated[int, Field(ge=1)] | None = None, norm: NormKind = "batch", diffusion: Weight = 1.0,
        reconstruction: Weight = 1.0, compare: Literal["squares", "kl"] = "squares", temperature: Positive = 1.0,
    ):  # fmt: skip
        super().__init__()
        if compare == "kl" and latent is not None:
            raise ValueError("compare: kl is of class scores, which a latent no longer has: leave latent out")
        self.compare, self.temperature = compare, temperature
        self.widths, self.steps = (student_width, teacher_width), steps
        self.diffusion, self.reconstruction = diffusion, reconstruction
        self.width = width = teacher_width if latent is None else latent
        self.encoder = None if latent is None else nn.Sequential(nn.Linear(teacher_width, width), RowNorm(norm, width))
        self.decoder = None if latent is None else nn.Linear(width, teacher_width)
        self.student = nn.Linear(student_width, width)
        self.denoiser = _Denoiser(width, kernel, axes, norm)
        self.adapter, self.adapted = _Bottleneck(width, 8, kernel, axes, norm), nn.Linear(width, 2)
        self.projector = nn.Linear(width, width)
        self.register_buffer("share", (1 - torch.linspace(1e-4, 0.02, TIMES, dtype=torch.float64)).cumprod(dim=0))

    def forward(
        self, student: Float[Tensor, "n c"], teacher: Float[Tensor, "n d"], item: Int[Tensor, " n"], items: int,
        cell: Int[Tensor, " n"], grid: tuple[int, ...] | None,
    ) -> Float[Tensor, " n"]:  # fmt: skip
        built_for(student, teacher, *self.widths)
        place, target, own = Place(cell, items, grid), teacher, student.new_zeros(len(student))
        if self.encoder is not None and self.decoder is not None:
            hidden = self.encoder(teacher)
            own = self.reconstruction * (self.decoder(hidden) - teacher).square().mean(dim=1)
            target = hidden.detach()
        drawn = self.kept(len(student), items, self.width).to(student)
        noise, other = drawn[:, : self.width], drawn[:, self.width : -1]
        refined = self.projector(self._denoised(self.student(student), noise, item, place))
        first = torch.full((items,), len(item), device=item.device).scatter_reduce(
            0, item, torch.arange(len(item), device=item.device), "amin"
        )
        time = (drawn[:, -1] * TIMES).long().clamp(max=TIMES - 1)[first[item]]
        told = self.denoiser(_mixed(target, other, self.share.to(target)[time][:, None]), time, place)
        own = own + self.diffusion * (told - other).square().mean(dim=1)
        values: Tensor = own + self._apart(refined, target)
        return values

    def _apart(self, refined: Tensor, target: Tensor) -> Tensor:
        """``(n,)`` of denoised rows and those of the teacher."""
        if self.compare == "squares":
            return (refined - target).square().mean(dim=1)
        t = self.temperature
        value: Tensor = t**2 * kl((target / t).log_softmax(dim=1), (refined / t).log_softmax(dim=1))
        return value

    def kept(self, rows: int, items: int, width: int) -> Tensor:
        """Two noises ``(n, w)`` and a number from 0 to 1, an item's being that of its first row: ``(n, 2 w + 1)``.

        Drawn on the CPU, whose generator the engine seeds for each step and micro-batch.
        """
        noise = torch.randn(rows, 2 * self.width, dtype=torch.float32)
        return torch.cat([noise, torch.rand(rows, 1, dtype=torch.float32)], dim=1)

    def _denoised(self, rows: Tensor, noise: Tensor, item: Tensor, place: Place) -> Tensor:
        seen = item_mean(self.adapter(rows, place), item, place.items)
        kept = torch.softmax(self.adapted(seen), dim=1)[:, :1][item]
        rows = kept * rows + (1 - kept) * noise
        ratio, share = TIMES // (2 * self.steps), self.share.to(rows)
        for at in reversed(range(0, self.steps * ratio, ratio)):
            noise = self.denoiser(rows, torch.full_like(item, at), place)
            clean = (rows - (1 - share[at]).sqrt() * noise) / share[at].sqrt()
            rows = _mixed(clean, noise, share[at - ratio] if at else torch.ones_like(share[0]))
        return rows


def _mixed(clean: Tensor, noise: Tensor, share: Tensor) -> Tensor:
    """Features at a time at which `share` of their variance is left."""
    return share.sqrt() * clean + (1 - share).sqrt() * noise
