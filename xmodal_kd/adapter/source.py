"""The samples of a split, and the strict base of the sections that describe them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, field_validator

from ..runtime.bounded_files import sane

Batch = Mapping[str, Any]


class Strict(BaseModel):
    """Base of every part of a recipe: frozen, and unknown keys are errors.

    >>> class Config(Strict):
    ...     width: int = 16
    >>> Config(width=8)
    Config(width=8)
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _sane(cls, value: Any) -> Any:
        return sane(value)


class DataSection(Strict):
    """Base of the ``data`` sections whose samples can be left out by name."""

    skip: Path | None = None
    """A file that names a sample to leave out on each line, as ``check --bad FILE`` writes it."""


class Source(Protocol):
    """The samples of one split, drawn as a function of (epoch, index): workers and resume change nothing.

    Where only some samples of the train split have labels, it says which by an attribute ``labelled``, a sequence of
    their indexes; without it all have. Where every sample is of one class, it may say so by an attribute ``classes``,
    each sample's number, which pairs of a class are made by. Where labels are scarce, `sample` is asked for passes over
    the data in the place of epochs.
    """

    def __len__(self) -> int: ...

    def plan(self, epoch: int) -> Sequence[Sequence[int]]:
        """The global batches of an epoch, each a list of sample indexes."""
        ...

    def sample(self, index: int, epoch: int) -> Any:
        """One sample, augmented by the streams of (epoch, index). Raises `UserError` naming it if it is broken."""
        ...

    def collate(self, samples: Sequence[Any]) -> Batch:
        """A batch of tensors, with ``ids`` ``(b,)`` among them; padding is the adapter's affair."""
        ...


__all__ = ["Batch", "Source", "Strict"]
