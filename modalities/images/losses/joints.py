"""Losses of heat maps: a row is a joint of an image, its columns the positions of the joint's map, by rows."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from xmodal_kd.losses.base import loss


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


__all__ = ["heatmap_mse"]
