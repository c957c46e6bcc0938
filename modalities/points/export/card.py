"""What the card of a saved segmenter says."""

from __future__ import annotations

from xmodal_kd.adapter.saved_model import About

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
    seen = f"{SEES[view.sees]}{beams}{size}" + ("" if view.sees == "image" else f" (sensor `{card.lidar.name}`)")
    what = f"It sees {seen} and labels each point with one of {len(card.classes)} classes: {', '.join(card.classes)}."
    onnx = "" if view.sees == "points" else ONNX.format(channels=card.channels, classes=len(card.classes))
    return About("LiDAR segmenter" if view.sees != "image" else "Street image segmenter", what, USE.format(onnx=onnx))


DETECT = """```sh
xmodal-kd detect scans/ --model path/to/this/folder --out detected
```

writes the boxes of scans (`.bin`, `.ply`, `.pcd`, `.npz`) as KITTI's text and JSON, with `pip install
'xmodal-kd[points]'`. From Python:

```python
from xmodal_kd.modalities.points.use.detect import Detector

detector = Detector.from_pretrained("path/to/this/folder")  # or owner/name of a repository of the Hub
```
"""


DETECT_CAMERA = """```sh
xmodal-kd detect kitti/training/image_2 --model path/to/this/folder --out detected
```

writes the boxes of photographs as KITTI's text or JSON, with `pip install 'xmodal-kd[points]'`; the calibration lies in
`calib` beside their folder, or `--calib` names it. With another focal length its boxes are too near or too far.
"""


def about_detector(card: Card) -> About:
    """What it sees, of which sensor, where it looks, and for what."""
    assert card.detection is not None
    view, (x0, y0, x1, y1) = card.view, card.detection.range
    height, width = card.image
    photographs = f"{len(view.cameras)} photographs" if len(view.cameras) > 1 else "a photograph"
    seen = (
        f"{photographs} of {height} x {width} pixels, lifted to pillars of {view.cell:g} m,"
        if view.sees == "image"
        else f"a LiDAR scan of {view.beams or 'all'} beams in pillars of {view.cell:g} m (sensor `{card.lidar.name}`)"
    )
    what = (
        f"It sees {seen} and finds boxes of {', '.join(card.classes)} from {x0:g} to {x1:g} m ahead and from {y0:g} to "
        f"{y1:g} m to the left."
    )
    if view.sees == "image":
        return About("Camera detector", what, DETECT_CAMERA)
    return About("LiDAR detector", what, DETECT)


__all__ = ["about", "about_detector"]
