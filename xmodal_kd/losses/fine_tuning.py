"""Features held near those of the network that fine-tuning starts from, and maps N times as wide as the teacher's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from .base import item_mean, item_sum, loss, same_shape

Weights = Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(min_length=1)]


@loss(
    "delta", reduction="items", family="features", year=2019, needs="features", properties="zero_at_teacher numbered",
    paper="Li et al.: DELTA: Deep Learning Transfer using Feature Map with Attention for Convolutional Networks",
)  # fmt: skip
def delta(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"], item: Int[Tensor, " n"], items: int,
    *, channel_weights: Weights | None = None, released: bool = False,
) -> tuple[Float[Tensor, " b"], Tensor]:  # fmt: skip
    """``0.5 sum_c C W_c mean_i (s_ic - t_ic)^2`` over an item's rows, the teacher being the student's own start.

    A regulariser of fine-tuning, in any modality: the teacher is the pretrained network of the same architecture, and
    channels that matter to the task may move least. Published with a weight of 0.01 for a *sum* over the batch and the
    last convolution of each of four stages; here the batch is a mean (0.64 for their batches of 64).

    Args:
        channel_weights: W, one a channel, with sum 1: `delta_weights` of what `channel_importance` measures before
            training. None weighs all channels alike, which is the paper's variant without attention.
        released: without weights, as the released code has that variant: a *sum* over an item's rows, not their mean,
            so that large maps weigh more. With weights the release takes the mean, and this changes nothing.
    """
    same_shape(student, teacher)
    channels = student.shape[1]
    difference = (student - teacher).square()
    if channel_weights is not None:
        if len(channel_weights) != channels:
            raise ValueError(f"{len(channel_weights)} channel weights for rows of {channels} channels")
        difference = difference * (channels * difference.new_tensor(channel_weights))
    over_rows = item_sum if released and channel_weights is None else item_mean
    values = 0.5 * over_rows(difference.sum(dim=-1), item, items)
    return values, torch.bincount(item, minlength=items) > 0


def delta_weights(increase: Float[Tensor, " c"]) -> Float[Tensor, " c"]:
    """Channel weights of `delta` from how much the loss rises without each channel: ``softmax(z-score / 5)``."""
    centred = increase.double() - increase.double().mean()
    return torch.softmax(centred / centred.std(correction=0).clamp(min=1e-12) / 5, dim=0)


@torch.no_grad()
def channel_importance(
    module: nn.Module, channels: int, task_loss: Callable[[], Tensor], *, dim: int = 1
) -> Float[Tensor, " c"]:
    """How much `task_loss` rises with each channel of `module`'s output set to 0 (one evaluation a channel, and one).

    Args:
        task_loss: runs the network, of which `module` is a part, on a few batches of labelled data.
        dim: the output's axis of channels.
    """
    whole = task_loss().double()
    risen = []
    for channel in range(channels):

        def silence(_module: nn.Module, _inputs: object, output: Tensor, channel: int = channel) -> Tensor:
            return output.index_fill(dim, torch.tensor([channel], device=output.device), 0.0)

        handle = module.register_forward_hook(silence)
        try:
            risen.append(task_loss().double() - whole)
        finally:
            handle.remove()
    return torch.stack(risen)


@loss(
    "norm", reduction="rows", family="features", year=2023, needs="features student_layer",
    paper="Liu et al.: NORM: Knowledge Distillation via N-to-One Representation Matching",
    properties="widths_differ tied_widths",
)  # fmt: skip
def norm(
    student: Float[Tensor, "n Nc"], teacher: Float[Tensor, "n c"], *, segments: Annotated[int, Field(gt=0)] = 8
) -> Float[Tensor, " n"]:
    """``mean_i mean_c (s_i - t)^2`` over the N segments of a student map N times as wide as the teacher's.

    The student's map is the output of the expansion of an `NToOne` that stands behind its last layer (``on`` names its
    ``expand``), so that the task's gradient passes through it too. Least, 0, where every segment is the teacher.
    Published with a weight of 1 beside 0.1 cross-entropy; the released code multiplies by N.
    """
    n, width = student.shape
    if len(teacher) != n or width != segments * teacher.shape[1]:
        raise ValueError(
            f"student {tuple(student.shape)} is not {segments} segments a row of teacher {tuple(teacher.shape)}: "
            "compare the output of an NToOne's expand"
        )
    split = student.reshape(n, segments, teacher.shape[1])
    return (split - teacher[:, None]).square().mean(dim=(1, 2))


class NToOne(nn.Module):
    """Linear expansion to N times the teacher's width and contraction back, for the end of a student's trunk.

    Channels stand last: ``(..., c)`` to ``(..., c)``. Both halves are linear, so that `merged` replaces them by one
    layer after training.
    """

    def __init__(self, student_width: int, teacher_width: int, segments: int = 8) -> None:
        super().__init__()
        self.expand = nn.Linear(student_width, segments * teacher_width)
        self.contract = nn.Linear(segments * teacher_width, student_width)

    def forward(self, rows: Float[Tensor, "... c"]) -> Float[Tensor, "... c"]:
        return self.contract(self.expand(rows))  # type: ignore[no-any-return]

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """One linear layer that equals both."""
        out = nn.Linear(self.expand.in_features, self.contract.out_features).to(self.expand.weight)
        out.weight.copy_(self.contract.weight @ self.expand.weight)
        out.bias.copy_(self.contract.weight @ self.expand.bias + self.contract.bias)
        return out
