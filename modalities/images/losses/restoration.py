"""Losses of restored images: a row is a pixel, its columns the colours."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from xmodal_kd.losses.base import loss


@loss(
    "pixel_l1", reduction="rows", family="restoration", year=2017, needs="prediction regression",
    paper="Lim et al.: Enhanced Deep Residual Networks for Single Image Super-Resolution",
)  # fmt: skip
def pixel_l1(student: Float[Tensor, "n c"], labels: Float[Tensor, "n c"]) -> Float[Tensor, " n"]:
    """Mean over colours of the absolute difference from the pixel that is right. With ``on: prediction``.

    In units of the images, which lie in [-1, 1] here. The paper's choice over squares (section 4.2); towards a
    teacher's image it is `logit_mae`.
    """
    if labels.shape != student.shape or not labels.is_floating_point():
        raise ValueError(
            f"labels {tuple(labels.shape)} are not one real target an output of student {tuple(student.shape)}: say "
            "on: prediction in the term"
        )
    return (student - labels).abs().mean(dim=1)


__all__ = ["pixel_l1"]
