"""Networks in ONNX files as frozen teachers: of range images and photographs, of sets of points, of pillars."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor, nn

from xmodal_kd.models.no_model import NoModel
from xmodal_kd.models.onnx_teacher import ABOUT, Graph, OnnxAbout, shapes_of
from xmodal_kd.runtime.errors import UserError

from ..views.range_image import CHANNELS, SCALES
from .centre import Answer
from .scene import View

#: What a model here is given by what it sees, in order; the last one of scans is there where a view has intensity.
GIVEN: dict[View, tuple[str, ...]] = {
    "range": (*CHANNELS, "intensity"),
    "image": ("red", "green", "blue"),
    "points": ("x", "y", "z", "range", "intensity"),
}
#: Probabilities are kept so far from 0, which has no logarithm.
TINY = 1e-12


@dataclass(frozen=True)
class Channels:
    """What a network is given of a view: `names` of its `GIVEN`, in this order, each less its mean, over its `std`.

    Metres and intensity from 0 to 1 of scans, colours from 0 to 1; 0 in the cells of a range image that show nothing.
    """

    sees: View
    names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, seen: Float[Tensor, "b c *grid"]) -> Float[Tensor, "b d *grid"]:
        known = GIVEN[self.sees]
        units = dict(zip(CHANNELS, SCALES.tolist(), strict=False)) if self.sees == "range" else {}
        unit, mean, std = (
            torch.tensor(one, device=seen.device).reshape(-1, *[1] * (seen.ndim - 2))
            for one in ([units.get(name, 1.0) for name in self.names], self.mean, self.std)
        )
        found = (seen[:, [known.index(name) for name in self.names]] * unit - mean) / std
        return found * seen[:, known.index("valid")][:, None] if self.sees == "range" else found


class OnnxSegmenter(NoModel):
    """Logits of range images and photographs, called as ``model(x)``, or of points, as ``model(points, lengths)``.

    A graph of a grid is (b, c, h, w) to (b, classes, h, w), one of points (n, c), (1, n, c) or (1, c, n) to a row of
    scores a point; with it may go the number of points. Of a fixed number the points of a scan that has fewer are given
    again and again; a fixed batch is of one.

    Args:
        channels: None: those of the view, as models here see them.
        classes: number of its outputs.
        probabilities: whether it gives these, of which the logarithm is taken, and no logits.
        about: how it is used, for a cache that asks whose answers it holds.

    Raises:
        UserError: the graph is none of one such input; when it is called: what it is given does not fit, or what it
            answers.
    """

    def __init__(
        self, graph: Graph, channels: Channels | None, classes: int, *, points: bool, probabilities: bool = False,
        about: OnnxAbout | None = None,
    ) -> None:  # fmt: skip
        super().__init__(graph.digest(about), graph.parameters())
        self.graph, self.channels, self.classes, self.probabilities = graph, channels, classes, probabilities
        ranks = (2, 3) if points else (4,)
        axes = next(iter(graph.floats.values()), ())
        if len(graph.floats) != 1 or len(axes) not in ranks or len(graph.whole) > int(points):
            wanted = "points (n, c), (1, n, c) or (1, c, n), and perhaps their number," if points else "(b, c, h, w)"
            raise UserError(
                f"{graph.path}: its inputs are {graph.inputs}: {wanted} alone is expected where a view is so"
            )
        [self.name], self.axes = graph.floats, axes
        self.first = points and len(axes) == 3 and channels is not None and axes[1] == len(channels.names) != axes[2]
        self.width = axes[1] if not points or self.first else axes[-1]

    def takes(self, size: tuple[int, ...]) -> bool:
        """Whether a grid has the height and width that it was exported for, where these are not free."""
        return all(not isinstance(a, int) or a == b for a, b in zip(self.axes[2:], size, strict=True))

    def forward(self, seen: Tensor, lengths: Int[Tensor, " b"] | None = None) -> Tensor:  # type: ignore[override]
        given = (seen if self.channels is None else self.channels(seen)).detach().float().cpu().numpy()
        if isinstance(self.width, int) and self.width != given.shape[1]:
            names = "" if self.channels is None else f" ({', '.join(self.channels.names)})"
            raise UserError(
                f"{self.graph.path}: it takes {self.width} channels, and is given {given.shape[1]}{names}: say its "
                f"channels in {ABOUT}"
            )
        found = self._maps(given) if lengths is None else self._rows(given, lengths.tolist())
        scores = torch.from_numpy(found).to(seen.device)
        return scores.clamp(min=TINY).log() if self.probabilities else scores

    def _maps(self, given: np.ndarray) -> np.ndarray:
        if not self.takes(given.shape[2:]):
            asked, seen = (" x ".join(map(str, one)) for one in (self.axes[2:], given.shape[2:]))
            raise UserError(
                f"{self.graph.path}: it takes views of {asked}, and is given {seen}: set beams and columns of the "
                "teacher's view to that, or data.image"
            )
        parts = given if isinstance(self.axes[0], int) else given[None]
        wanted = (self.classes, *given.shape[2:])
        return np.concatenate([
            self._scores({self.name: part.reshape(-1, *given.shape[1:])}, lambda one: one.shape[1:] == wanted, wanted)
            for part in parts
        ])  # fmt: skip

    def _rows(self, given: np.ndarray, lengths: Sequence[int]) -> np.ndarray:
        sets = np.split(given, np.cumsum(lengths)[:-1])
        return np.concatenate([self._set(one) if len(one) else np.zeros((0, self.classes), np.float32) for one in sets])

    def _set(self, points: np.ndarray) -> np.ndarray:
        """``(n, classes)`` of the points of one scan."""
        count = self.axes[-1 if self.first else -2]
        size = count if isinstance(count, int) else len(points)
        if len(points) > size:
            raise UserError(
                f"{self.graph.path}: it takes {size} points, and is given {len(points)}: set points of the teacher's "
                f"view to {size}"
            )
        rows = points[np.arange(size) % len(points)]
        value = rows if len(self.axes) == 2 else rows.T[None] if self.first else rows[None]
        given = {self.name: value, **{name: np.full((1,) * len(axes), size) for name, axes in self.graph.whole.items()}}
        wanted = (size, self.classes)
        known = {(*more, *way) for more in ((), (1,)) for way in (wanted, wanted[::-1])}
        found = self._scores(given, lambda one: one.shape in known, wanted)
        found = found.reshape(found.shape[-2:])
        return (found if len(found) == size else found.T)[: len(points)]

    def _scores(
        self, given: dict[str, np.ndarray], fits: Callable[[np.ndarray], bool], wanted: tuple[int, ...]
    ) -> np.ndarray:
        """The first of its answers that `fits`."""
        answers = self.graph.run(given)
        found = next((one for one in answers if fits(one)), None)
        if found is None:
            raise UserError(
                f"{self.graph.path}: it answers {shapes_of(answers)}, and {wanted} is expected, with {self.classes} "
                f"classes: name each output in classes of {ABOUT}, null for one that is not asked for"
            )
        return found


class OnnxDetector(NoModel):
    """A detector of pillars as it is exported here, called as `CenterPoint` is: its graph is of one scan."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph.digest(), graph.parameters())
        self.graph = graph
        #: Without weights of their own: names for what terms compare, or that others learn.
        self.boxes, self.depth = nn.Identity(), nn.Identity()

    def forward(  # type: ignore[override]
        self, seen: Float[Tensor, "n c"], cell: Int64[Tensor, " n"], shape: tuple[int, int, int]
    ) -> Answer:
        items, h, w = shape
        scan = cell // (h * w)
        answers = [self._one(seen[scan == i], cell[scan == i] % (h * w)) for i in range(items)]
        heat, boxes = (torch.from_numpy(np.concatenate(part)).to(seen.device) for part in zip(*answers, strict=True))
        return Answer(heat, self.boxes(boxes))

    def _one(self, points: Tensor, cell: Tensor) -> Any:
        return self.graph.run({"points": points.detach().float().cpu().numpy(), "cell": cell.cpu().numpy()})


__all__ = ["GIVEN", "Channels", "OnnxDetector", "OnnxSegmenter"]
