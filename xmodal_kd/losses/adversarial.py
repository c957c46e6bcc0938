"""Discriminators: the student learns what a critic cannot tell from the teacher's, the critic learns beside it.

One backward pass serves both (`base.beside`): the student's part passes a `frozen` critic, the critic's own part sees
detached rows, and the value is the student's part. The term's weight and schedule scale both gradients, which Adam
undoes for the critic but for the schedule; give it its learning rate by ``optimizer.lr_scale: {"objective.*": 4.0}``.
A critic with an optimizer of its own, or with several steps a student's step, is a method (``yield "critic", ...``).
"""

from __future__ import annotations

from itertools import pairwise
from math import prod
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from .base import beside, frozen, loss, same_shape, to_maps

Count = Annotated[int, Field(ge=1)]
Game = Literal["hinge", "bce", "lsgan"]


class _Critic(nn.Module):
    """Score ``(n,)`` of rows: linear layers with leaky ReLU between, each over its largest singular value."""

    def __init__(self, widths: list[int], spectral: bool) -> None:
        super().__init__()
        self.spectral = spectral
        sizes = pairwise(widths)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in sizes)

    def forward(self, rows: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            weight: Tensor = layer.weight  # type: ignore[assignment]
            if self.spectral:
                weight = weight / torch.linalg.matrix_norm(weight, 2).clamp(min=1e-12)
            rows = F.linear(F.leaky_relu(rows, 0.2) if i else rows, weight, layer.bias)  # type: ignore[arg-type]
        return rows.squeeze(-1)


def _play(critic: nn.Module, student: Tensor, teacher: Tensor, game: Game) -> Tensor:
    """The student's part of each row, with the critic's gradient beside it."""
    same_shape(student, teacher)
    faked = frozen(critic, student)
    real, fake = critic(teacher), critic(student.detach())
    if game == "hinge":
        return beside(-faked, F.relu(1 - real) + F.relu(1 + fake))
    if game == "lsgan":
        return beside((faked - 1).square(), (real - 1).square() + fake.square())
    return beside(F.softplus(-faked), F.softplus(-real) + F.softplus(fake))


@loss(
    "adv_feature", reduction="rows", family="adversarial", year=2018, needs="features", confidence="B",
    paper="Goodfellow et al. (2014); Belagiannis et al.: Adversarial Network Compression",
)  # fmt: skip
class FeatureCritic(nn.Module):
    """``-D(s)`` of each row, where D learns ``relu(1 - D(t)) + relu(1 + D(s))`` (hinge).

    With ``game: bce`` it is ``softplus(-D(s))`` against the logistic loss, with ``lsgan`` ``(D(s) - 1)^2`` against the
    squares (Mao et al., 2017). D has three linear layers of `hidden` units.
    Beside `hint` or a task loss with a weight of 0.01 to 0.1: alone it matches the distribution, not the sample.

    Args:
        spectral: divide each weight of D by its largest singular value, so that D changes no faster than its input.
    """

    def __init__(
        self, student_width: int, teacher_width: int,
        *, hidden: Count = 256, game: Game = "hinge", spectral: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.game, self.critic = game, _Critic([teacher_width, hidden, hidden, 1], spectral)

    def forward(self, student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"]) -> Float[Tensor, " n"]:
        return _play(self.critic, student, teacher, self.game)


@loss(
    "adv_logit", reduction="rows", family="adversarial", year=2018, confidence="B",
    paper="Xu, Hsu, Huang: Training Shallow and Thin Networks for Acceleration via Knowledge Distillation with "
    "Conditional Adversarial Networks",
)  # fmt: skip
class LogitCritic(nn.Module):
    """`adv_feature` on raw logits, with hidden layers of 128, 256 and 128 units. The classes must be the same."""

    def __init__(self, student_width: int, teacher_width: int, *, game: Game = "hinge", spectral: bool = True) -> None:
        super().__init__()
        self.game, self.critic = game, _Critic([teacher_width, 128, 256, 128, 1], spectral)

    def forward(self, student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"]) -> Float[Tensor, " n"]:
        return _play(self.critic, student, teacher, self.game)


CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
#: A step along the segments between real and fake that never repeats and fills them evenly: the golden section.
GOLDEN = 0.6180339887498949


class _Attention(nn.Module):
    """Self-attention over the positions of a map, added with a learned factor that starts at 0 (Zhang et al., 2019)."""

    def __init__(self, channels: int, axes: int) -> None:
        super().__init__()
        conv, inner = CONVOLUTIONS[axes], max(1, channels // 8)
        self.query, self.key = conv(channels, inner, 1), conv(channels, inner, 1)
        self.value = conv(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, maps: Tensor) -> Tensor:
        query, key, value = (f(maps).flatten(2) for f in (self.query, self.key, self.value))
        attention = torch.softmax(query.mT @ key, dim=-1)
        seen: Tensor = (value @ attention.mT).reshape(maps.shape)
        return maps + self.gamma * seen


class _MapCritic(nn.Module):
    """Scores ``(b,)`` of maps ``(b, c, *grid)``: four convolutions with stride 2, attention after the last two."""

    def __init__(self, width: int, hidden: int, axes: int) -> None:
        super().__init__()
        conv = CONVOLUTIONS[axes]
        widths = [width, hidden, 2 * hidden, 4 * hidden, 8 * hidden]
        sizes = pairwise(widths)
        self.convs = nn.ModuleList(conv(a, b, 3, stride=2, padding=1) for a, b in sizes)
        self.attention = nn.ModuleList(_Attention(width, axes) for width in widths[3:])
        self.score = conv(widths[-1], 1, 1)

    def forward(self, maps: Tensor) -> Tensor:
        for i, conv in enumerate(self.convs):
            maps = F.leaky_relu(conv(maps), 0.1)
            if i >= 2:
                maps = self.attention[i - 2](maps)
        scores: Tensor = self.score(maps)
        return scores.flatten(1).mean(dim=1)


@loss(
    "skd_adv", reduction="items", family="adversarial", year=2019, needs="logits maps",
    paper="Liu et al.: Structured Knowledge Distillation for Semantic Segmentation (holistic)",
)  # fmt: skip
class HolisticCritic(nn.Module):
    """``-D(softmax(student) | condition)`` of each item's whole map of classes; D is a Wasserstein critic.

    D learns ``D(student) - D(teacher) + penalty (|grad D(x)| - 1)^2`` with x between the two (Gulrajani et al., 2017).
    It is four convolutions with stride 2 and two self-attentions, the mean of its last map the score.

    The first signal is the logits. Further ones are conditions, the image in the paper: they stand beside the classes
    on both sides, as the student has them, without gradient. Cells without a valid row are 0, so an item's score
    depends a little on how far its batch is padded. Published with a weight of 0.1.

    Args:
        hidden: channels of the first convolution, doubled by each of the others.
        penalty: weight of the gradient penalty.
    """

    draws: Tensor

    def __init__(
        self, student_width: list[int], teacher_width: list[int], axes: list[int],
        *, hidden: Count = 64, penalty: Annotated[float, Field(ge=0)] = 10.0,
    ) -> None:  # fmt: skip
        super().__init__()
        if axes[0] not in CONVOLUTIONS:
            raise ValueError(f"skd_adv needs maps of 1, 2 or 3 axes, got {axes[0]}")
        self.critic = _MapCritic(teacher_width[0] + sum(student_width[1:]), hidden, axes[0])
        self.axes, self.penalty = axes[0], penalty
        self.register_buffer("draws", torch.zeros((), dtype=torch.int64))

    def forward(
        self, student: list[Float[Tensor, "n _"]], teacher: list[Float[Tensor, "n _"]], cell: list[Int[Tensor, " n"]],
        items: int, grid: list[tuple[int, ...]],
    ) -> tuple[Float[Tensor, " b"], Tensor]:  # fmt: skip
        same_shape(student[0], teacher[0])
        if len(set(grid)) > 1 or len(grid[0]) != self.axes:
            raise ValueError(
                f"skd_adv has a critic of one grid of {self.axes} axes, got {grid}: set the parameter axes"
            )
        condition = [to_maps(s.detach(), c, items, grid[0]) for s, c in zip(student[1:], cell[1:], strict=True)]
        fake, real = (
            torch.cat([to_maps(torch.softmax(side[0], dim=-1), cell[0], items, grid[0]), *condition], dim=1)
            for side in (student, teacher)
        )
        values = -frozen(self.critic, fake)
        if torch.is_grad_enabled():
            values = beside(values, self._critics_part(fake.detach(), real))
        there = torch.bincount(cell[0] // prod(grid[0]), minlength=items) > 0
        return values * there, there

    def _critics_part(self, fake: Tensor, real: Tensor) -> Tensor:
        place = (self.draws + 1 + torch.arange(len(fake), device=fake.device)) * GOLDEN % 1
        share = place.to(fake.dtype).reshape(-1, *[1] * (fake.ndim - 1))
        between = (share * real + (1 - share) * fake).requires_grad_()
        if self.training:
            self.draws += len(fake)
        slope = torch.autograd.grad(self.critic(between).sum(), between, create_graph=True)[0].flatten(1)
        steepness = (slope.square().sum(dim=1) + 1e-12).sqrt()
        told: Tensor = self.critic(fake) - self.critic(real)
        return told + self.penalty * (steepness - 1).square()


class _PatchCritic(nn.Module):
    """Scores ``(b, 1, *patches)`` of maps: convolutions with stride 2, a norm over each image from the second on."""

    def __init__(self, width: int, hidden: int, layers: int, axes: int) -> None:
        super().__init__()
        conv = CONVOLUTIONS[axes]
        sizes = pairwise([width, *(hidden * 2**i for i in range(layers))])
        self.convs = nn.ModuleList(conv(a, b, 3, stride=2, padding=1) for a, b in sizes)
        self.norms = nn.ModuleList(nn.GroupNorm(1, hidden * 2**i) for i in range(1, layers))
        self.score = conv(hidden * 2 ** (layers - 1), 1, 1)

    def forward(self, maps: Tensor) -> Tensor:
        for i, conv in enumerate(self.convs):
            maps = conv(maps)
            maps = F.leaky_relu(self.norms[i - 1](maps) if i else maps, 0.2)
        scores: Tensor = self.score(maps)
        return scores


@loss(
    "patch_gan", reduction="items", family="adversarial", year=2017, needs="prediction regression maps",
    paper="Isola et al.: Image-to-Image Translation with Conditional Adversarial Networks; Li et al.: GAN Compression",
    properties="labelled_lists",
)  # fmt: skip
class PatchCritic(nn.Module):
    """``mean -D(s | x)`` over patches of what is made of x, where D learns ``relu(1 - D(y | x)) + relu(1 + D(s | x))``.

    No teacher has a part in it: D tells what the student makes from what is right, the labels y, as in GAN compression
    (Li et al., 2020, eq. 4), whose other terms are `logit_mae` or a loss by labels, and `hint`. The first signal is
    what is made; further ones are x, as the student has it, without gradient. D is `layers` convolutions of stride 2,
    of `hidden` channels, doubled by each, and scores a patch of the image in each position of the last. D learns by
    both terms of its loss, the release by half of them, which Adam undoes; both sides learn of one forward pass, as
    there. Beside an L1 of 10 to 100 times its weight. Cells without a valid row are 0.

    Args:
        game: as of `adv_feature`.
    """

    def __init__(
        self, student_width: list[int], teacher_width: list[int], axes: list[int],
        *, hidden: Count = 64, layers: Annotated[int, Field(ge=1, le=6)] = 3, game: Game = "hinge",
    ) -> None:  # fmt: skip
        super().__init__()
        if axes[0] not in CONVOLUTIONS:
            raise ValueError(f"patch_gan needs maps of 1, 2 or 3 axes, got {axes[0]}")
        self.game, self.critic = game, _PatchCritic(sum(student_width), hidden, layers, axes[0])

    def forward(
        self, student: list[Float[Tensor, "n _"]], labels: Float[Tensor, "n c"], cell: list[Int[Tensor, " n"]],
        items: int, grid: list[tuple[int, ...]],
    ) -> tuple[Float[Tensor, " b"], Tensor]:  # fmt: skip
        if len(set(grid)) > 1:
            raise ValueError(f"patch_gan has a critic of one grid, got {grid}: name signals of the image's size")
        if labels.shape != student[0].shape or not labels.is_floating_point():
            raise ValueError(
                f"labels {tuple(labels.shape)} are not one real target an output of student {tuple(student[0].shape)}"
            )
        seen = [to_maps(rows.detach(), c, items, grid[0]) for rows, c in zip(student[1:], cell[1:], strict=True)]
        made, right = (
            torch.cat([to_maps(rows.to(student[0]), cell[0], items, grid[0]), *seen], dim=1)
            for rows in (student[0], labels)
        )
        values = _play(self.critic, made, right, self.game).flatten(1).mean(dim=1)
        there = torch.bincount(cell[0] // prod(grid[0]), minlength=items) > 0
        return values * there, there
