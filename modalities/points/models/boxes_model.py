"""A detector of somebody else's, which says boxes: they are put on the cells on which a student answers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int64
from torch import Tensor, nn

from xmodal_kd.runtime.errors import UserError

from ..data.detection_config import Detection
from ..views.ground import CODE, Ground, encoded, targets
from .centre import Answer, CenterPoint
from .scene import SceneModel, View

#: Scores are kept so far from 0 and 1, of which a logit would have no end.
EDGE = 1e-4
#: What an answer for a scan has: boxes (m, 7), scores (m,) and classes (m,) from 0.
PARTS = {"boxes": (7,), "scores": (), "labels": ()}


class BoxesModel(SceneModel):
    """Whatever says boxes of a scan, as a teacher of detectors that answer by cell. It is not trained here.

    The heat of a class is its boxes' scores at their centres and a Gaussian's less around them (`targets`), so that
    `decoding.found` gives back the boxes that it was made of; as far as the heat goes, a cell says the box of the
    nearest centre, and beyond it none (NaN, which is no row of any term).
    """

    view: ClassVar[View] = "pillars"
    detects: ClassVar[bool] = True
    merged: ClassVar[int] = CenterPoint.merged

    @abstractmethod
    def __init__(self, config: Any, *, channels: int, classes: int) -> None:
        super().__init__(config, channels=channels, classes=classes)
        #: Without weights of its own: a name for the boxes by cell, which terms compare.
        self.boxes = nn.Identity()

    @abstractmethod
    def detect(self, points: list[Tensor]) -> Sequence[Mapping[str, Any]]:
        """The boxes in each scan.

        Args:
            points: of each scan, ``(n, 3)`` x forward, y left, z up in metres from the sensor, or ``(n, 4)`` with
                intensity from 0 to 1 where the view has it; those on the ground that is looked at.

        Returns:
            A mapping for each: ``boxes`` ``(m, 7)`` x, y, z of the centre, length, width, height in metres, yaw from x
            towards y in radians; ``scores`` ``(m,)`` 0 to 1; ``labels`` ``(m,)`` classes, from 0.
        """

    def stand_on(self, detection: Detection, cell: float) -> None:
        """On which ground points are given and boxes are wanted; whoever builds the model says it."""
        self.ground, self.cells = Ground.of(detection, cell), Ground.of(detection, cell, self.merged)

    def forward(self, points: Float[Tensor, "n c"], cell: Int64[Tensor, " n"], shape: tuple[int, int, int]) -> Answer:
        """As `CenterPoint.forward`. Raises `UserError` for an answer that is none."""
        answers = self.detect(self._scans(points, cell, shape[0]))
        if len(answers) != shape[0]:
            raise UserError(
                f"{_name(self)}.detect: {len(answers)} answers for {shape[0]} scans: one for each is expected"
            )
        maps = [self._maps(answer) for answer in answers]
        heat, code = (torch.stack(part).to(points) for part in zip(*maps, strict=True))
        return Answer(heat, self.boxes(code))

    def _scans(self, points: Tensor, cell: Tensor, items: int) -> list[Tensor]:
        """x, y, z and what is beside them, from a detector's features and the pillar of each point (`pillars`)."""
        centres = torch.from_numpy(self.ground.centres()).to(points)
        item, pillar = cell // self.ground.cells, cell % self.ground.cells
        xyz = torch.cat([centres[pillar] + points[:, 4:6], points[:, :1], points[:, 8:]], dim=1)
        return [xyz[item == at] for at in range(items)]

    def _maps(self, answer: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Heat ``(classes, h, w)`` and boxes ``(8, h, w)`` of a scan."""
        boxes, scores, labels = (_part(self, answer, name) for name in PARTS)
        if not np.isin(labels, np.arange(self.classes)).all():
            raise UserError(
                f"{_name(self)}.detect: labels from {labels.min():g} to {labels.max():g}: classes 0 to "
                f"{self.classes - 1} are expected (OpenPCDet's begin at 1)"
            )
        order = np.argsort(scores, kind="stable")  # of boxes that are as near the surer one is written last
        boxes, scores, labels = boxes[order], np.clip(scores[order], EDGE, 1 - EDGE), labels[order].astype(np.int64)
        heat, nearest = np.full((self.cells.cells, self.classes), EDGE), np.zeros(self.cells.cells)
        code = np.full((self.cells.cells, CODE), np.nan)
        for box, score, label in zip(boxes, scores, labels, strict=True):
            bump = (
                targets([torch.from_numpy(box[None])], [torch.tensor([0])], self.cells, 1).heat[:, 0].double().numpy()
            )
            heat[:, label] = np.maximum(heat[:, label], score * bump)
            near = np.flatnonzero((bump > 0) & (bump >= nearest))
            nearest[near] = bump[near]
            code[near] = encoded(np.repeat(box[None], len(near), axis=0), self.cells.centres()[near])
        h, w = self.cells.shape
        rows = np.concatenate([np.log(heat / (1 - heat)), code], axis=1)
        maps = rearrange(torch.from_numpy(rows), "(h w) c -> c h w", h=h, w=w)
        return maps[: self.classes], maps[self.classes :]


def _part(model: nn.Module, answer: Mapping[str, Any], name: str) -> np.ndarray:
    """An array of an answer. Raises `UserError` where it is missing, of another shape or not finite."""
    if name not in answer:
        raise UserError(f"{_name(model)}.detect: an answer has no {name!r} (it has {', '.join(answer) or 'nothing'})")
    found = answer[name]
    found = np.asarray(found.detach().cpu() if isinstance(found, Tensor) else found).astype(np.float64)
    wanted = (len(answer["scores"]), *PARTS[name])
    if found.shape != wanted or not np.isfinite(found).all():
        raise UserError(f"{_name(model)}.detect: {name} of shape {found.shape}: {wanted} finite numbers are expected")
    return found


def _name(model: nn.Module) -> str:
    return type(model).__name__


__all__ = ["BoxesModel"]
