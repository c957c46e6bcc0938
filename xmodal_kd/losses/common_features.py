"""Several teachers' features and the student's, brought to one space in which they are to be told apart no more."""

from __future__ import annotations

from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from .base import loss, same_rows
from .guards import direction

Weight = Annotated[float, Field(ge=0)]
#: Squared distances are held off 0 by it, as in the release.
FLOOR = 1e-12


@loss(
    "cfl", reduction="batch", family="features", year=2019, needs="features", properties="widths_differ selective",
    paper="Luo et al.: Knowledge Amalgamation from Heterogeneous Networks by Common Feature Learning",
)  # fmt: skip
class Cfl(nn.Module):
    """``a sum_j MMD^2(E A_s s, E A_j t_j) + b sum_j mean (D_j E A_j t_j - t_j)^2`` over teachers j.

    A maps each network's rows to one width, by a linear map and a ReLU; E, two layers that all share, maps these into
    the common space; D, two layers a teacher, brings them back, so that the space keeps what the teachers know. MMD^2
    is of rows of length 1, with a sum of Gaussian kernels, pairs of a row with itself among them. ``on`` lists one
    feature of the student and one of each teacher, ``NAME/path``, as the schemes with several teachers give them; the
    paper's third part, the teachers' scores, is terms of its own (`uhc` or `kd`). The release has weights of 1. It
    takes the square of the rows' number.

    Args:
        width: of the rows that E is given.
        common: of the space.
        mmd: a.
        reconstruction: b.
        sigmas: deviations of the kernels.
    """

    def __init__(
        self, student_width: list[int], teacher_width: list[int],
        *, width: Annotated[int, Field(ge=1)] = 128, common: Annotated[int, Field(ge=1)] = 128, mmd: Weight = 1.0,
        reconstruction: Weight = 1.0, sigmas: tuple[float, ...] = (0.001, 0.01, 0.05, 0.1, 0.2, 1.0, 2.0),
    ):  # fmt: skip
        super().__init__()
        if len(student_width) != 1:
            raise ValueError(f"cfl compares one feature of the student, got {len(student_width)}: name one")
        if not sigmas or min(sigmas) <= 0:
            raise ValueError(f"sigmas: deviations are above 0, got {sigmas}")
        self.weights, self.sigmas = (mmd, reconstruction), sigmas
        self.student = nn.Linear(student_width[0], width)
        self.teachers = nn.ModuleList(nn.Linear(wide, width) for wide in teacher_width)
        self.common = nn.Sequential(nn.Linear(width, common), nn.ReLU(), nn.Linear(common, common))
        self.back = nn.ModuleList(
            nn.Sequential(nn.Linear(common, common), nn.ReLU(), nn.Linear(common, wide)) for wide in teacher_width
        )

    def forward(self, student: list[Float[Tensor, "n c"]], teacher: list[Float[Tensor, "n d"]]) -> Float[Tensor, ""]:
        if len(student) != 1 or len(teacher) != len(self.teachers):
            raise ValueError(f"cfl was built for one feature of the student and {len(self.teachers)} of teachers")
        for rows in reversed(teacher):
            same_rows(student[0], rows)
        if not len(student[0]):
            return 0.0 * student[0].sum()
        mine = self.common(F.relu(self.student(student[0])))
        theirs = [self.common(F.relu(align(rows))) for align, rows in zip(self.teachers, teacher, strict=True)]
        apart = torch.stack([mmd2(mine, one, self.sigmas) for one in theirs]).sum()
        lost = [(back(one) - rows).square().mean() for back, one, rows in zip(self.back, theirs, teacher, strict=True)]
        value: Tensor = self.weights[0] * apart + self.weights[1] * torch.stack(lost).sum()
        return value


def mmd2(one: Float[Tensor, "n c"], other: Float[Tensor, "n c"], sigmas: tuple[float, ...]) -> Float[Tensor, ""]:
    """``mean k(x, x') + mean k(y, y') - 2 mean k(x, y)`` of rows made length 1, with ``k = sum_s exp(-d^2 / (2 s^2))``;
    at least 0."""
    x, y = direction(one), direction(other)
    parts = [_kernel(a, b, sigmas).mean() for a, b in ((x, x), (y, y), (x, y))]
    return (parts[0] + parts[1] - 2 * parts[2]).clamp(min=0)


def _kernel(one: Tensor, other: Tensor, sigmas: tuple[float, ...]) -> Tensor:
    # by differences: narrow kernels would see the rounding of products as distances
    squared = torch.cdist(one, other, compute_mode="donot_use_mm_for_euclid_dist").square().clamp(min=FLOOR)
    return torch.stack([torch.exp(-squared / (2 * sigma**2)) for sigma in sigmas]).sum(dim=0)
