"""Similarities to a queue of what the teacher said of earlier samples, for encoders without labels."""

from __future__ import annotations

from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from .base import Positive, loss
from .connectors import built_for
from .guards import direction

Count = Annotated[int, Field(ge=1)]


class Queue(nn.Module):
    """The last embeddings of length 1 ``(k, c)``, the oldest of which go first; in every checkpoint."""

    keys: Tensor
    at: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.register_buffer("keys", direction(torch.randn(size, width)))
        self.register_buffer("at", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def remember(self, rows: Float[Tensor, "n c"]) -> None:
        """Of more than it holds, the last ones."""
        rows = rows[-len(self.keys) :]
        places = (self.at + torch.arange(len(rows), device=rows.device)) % len(self.keys)
        self.keys[places] = rows.to(self.keys)
        self.at += len(rows)


@loss(
    "seed", reduction="batch", family="contrastive", year=2021, needs="features", properties="widths_differ",
    paper="Fang et al.: SEED: Self-supervised Distillation for Visual Representation",
)  # fmt: skip
class Seed(Queue):
    """``-mean sum_k p_t log p_s``: a student ranks the teacher's earlier embeddings as it does.

    ``p = softmax(z . k / temperature)`` over the teacher's embedding of the sample itself and a queue of those of the
    batches before, all of norm 1; the student's comes from an MLP of two layers. A small teacher temperature makes it a
    contrast with the sample's own embedding, a larger one speaks of the neighbourhood. Give one row a sample. The queue
    is in every checkpoint. Published as the only loss, with the student's trunk kept and the MLP thrown away.

    Args:
        queue: embeddings that are remembered; a batch beyond it keeps its last ones.
        temperature: of the student.
        teacher_temperature: the paper's; the release's default is 1e-4.
    """

    def __init__(
        self, student_width: int, teacher_width: int,
        *, queue: Count = 65536, temperature: Positive = 0.2, teacher_temperature: Positive = 0.01,
    ):  # fmt: skip
        layers = nn.Linear(student_width, student_width), nn.ReLU(), nn.Linear(student_width, teacher_width)
        super().__init__(queue, teacher_width)
        self.widths = student_width, teacher_width
        self.temperature, self.teacher_temperature = temperature, teacher_temperature
        self.projector = nn.Sequential(*layers)

    def forward(self, student: Float[Tensor, "n c"], teacher: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
        built_for(student, teacher, *self.widths)
        if not len(student):
            return 0.0 * student.sum()
        s, t, keys = direction(self.projector(student)), direction(teacher), self.keys.clone().to(teacher)
        mine, theirs = (torch.cat([(z * t).sum(dim=1, keepdim=True), z @ keys.T], dim=1) for z in (s, t))
        p = torch.softmax(theirs / self.teacher_temperature, dim=1)
        value = -(p * F.log_softmax(mine / self.temperature, dim=1)).sum(dim=1).mean()
        if self.training and torch.is_grad_enabled():
            self.remember(t)
        return value
