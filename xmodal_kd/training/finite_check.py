"""NaN and Inf, found where they begin."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..adapter.adapter import Batch
from ..objective.parts import LossOut
from ..runtime.errors import RunError, UserError


class NotFiniteError(RunError):
    """NaN or Inf of a training whose batch is finite.

    Attributes:
        term: the part of the loss that it was first seen in; None where a gradient held it.
    """

    def __init__(self, text: str, term: str | None = None) -> None:
        super().__init__(text)
        self.term = term


def check_finite(out: LossOut, batch: Batch, role: str, step: int) -> None:
    """Raises at the first NaN or Inf of a loss.

    Raises:
        UserError: names the sample that brought it.
        NotFiniteError: names the term, where the batch itself is finite.
    """
    totals = [part.total for part in out.parts.values()]
    if totals[0].device.type == "cpu":
        finite = all(math.isfinite(total.item()) for total in totals)
    else:  # waits for the device once
        finite = math.isfinite(float(torch.stack([total.detach().float() for total in totals]).sum()))
    if finite:
        return
    term = next(key for key, part in out.parts.items() if not bool(torch.isfinite(part.total)))
    for key, value in batch.items():
        if isinstance(value, Tensor) and value.is_floating_point() and not bool(torch.isfinite(value).all()):
            bad = (~torch.isfinite(value.reshape(len(value), -1)).all(dim=1)).nonzero()[0].item()
            names = batch.get("keys", batch["ids"])
            raise UserError(f"sample {names[bad]}: its {key} hold NaN or Inf (seen at step {step})")
    raise NotFiniteError(
        f"{role}: term {term!r} became NaN or Inf at step {step}, though its batch is finite: "
        "lower train.optimizer.lr or the term's weight",
        term,
    )
