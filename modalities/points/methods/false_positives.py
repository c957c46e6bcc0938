"""DistillBEV with false positives: where a detector sees what is not there, its teacher's features are a region too."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from pydantic import Field
from scipy.ndimage import label
from torch import Tensor, nn

from xmodal_kd.adapter.adapter import Strict
from xmodal_kd.losses import LOSSES
from xmodal_kd.objective.parts import Part
from xmodal_kd.signals.signals import Signals
from xmodal_kd.training.method import METHODS

from .on_things import OnThings, as_maps, highest

Whose = Literal["student", "teacher", "teacher_selected_student", "teacher+teacher_selected_student"]
Weight = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(gt=0, lt=1)]


class DistillBevFPParams(Strict):
    whose: Whose = "student"
    """Whose false positives: those of either, the student's that the teacher rejects, or these and the teacher's."""
    threshold: Probability = 0.1
    """Of a class's probability, above which a cell is taken for one of a thing."""
    right: Probability | None = None
    """Of the right heat, below which there is no thing, and of the teacher's, below which it rejects one; None: as
    `threshold`."""
    scale: Literal["average", "component"] = "average"
    """Over how many cells a false positive's weight is spread: all those of its frame, or those that it hangs together
    with."""
    false_positive: Weight = 4e-2
    foreground: Weight = 1.5e-3
    background: Weight = 4e-2
    channel: Weight = 0.25
    spatial: Weight = 2.5e-3
    temperature: float = Field(0.5, gt=0)
    """Of the teacher's attention."""


@METHODS.register("distillbev_fp")
class DistillBevFP(OnThings):
    """The loss `distillbev` of what both heads see, with cells that are taken for things and are none as a third region
    (Wang et al., 2023), over the number of frames.

    Such a cell lies in no thing, its right heat is low, and the heat of the one who errs is high; its squares count
    ``1 / n`` each, n the false positives of its frame or of its own cluster of cells side by side, and it belongs to
    the background no more. The release's shipped settings leave them out (its code tries the student's, with the weight
    that is the default here), and its walk through a cluster counts some cells twice, which is not followed.
    """

    Params: ClassVar[type[Strict]] = DistillBevFPParams
    called: ClassVar[str] = "distillbev_fp"

    def learners_beside(self, student: int, teacher: int) -> dict[str, nn.Module]:
        compared = LOSSES["distillbev"].make(teacher, teacher, 2, temperature=self.params.temperature)
        return super().learners_beside(student, teacher) | {"compared": compared}

    def parts(self, outputs: Signals, teacher: Signals, boxes: list[Tensor]) -> dict[str, Part]:
        params, layout = self.params, outputs.layout("features")
        things, right = outputs.rows("objects"), outputs.rows("foreground")
        heat, theirs = (highest(side.rows("logits")) for side in (outputs, teacher))
        wrong = false_positives(right, heat, theirs, params.whose, params.threshold, params.right) & (things == 0)
        assert layout.grid is not None
        errors = numbered(wrong, layout.items, layout.grid, params.scale)
        known = things >= 0  # of a frame whose boxes may not be looked at there is no row
        item, cell = layout.item[known], known.nonzero().flatten()
        mine = rearrange(self.made["way"](as_maps(outputs)), "b c h w -> (b h w) c")
        loss: Any = self.made["compared"]
        squared, channels, places = loss.compared(
            mine[known], teacher.rows("features")[known], item, layout.items, cell, layout.grid
        )
        things, errors = things[known], errors[known]
        scaled = squared * loss.scales(item, layout.items, things, squared, errors)
        count = float(item.unique().numel())
        regions = {"foreground": things > 0, "false_positive": errors > 0, "background": (things == 0) & (errors == 0)}
        found = {name: scaled[rows].sum() for name, rows in regions.items()}
        found |= {"channel": channels.sum(), "spatial": places.sum()}
        return {name: Part(total, count, getattr(params, name), "frames") for name, total in found.items()}


@torch.no_grad()
def false_positives(
    right: Float[Tensor, " n"], student: Float[Tensor, " n"], teacher: Float[Tensor, " n"], whose: Whose,
    threshold: float, low: float | None = None,
) -> Bool[Tensor, " n"]:  # fmt: skip
    """Cells whose heat is above `threshold` where the right one is below `low`.

    Args:
        right, student, teacher: the largest of the classes' heat in each cell, as probabilities.
    """
    low = threshold if low is None else low
    none = right < low
    theirs, mine = none & (teacher > threshold), none & (student > threshold)
    rejected = mine & (teacher < low)
    return {
        "student": mine, "teacher": theirs, "teacher_selected_student": rejected,
        "teacher+teacher_selected_student": theirs | rejected,
    }[whose]  # fmt: skip


def numbered(wrong: Bool[Tensor, " n"], items: int, grid: tuple[int, ...], scale: str) -> Int[Tensor, " n"]:
    """From 1, which of its frame's false positives a cell is one of, 0 for none: all are one, or those that hang
    together by their sides."""
    if scale == "average":
        return wrong.long()
    maps = wrong.reshape(items, *grid).cpu().numpy()
    return torch.from_numpy(np.stack([label(one)[0] for one in maps])).long().flatten().to(wrong.device)


__all__ = ["DistillBevFP", "DistillBevFPParams", "Whose", "false_positives", "numbered"]
