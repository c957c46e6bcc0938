"""KITTI's text of a frame's boxes: what a photograph shows of them, and lines as its benchmark reads them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from xmodal_kd.runtime.checkpoint import write_bytes

from .frame import Camera

#: From the LiDAR's axes (forward, left, up) to a camera's (right, down, forward), where none is known.
AXES = np.array([[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]], dtype=np.float64)


def rectangles(boxes: Float[np.ndarray, "n 7"], camera: Camera) -> Float[np.ndarray, "n 4"]:
    """Left, top, right and bottom of boxes in a photograph, pixels, cut at its edges; 0 behind the camera."""
    along, across, up = np.array([[a, b, c] for a in (-0.5, 0.5) for b in (-0.5, 0.5) for c in (-0.5, 0.5)]).T
    cos, sin = np.cos(boxes[:, 6:]), np.sin(boxes[:, 6:])
    length, width, height = (boxes[:, k : k + 1] for k in (3, 4, 5))
    x = boxes[:, :1] + cos * along * length - sin * across * width
    y = boxes[:, 1:2] + sin * along * length + cos * across * width
    uv, depth = camera.project(np.stack([x, y, boxes[:, 2:3] + up * height], axis=2).reshape(-1, 3))
    uv, depth = uv.reshape(len(boxes), 8, 2), depth.reshape(len(boxes), 8)
    uv = np.clip(uv, 0, (camera.width - 1, camera.height - 1))
    found = np.concatenate([uv.min(axis=1), uv.max(axis=1)], axis=1)
    ahead: np.ndarray = np.all(depth > 0, axis=1)
    return np.where(ahead[:, None], found, 0.0)


def lines(
    boxes: Float[np.ndarray, "n 7"], names: Sequence[str], scores: Float[np.ndarray, " n"], *,
    rectified: Float[np.ndarray, "4 4"] | None = None, camera: Camera | None = None,
) -> list[str]:  # fmt: skip
    """A line a box, as the benchmark's ``label_2`` has them, with the score behind.

    Type, truncation and occlusion (-1: unknown), alpha, rectangle, height, width, length, the middle of the bottom in
    the camera's frame (right, down, forward), ``rotation_y``.

    Args:
        rectified: from the LiDAR's frame to the rectified camera's; None: the LiDAR's own place, axes exchanged.
        camera: that took the photograph; None: rectangles are 0.
    """
    turn = AXES if rectified is None else rectified
    bottom = (
        np.concatenate([boxes[:, :2], boxes[:, 2:3] - boxes[:, 5:6] / 2, np.ones((len(boxes), 1))], axis=1) @ turn.T
    )
    ahead = np.stack([np.cos(boxes[:, 6]), np.sin(boxes[:, 6]), np.zeros(len(boxes))], axis=1) @ turn[:3, :3].T
    yaw = np.arctan2(-ahead[:, 2], ahead[:, 0])
    alpha = (yaw - np.arctan2(bottom[:, 0], bottom[:, 2]) + np.pi) % (2 * np.pi) - np.pi
    seen = np.zeros((len(boxes), 4)) if camera is None else rectangles(boxes, camera)
    return [
        f"{name} -1 -1 {alpha[i]:.2f} {' '.join(f'{v:.2f}' for v in seen[i])} "
        f"{' '.join(f'{v:.2f}' for v in boxes[i, [5, 4, 3]])} {' '.join(f'{v:.2f}' for v in bottom[i, :3])} "
        f"{yaw[i]:.2f} {scores[i]:.4f}"
        for i, name in enumerate(names)
    ]


def write_lines(path: Path, some: Sequence[str]) -> Path:
    """A label file; one without boxes is empty."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, "".join(f"{line}\n" for line in some).encode())
    return path


__all__ = ["lines", "rectangles", "write_lines"]
