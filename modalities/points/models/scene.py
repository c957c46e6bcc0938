"""What all models of this room share."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, Literal

from torch import nn

from xmodal_kd.adapter.adapter import Strict

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

    @abstractmethod
    def __init__(self, config: Any, *, channels: int, classes: int) -> None:
        super().__init__()
        self.channels, self.classes = channels, classes
        # without weights of its own: a name for what the head sees
        self.features = nn.Identity()
