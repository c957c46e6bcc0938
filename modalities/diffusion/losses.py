"""The loss that a diffusion model is trained with on data alone."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from xmodal_kd.losses.base import loss, same_shape


@loss(
    "denoising", reduction="rows", family="diffusion", year=2022, needs="prediction",
    paper="Salimans and Ho: Progressive Distillation for Fast Sampling of Diffusion Models",
)  # fmt: skip
def denoising(student: Float[Tensor, "n c"], labels: Float[Tensor, "n c"]) -> Float[Tensor, " n"]:
    """Mean over channels of ``(v_student - v)^2``, with v = alpha eps - sigma x of the sample and its noise.

    In terms of x it is weighted by SNR + 1. Give it the term ``on: prediction``.
    """
    same_shape(student, labels)
    return (student - labels).square().mean(dim=1)
