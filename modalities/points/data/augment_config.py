"""The section ``augment`` of a recipe: what happens to a training view, and what that does to its rows."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from xmodal_kd.adapter.adapter import Strict


def _scales(value: tuple[float, float]) -> tuple[float, float]:
    if not 0.1 <= value[0] <= value[1] <= 10:
        raise ValueError(f"a scale is (least, most) within 0.1 and 10, got {value}")
    return value


class Augment(Strict):
    """What happens to a training view. The default is nothing; `unread` names what a view has no use for.

    Attributes:
        rotate: about the vertical axis by any angle; a range image by any number of columns.
        flip: left and right exchanged in half the samples.
        scale: (least, most) factor of all lengths, drawn uniformly.
        jitter: standard deviation in metres of noise in each coordinate; in a range image, along the ray.
        drop: share of points or cells that vanish.
        shuffle: points in another order.
        colour: the most that brightness, contrast and saturation change by, as a share.
        crop: share of a picture's height and of its width that stays, at any place.
    """

    rotate: bool = False
    flip: bool = False
    scale: Annotated[tuple[float, float], AfterValidator(_scales)] | None = None
    jitter: float = Field(default=0.0, ge=0, le=10)
    drop: float = Field(default=0.0, ge=0, lt=1)
    shuffle: bool = False
    colour: float = Field(default=0.0, ge=0, lt=1)
    crop: float | None = Field(default=None, gt=0, le=1)

    def unread(self, view: str) -> tuple[str, ...]:
        """The settings that are on although `view`, one of `READ`, does not know them."""
        default = type(self)()
        names = (name for name in type(self).model_fields if name not in READ[view])
        return tuple(name for name in names if getattr(self, name) != getattr(default, name))


#: The settings that each view reads.
READ = {
    "range": frozenset({"rotate", "flip", "scale", "jitter", "drop"}),
    "points": frozenset({"rotate", "flip", "scale", "jitter", "drop", "shuffle"}),
    "image": frozenset({"flip", "colour", "crop"}),
    "pillars": frozenset({"rotate", "flip", "scale", "jitter", "drop"}),
}


#: Those of them after which row i is no longer what it was; what drops a cell of an image leaves the others in place.
MOVES = {
    "range": ("rotate", "flip"),
    "points": ("drop", "shuffle"),
    "image": ("flip", "crop"),
    "pillars": ("rotate", "flip", "scale"),
}
