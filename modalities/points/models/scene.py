"""What all models of this room share."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from xmodal_kd.adapter.adapter import Strict
from xmodal_kd.runtime.errors import UserError

View = Literal["range", "image", "points", "pillars"]
#: Metres along x, y, z that become 1 in models of points: as far as most points are.
POINT_SCALE = (20.0, 20.0, 2.0)


class SceneModel(nn.Module):
    """A network that gives every element of its view (cell, pixel or point) logits.

    `features` is a module whose output is what the last linear layer sees, ``(b, c, h, w)`` or ``(total, c)``, under
    one path in all models: what a term captures. The stages are ``encoder.*`` and ``decoder.*``. Called as ``model(x)``
    where the view is a grid, as ``model(points, lengths)`` where it is points.
    """

    Config: ClassVar[type[Strict]]
    #: What it is shown: a range image, a photograph, a set of points, or, of a detector, points in pillars.
    view: ClassVar[View]
    #: Its name and parameters, as a recipe and a saved folder give them; set by whoever builds it from them.
    card: dict[str, Any]
    #: Whether one of photographs takes any size, whatever it was built for.
    free_size: ClassVar[bool] = True
    #: Whether it says boxes; else it labels what it is shown.
    detects: ClassVar[bool] = False

    @abstractmethod
    def __init__(self, config: Any, *, channels: int, classes: int) -> None:
        super().__init__()
        self.channels, self.classes = channels, classes
        #: The parameters that build it again, where its weights are known.
        self.again = config
        # without weights of its own: a name for what the head sees
        self.features = nn.Identity()

    def fits(self, size: tuple[int, int]) -> None:
        """Raises `UserError` where photographs of this height and width are nothing for it."""


class PointModel(SceneModel):
    """A network of points laid end to end: logits and `features` have a row a point, in the points' order."""

    view: ClassVar[View] = "points"
    scale: Tensor

    def __init__(self, config: Any, *, channels: int, classes: int) -> None:
        super().__init__(config, channels=channels, classes=classes)
        if channels < 3:
            raise UserError(f"a model of points takes x, y, z and what else a point has, not {channels} channels")
        scale = torch.ones(channels)
        scale[:3] = 1 / torch.tensor(POINT_SCALE)
        self.register_buffer("scale", scale, persistent=False)

    @abstractmethod
    def forward(
        self, points: Float[Tensor, "total channels"], lengths: Int[Tensor, " b"]
    ) -> Float[Tensor, "total classes"]:
        """Logits of every point.

        Args:
            points: x, y, z in metres and further channels of about unit size; the points of all items end to end.
            lengths: points of each item, which may be none.

        Raises:
            ValueError: the lengths do not sum to the points.
        """

    @staticmethod
    def numbers(points: Tensor, lengths: Tensor) -> list[int]:
        """`lengths` as a list. Raises `ValueError` where they do not sum to the points."""
        found: list[int] = lengths.tolist()
        if sum(found) != len(points):
            raise ValueError(f"{len(points)} points, but lengths that sum to {sum(found)}")
        return found
