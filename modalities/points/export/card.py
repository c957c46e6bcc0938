"""What the card of a saved segmenter says."""

from __future__ import annotations

from xmodal_kd.adapter.saved_model import About

from ..data.simulator.sensors import known
from .saved_folder import Card

SEES = {"range": "a LiDAR scan as a range image", "points": "a LiDAR scan as a set of points", "image": "a photograph"}
USE = """```sh
xmodal-kd segment path/to/this/folder scan.bin --out segmented
```

labels every point of scans (`.bin`, `.ply`, `.pcd`, `.npz`) and writes coloured clouds and pictures, with
`pip install 'xmodal-kd[points]'`. From Python:

```python
from xmodal_kd.modalities.points.use.segment import Segmenter

segmenter = Segmenter.from_pretrained("path/to/this/folder")  # or owner/name of a repository of the Hub
```
{onnx}"""
ONNX = """
`model.onnx`, where it lies here, takes `view` (batch, {channels}, height, width) and gives
`logits` (batch, {classes}, height, width)."""


def about(card: Card) -> About:
    """A segmenter: what it sees, of which sensor, and its classes."""
    view = card.view
    beams = "" if view.sees == "image" else f" of {view.beams or 'all'} beams"
    size = f", {view.columns} columns a turn" if view.sees == "range" else ""
    lidar = known(card.sensor)
    name = card.sensor if lidar is None else lidar.name
    seen = f"{SEES[view.sees]}{beams}{size}" + ("" if view.sees == "image" else f" (sensor `{name}`)")
    what = f"It sees {seen} and labels each point with one of {len(card.classes)} classes: {', '.join(card.classes)}."
    onnx = "" if view.sees == "points" else ONNX.format(channels=card.channels, classes=len(card.classes))
    return About("LiDAR segmenter" if view.sees != "image" else "Street image segmenter", what, USE.format(onnx=onnx))


__all__ = ["about"]
