"""Losses of heat maps: a row is a joint of an image, its columns the positions of the joint's map, by rows."""

from __future__ import annotations

from math import isqrt
from typing import Annotated

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from xmodal_kd.losses.base import Positive, loss, same_shape, to_maps


@loss(
    "heatmap_mse", reduction="rows", family="keypoints", year=2014, needs="logits regression",
    paper="Tompson et al.: Joint Training of a Convolutional Network and a Graphical Model for Human Pose Estimation",
)  # fmt: skip
def heatmap_mse(student: Float[Tensor, "n c"], labels: Float[Tensor, "n c"]) -> Float[Tensor, " n"]:
    """Mean over positions of the squared difference from the heat map that is right (eq. 1).

    With ``labels: heatmaps``; rows of joints that are not labelled are left out, where releases count them as 0.
    """
    if labels.shape != student.shape or not labels.is_floating_point():
        raise ValueError(
            f"labels {tuple(labels.shape)} are not one real target an output of student {tuple(student.shape)}: say "
            "labels: heatmaps in the term"
        )
    return (student - labels).square().mean(dim=1)


@loss(
    "integral_pose", reduction="items", family="keypoints", year=2020, needs="logits", confidence="C",
    properties="zero_at_teacher shift_invariant",
    paper="Xu et al.: Integral Knowledge Distillation for Multi-Person Pose Estimation",
)  # fmt: skip
def integral_pose(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"], cell: Int[Tensor, " n"], items: int,
    grid: tuple[int, ...],
    *, beta: Positive = 20.0, delta: Positive = 1.0, width: Annotated[int, Field(ge=1)] | None = None,
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:  # fmt: skip
    """``mean_ij smooth_l1(D_s, D_t)`` over the pairs of a figure's joints: the structure of a pose.

    D are the distances between joints, divided by their mean over the figure, of where each heat map H lies in the mean
    over positions u: ``sum_u u softmax(beta H)_u``. Of Xu et al. the abstract alone says what the term is for (the
    global structure of the pose); soft-argmax and distances are a design of our own. Beside it stand their other
    two parts: `logit_mse` of weight 1, and `hint` on the last maps, of 1e-3 to 1; this one of 0.1.

    Args:
        beta: of the softmax; heat maps end at 1, so that 1 would leave every joint near the middle.
        delta: from where on the smooth L1 distance is linear.
        width: positions of a heat map across; None: it is a square.
    """
    same_shape(student, teacher)
    mine, theirs = (_places(rows, beta, width) for rows in (student, teacher))
    there = to_maps(torch.ones_like(mine[:, :1]), cell, items, grid).flatten(1) > 0
    pairs = (there[:, :, None] & there[:, None, :]).triu(diagonal=1)
    own, taught = (_apart(to_maps(at, cell, items, grid), pairs) for at in (mine, theirs))
    values = F.smooth_l1_loss(own, taught, reduction="none", beta=delta)
    count = pairs.sum(dim=(1, 2)).to(values.dtype)
    return torch.where(pairs, values, 0.0).sum(dim=(1, 2)), count


def _places(maps: Tensor, beta: float, width: int | None) -> Tensor:
    """``(n, 2)`` the mean x and y of heat maps ``(n, c)``, in positions."""
    positions = maps.shape[1]
    across = isqrt(positions) if width is None else width
    if positions % across or (width is None and across**2 != positions):
        raise ValueError(f"heat maps of {positions} positions are no {across} across: set params: {{width: ...}}")
    p = torch.softmax(beta * maps, dim=1).unflatten(1, (-1, across))
    x, y = (torch.arange(size, dtype=maps.dtype, device=maps.device) for size in (across, positions // across))
    return torch.stack([p.sum(dim=1) @ x, p.sum(dim=2) @ y], dim=1)


def _apart(places: Tensor, pairs: Tensor) -> Tensor:
    """``(b, j, j)`` the distances between places ``(b, 2, j)``, of `pairs` divided by their mean."""
    square = (places[:, :, :, None] - places[:, :, None, :]).square().sum(dim=1)
    real = pairs & (square > 0)  # at 0 a root has no slope
    distance = torch.where(real, square, 1.0).sqrt() * real
    mean = distance.sum(dim=(1, 2)) / pairs.sum(dim=(1, 2)).clamp(min=1)
    return distance / torch.where(mean > 0, mean, 1.0)[:, None, None]


__all__ = ["heatmap_mse", "integral_pose"]
