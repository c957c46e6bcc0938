"""A saved student as a finder of joints in image files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from xmodal_kd.adapter.hub import fetched
from xmodal_kd.adapter.images.read import CHANNELS
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.whole_files import read_json

from ..data.keypoints.coco import MOST_ANNOTATIONS, cut_of, cut_out, four_numbers, is_id, opened
from ..data.keypoints.source import located
from ..export.keypoints_folder import load_card, load_model

#: How much wider than its box a figure is cut, as training does unless its recipe says otherwise.
MARGIN = 1.25
Box = tuple[float, float, float, float]


class Figure(NamedTuple):
    """One figure of an image: left, top, width and height of its box, joints by name: x, y (pixels of the image) and
    score, the height of the heat map."""

    number: Any
    box: Box
    joints: dict[str, tuple[float, float, float]]


class KeypointFinder:
    """Finds joints with what `save_model` left in a folder, and with nothing else.

    Args:
        device: that the model runs on.

    Raises:
        UserError: the folder is not a saved network of joints.
    """

    def __init__(self, folder: Path | str, device: str = "cpu") -> None:
        self.card = load_card(Path(folder))
        self.model = load_model(Path(folder)).to(device)
        self.device = device

    @classmethod
    def from_pretrained(cls, name: Path | str, revision: str | None = None, *, device: str = "cpu") -> KeypointFinder:
        """Of a folder, or of a repository of the Hugging Face Hub (``owner/name``), which is fetched once and kept.

        Args:
            revision: a branch, a tag or a commit of the repository.
        """
        return cls(fetched(name, revision), device)

    @torch.no_grad()
    def find(self, path: Path | str, boxes: Mapping[Any, Box] | None = None) -> list[Figure]:
        """The joints of one figure, which fills the image, or of one in each of `boxes` (left, top, width, height).

        An image of any size and colours will do, upright as its camera says: a figure is cut out, black beyond the
        image, and brought to what the model sees.

        Raises:
            UserError: it names the file and what is wrong with it.
        """
        path, channels = Path(path), self.card.shape[0]
        whole = opened(path, {count: name for name, count in CHANNELS.items()}[channels])
        given = {0: (0.0, 0.0, float(whole.width), float(whole.height))} if boxes is None else boxes
        _, height, width = self.card.shape
        cuts = [cut_of(box, height, width, 1.0 if boxes is None else MARGIN) for box in given.values()]
        if not cuts:
            return []
        pixels = np.stack([np.asarray(cut_out(whole, cut, height, width), np.float32) for cut in cuts])
        x = torch.from_numpy(pixels).reshape(-1, height, width, channels).permute(0, 3, 1, 2).div(127.5).sub(1)
        at, scores = located(self.model(x.to(self.device)).float().cpu(), self.card.stride)
        corners = torch.tensor(cuts, dtype=torch.float64)
        scale = (corners[:, 2:] - corners[:, :2]) / torch.tensor([width, height], dtype=torch.float64)
        there = at.double() * scale[:, None] + corners[:, None, :2]
        rows = torch.cat([there, scores[..., None].double()], dim=2).tolist()
        return [
            Figure(number, box, {name: tuple(row) for name, row in zip(self.card.joints, figure, strict=True)})
            for (number, box), figure in zip(given.items(), rows, strict=True)
        ]


def boxes_of(file: Path) -> dict[str, dict[Any, Box]]:
    """Boxes by the file name of their image and the annotation's id, of COCO's annotations.

    Raises:
        UserError: the file is no such JSON.
    """
    content = read_json(file, MOST_ANNOTATIONS)
    lists = [content.get(key) for key in ("images", "annotations")] if isinstance(content, dict) else []
    if not lists or not all(isinstance(one, list) and all(isinstance(row, dict) for row in one) for one in lists):
        raise UserError(f"{file}: no annotations of COCO: it needs the lists images and annotations, with a bbox each")
    names = {image["id"]: str(image.get("file_name")) for image in content["images"] if is_id(image.get("id"))}
    found: dict[str, dict[Any, Box]] = {name: {} for name in names.values()}
    for place, one in enumerate(content["annotations"]):
        number = one["id"] if is_id(one.get("id")) else place
        if not is_id(one.get("image_id")) or one["image_id"] not in names:
            raise UserError(f"{file}: annotation {number}: there is no image {one.get('image_id')!r} in images")
        found[names[one["image_id"]]][number] = four_numbers(one.get("bbox"), f"{file}: annotation {number}")
    return found


def in_image(path: Path, boxes: Mapping[str, Mapping[Any, Box]]) -> Mapping[Any, Box]:
    """Those of an image, which a file of annotations names by the end of its path. Raises `UserError` for none."""
    parts: Sequence[str] = path.parts
    for start in range(len(parts)):
        if (name := "/".join(parts[start:])) in boxes:
            return boxes[name]
    raise UserError(f"{path}: --boxes has no image of that name")


__all__ = ["Figure", "KeypointFinder", "boxes_of", "in_image"]
