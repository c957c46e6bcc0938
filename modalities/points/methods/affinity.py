"""MonoDistill: how alike places of the ground are to one another, features in boxes, and boxes around centres."""

from __future__ import annotations

from typing import ClassVar

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from xmodal_kd.adapter.adapter import Strict
from xmodal_kd.objective.parts import Part
from xmodal_kd.signals.signals import Signals
from xmodal_kd.training.method import METHODS

from .on_things import OnThings, as_maps


class MonoDistillParams(Strict):
    scene: float = Field(1.0, ge=0)
    """Weight of the likeness of places to one another."""
    feature: float = Field(10.0, ge=0)
    """Weight of the features inside of boxes."""
    result: float = Field(1.0, ge=0)
    """Weight of the boxes around the centres of things."""
    side: int = Field(16, ge=1, le=64)
    """Places along each side of the map on which likeness is compared; its number goes with the fourth power."""


@METHODS.register("monodistill")
class MonoDistill(OnThings):
    """MonoDistill of detectors on a common ground (Chong et al., 2022): a scene's affinity, things' features, boxes.

    Affinity: ``mean |F_s^T F_s - F_t^T F_t|`` over pairs of places, both maps brought to ``side`` by ``side`` places
    between their neighbours. Features: ``(s - t)^2 / 2``, the mean over cells inside of boxes where the teacher says
    something. Boxes: ``|b_s - b_t|``, the mean over the cells of a thing's Gaussian, each as much as any other, as the
    release has it. The paper compares maps of the picture at three scales, and its teacher sees pictures of depth; here
    they are what the heads see of the ground. The release divides the first two by the batch once more, which is not
    followed; of the heat it compares nothing.
    """

    Params: ClassVar[type[Strict]] = MonoDistillParams
    called: ClassVar[str] = "monodistill"

    def parts(self, outputs: Signals, teacher: Signals, boxes: list[Tensor]) -> dict[str, Part]:
        mine, theirs, params = self.made["way"](as_maps(outputs)), as_maps(teacher), self.params
        scene = affinities_apart(mine, theirs, params.side)
        rows = rearrange(mine, "b c h w -> (b h w) c")
        feature = features_apart(rows, teacher.rows("features"), outputs.rows("objects") > 0)
        near = outputs.rows("foreground") > 0
        result = (outputs.rows("boxes")[near] - teacher.rows("boxes")[near]).abs().mean(dim=1)
        return {
            "scene": Part(scene.sum(), float(len(scene)), params.scene, "frames"),
            "feature": Part(feature.sum(), float(len(feature)), params.feature, "cells in boxes"),
            "result": Part(result.sum(), float(len(result)), params.result, "cells at centres"),
        }


def affinities_apart(
    student: Float[Tensor, "b c h w"], teacher: Float[Tensor, "b c h w"], side: int
) -> Float[Tensor, " b"]:
    """Of each frame the mean over pairs of places of the difference of inner products."""
    size = [min(side, length) for length in student.shape[2:]]
    one, other = (
        F.interpolate(maps, size=size, mode="bilinear", align_corners=False).flatten(2) for maps in (student, teacher)
    )
    return (one.transpose(1, 2) @ one - other.transpose(1, 2) @ other).abs().mean(dim=(1, 2))


def features_apart(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"], inside: Bool[Tensor, " n"]
) -> Float[Tensor, " m"]:
    """``(s - t)^2 / 2``, the mean over channels, of the rows inside of a box where the teacher is not all 0."""
    at = inside & torch.any(teacher != 0, dim=1)
    return 0.5 * (student[at] - teacher[at]).square().mean(dim=1)


__all__ = ["MonoDistill", "MonoDistillParams", "affinities_apart", "features_apart"]
