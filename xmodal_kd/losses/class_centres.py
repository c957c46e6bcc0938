"""The structure of categories: rows around the centre of their class, and the centres among themselves."""

from __future__ import annotations

from typing import Annotated

from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from .base import item_mean, loss, same_shape
from .guards import direction

Weight = Annotated[float, Field(ge=0)]


@loss(
    "category", reduction="batch", family="relations", year=2020, needs="features", properties="zero_at_teacher",
    paper="Chen et al.: Improving Knowledge Distillation via Category Structure",
)  # fmt: skip
def category(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"], labels: Int[Tensor, " n"],
    *, intra: Weight = 1.0, inter: Weight = 1.0, released: bool = False,
) -> Float[Tensor, ""]:  # fmt: skip
    """``a mean ((s_i - c_s) - (t_i - c_t))^2 + b mean_kl (cos(c_s^k, c_s^l) - cos(c_t^k, c_t^l))^2``.

    c is the centre of a row's class among the rows of the batch, all ranks' together, k and l are the classes that it
    has; pairs of a class with itself count. Rows without a label are left out. The release takes a term of features,
    whose centres are those of rows that the network itself classifies rightly, and one of scores, both with a 0.002, b
    0.04 and `released`, and pulls scores to their centres besides (0.1); here all rows are in their centres.

    Args:
        intra: a.
        inter: b.
        released: divides the first part once more by the width of a row, the second by the number of classes.
    """
    same_shape(student, teacher)
    if not len(student):
        return student.sum()
    classes, which = labels.unique(return_inverse=True)
    centres = [item_mean(rows, which, len(classes)) for rows in (student, teacher)]
    around = [rows - centre[which] for rows, centre in zip((student, teacher), centres, strict=True)]
    cosines = [direction(centre) @ direction(centre).T for centre in centres]
    within, between = ((s - t).square().mean() for s, t in (around, cosines))
    if released:
        within, between = within / student.shape[1], between / len(classes)
    value: Tensor = intra * within + inter * between
    return value
