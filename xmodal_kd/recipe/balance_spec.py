"""The section ``balance`` of a recipe's objective."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ..adapter.adapter import Strict


class Balance(Strict):
    """How the terms are weighed against one another in training."""

    name: Literal["fixed", "uncertainty", "gradnorm"] = "fixed"
    alpha: float = Field(1.5, ge=0)
    """Of gradnorm: how hard a term is pushed whose loss has fallen less than the others'; 0: all gradients equal."""
    rate: float = Field(0.025, gt=0)
    """Of gradnorm: the learning rate (of Adam) of its weights."""
    layer: str | None = None
    """Of gradnorm: the student's module in whose weight gradients are compared; None: the last that all terms reach."""

    @model_validator(mode="after")
    def _of_gradnorm(self) -> Balance:
        plain = type(self).model_fields
        changed = [key for key in ("alpha", "rate", "layer") if getattr(self, key) != plain[key].default]
        if changed and self.name != "gradnorm":
            raise ValueError(f"{changed[0]} is of balance gradnorm, not of {self.name}")
        return self
