"""What a role is forced over: its own tokens of a text, in the rows that all roles share."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from xmodal_kd.adapter.adapter import Batch
from xmodal_kd.signals.signals import Layout

from ..data.decoder_source import lengths_of, targets_of


class Forced(NamedTuple):
    """Tokens ``(b, u)`` of a role, below 0 where there is none, and the rows that its positions are.

    Row i of an item is the same place in the texts of all roles: of those that begin otherwise the text itself begins
    in one row, and what stands before it in a teacher's alone has no row.

    Attributes:
        lengths: ``(b,)`` tokens of each.
        shift: rows before its first position; below 0 the positions without a row.
        width: rows of an item.
    """

    targets: Tensor
    lengths: Tensor
    shift: int
    width: int

    @classmethod
    def of(cls, batch: Batch, role: str, shifts: dict[str, int]) -> Forced:
        """
        Args:
            shifts: of the teachers that have tokens of their own.
        """
        own = role if role in shifts else ""
        rows = [batch["targets"].shape[1], *(shift + targets_of(batch, one).shape[1] for one, shift in shifts.items())]
        return cls(targets_of(batch, own), lengths_of(batch, own), shifts.get(own, 0), max(rows))

    def layout(self) -> Layout:
        item = torch.arange(len(self.lengths), device=self.lengths.device).repeat_interleave(self.width)
        row = torch.arange(self.width, device=self.lengths.device) - self.shift
        mask = (row >= 0) & (row < self.lengths[:, None])
        return Layout("token", mask.flatten(), item, len(self.lengths), (self.width,))

    def placed(self, positions: Tensor, fill: float = 0.0) -> Tensor:
        """``(b, u, ...)`` as rows ``(b, width, ...)``."""
        behind = self.width - self.shift - positions.shape[1]
        if not (self.shift or behind):
            return positions
        return F.pad(positions, (*(0, 0) * (positions.ndim - 2), self.shift, behind), value=fill)


__all__ = ["Forced"]
