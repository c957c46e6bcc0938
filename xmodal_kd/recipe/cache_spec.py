"""The section ``cache`` of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from ..adapter.adapter import Strict


class CacheSpec(Strict):
    """The teacher runs once over what the training will see; its signals are read from disk ever after."""

    path: Path | None = None
    """Folder of the store, for several runs to share; None: ``cache`` in the run's own."""
    view: Literal["clean", "replay"] = "clean"
    """``clean``: the teacher sees a sample alike in every epoch, one entry serves all. ``replay``: the augmentation of
    the first `epochs` epochs comes again and again, for the control too; each of them has an entry of its own."""
    epochs: int = Field(1, gt=0)
    """That ``replay`` draws; more is more augmentation, and more teacher."""
    top_k: int | None = Field(None, gt=0)
    """Highest logits that are kept, beside the mass of the rest; None: all of them in fp16."""
    smaller: float | None = Field(None, gt=1)
    """How many times smaller than in fp16 logits are kept, as coefficients in a basis fitted to what the teacher says
    first: of many classes, at any temperature."""
    temperature: float | None = Field(None, gt=0)
    """At which the mass of the rest is right; None: that of the terms on logits where they agree, else 1."""
    features: Literal["fp16", "int8"] = "fp16"
    """How captured features are kept; int8 has a scale for each channel."""

    signals: Path | None = None
    """A folder of signals that were computed elsewhere, from which the store is filled: ``docs/own_logits.md``."""
    on_missing: Literal["error", "skip", "compute"] = "error"
    """What a sample means of which `signals` holds nothing: an error, no row of the terms with a teacher, or that the
    teacher computes it here."""
    match: Literal["content", "name"] = "content"
    """Whether a sample must be, to the bit, what the teacher saw elsewhere, or only be called the same: features that
    another processor computed differ in their last bits."""

    @model_validator(mode="after")
    def _replayed(self) -> CacheSpec:
        if self.epochs > 1 and self.view == "clean":
            raise ValueError("epochs: the clean view has one entry a sample: epochs belongs to view: replay")
        if self.smaller is not None and self.top_k is not None:
            raise ValueError("smaller: top_k is another way to keep logits: give one of them")
        if self.temperature is not None and self.top_k is None:
            raise ValueError("temperature: it is of the mass that top_k leaves out: give top_k")
        if self.signals is None and (self.on_missing != "error" or self.match != "content"):
            raise ValueError("on_missing and match are of signals that come from elsewhere: give signals")
        return self
