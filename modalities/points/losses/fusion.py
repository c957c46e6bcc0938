"""2DPASS: a picture's features and the scan's are fused where both see a point, and the scan learns what both say."""

from __future__ import annotations

from typing import Annotated

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from xmodal_kd.losses.base import loss, same_rows

Count = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(ge=0)]


def _head(width: int, hidden: int, classes: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, classes))


class _Scale(nn.Module):
    """Of one pair of features: both fused behind a gate, and class scores of the scan's alone and of what is fused."""

    def __init__(self, scan: int, picture: int, hidden: int, inner: int, classes: int) -> None:
        super().__init__()
        self.learner = nn.Linear(scan, hidden)
        self.join, self.gate = nn.Linear(picture + hidden, hidden), nn.Linear(hidden, hidden)
        self.alone, self.both = _head(scan, inner, classes), _head(hidden, inner, classes)

    def forward(self, scan: Tensor, picture: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores of the scan alone and of both, and the fused features."""
        joined = self.join(torch.cat([picture, F.relu(self.learner(scan))], dim=1))
        fused = F.relu(joined * torch.sigmoid(self.gate(joined)))
        return self.alone(scan), self.both(fused), fused


@loss(
    "msfskd", reduction="rows", family="features", year=2022, needs="logits features", properties="labelled_lists",
    paper="Yan et al.: 2DPASS: 2D Priors Assisted Semantic Segmentation on LiDAR Point Clouds",
)  # fmt: skip
class Msfskd(nn.Module):
    """``CE(f) + sum_l CE(p_l) + fusion / S CE(q_l) + cross / (S c) KL(q_l || p_l)`` a row, over S pairs of features.

    Multi-scale fusion to single: p_l are class scores of the scan's features, q_l of them and the picture's, fused as
    ``relu(z sigmoid(W_3 z))`` with ``z = W_2 [picture; relu(W_1 scan)]``, f of the fused features of all scales. The
    scan's own network learns by the fused ones too, but not by the left side of the KL. ``on`` lists the logits, which
    say how many classes there are and are not compared, and then the features; the teacher sees pictures.

    The release's picture network learns beside the student and its scan's scores are of all voxels; here the teacher is
    frozen, rows are those that a picture shows, and the Lovasz term beside each CE is not built. Its KL is a mean over
    classes, as here; published weights 1 and 0.05, with four scales. Give it class weights by the term's ``weights``.

    Args:
        hidden: width of what is fused.
        inner: of the two layers that make class scores.
    """

    def __init__(
        self, student_width: list[int], teacher_width: list[int],
        *, hidden: Count = 64, inner: Count = 128, fusion: Weight = 1.0, cross: Weight = 0.05,
    ):  # fmt: skip
        super().__init__()
        if len(student_width) < 2 or len(student_width) != len(teacher_width):
            raise ValueError("msfskd asks for the logits and at least one pair of features: on: [logits, features]")
        classes = student_width[0]
        pairs = list(zip(student_width[1:], teacher_width[1:], strict=True))
        self.fusion, self.cross = fusion / len(pairs), cross / (len(pairs) * classes)
        self.scales = nn.ModuleList(_Scale(*pair, hidden, inner, classes) for pair in pairs)
        self.together = _head(hidden * len(pairs), inner, classes)

    def forward(
        self, student: list[Float[Tensor, "n _"]], teacher: list[Float[Tensor, "n _"]], labels: Int[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        value, found = student[0].sum(dim=1) * 0.0, []
        for scale, scan, picture in zip(self.scales, student[1:], teacher[1:], strict=True):
            same_rows(scan, picture)
            alone, both, fused = scale(scan, picture)
            found.append(fused)
            value = value + F.cross_entropy(alone, labels, reduction="none")
            value = value + self.fusion * F.cross_entropy(both, labels, reduction="none")
            right, mine = F.log_softmax(both.detach(), dim=1), F.log_softmax(alone, dim=1)
            value = value + self.cross * (right.exp() * (right - mine)).sum(dim=1)
        out: Tensor = value + F.cross_entropy(self.together(torch.cat(found, dim=1)), labels, reduction="none")
        return out


__all__ = ["Msfskd"]
