"""The section ``restoration`` of a recipe: what is taken from an image, to be given back."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from xmodal_kd.adapter.adapter import Strict

#: Side of a training crop unless the recipe says it; of scikit-learn's digits all of one.
CROP, DIGIT = 48, 8
#: Side of the tiles that scikit-learn's photographs are cut into, unless ``data.size`` says it.
PHOTO = 64


class Restoration(Strict):
    """Of the task restoration."""

    scale: Literal[1, 2, 3, 4] = 2
    """How much smaller a side of the input is: by bicubic sampling that averages, as Pillow and Matlab have it."""
    noise: Annotated[float, Field(ge=0, le=128)] = 0.0
    """Deviation of the Gaussian noise that is added to the input, of 255 levels."""
    crop: int | None = Field(None, ge=4, le=1 << 12)
    """Side of what is cut out of an image for training, in pixels of the target: 48 unless said."""

    @model_validator(mode="after")
    def _check(self) -> Restoration:
        if self.scale == 1 and not self.noise:
            raise ValueError("scale 1 without noise takes nothing away: set scale to 2, 3 or 4, or noise above 0")
        return self

    def side(self, sources: str) -> int:
        """Of a training crop."""
        return self.crop or (DIGIT if sources == "digits" else CROP)


__all__ = ["CROP", "DIGIT", "PHOTO", "Restoration"]
