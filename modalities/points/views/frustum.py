"""From pixels to the ground: where what a pixel shows stands, if it is so deep in the picture."""

from __future__ import annotations

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int64
from torch import Tensor

from ..data.frame import Camera
from .ground import Ground


def lift_of(camera: Camera) -> Float[np.ndarray, "3 4"]:
    """The matrix from (u d, v d, d, 1), a pixel's position times its depth in metres, to the LiDAR's x, y, z."""
    back = np.linalg.inv(camera.lidar_to_camera)
    found: np.ndarray = np.concatenate([back[:3, :3] @ np.linalg.inv(camera.intrinsics), back[:3, 3:]], axis=1)
    return found


def focal(lift: Float[np.ndarray, "3 4"]) -> float:
    """Of a camera with this matrix: the horizontal focal length, pixels."""
    return float(1 / np.linalg.norm(lift[:, 0]))


def nearest_depth(camera: Camera, xyz: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "h w"]:
    """Depth in metres of the nearest point that falls on each pixel, inf where none does."""
    uv, depth = camera.project(xyz)
    there = (depth > 0) & (uv >= 0).all(axis=1) & (uv < (camera.width, camera.height)).all(axis=1)
    right, down = uv[there].astype(np.int64).T
    found = np.full((camera.height, camera.width), np.inf, np.float32)
    np.minimum.at(found, (down, right), depth[there].astype(np.float32))
    return found


def frustum_cells(
    lift: Float[Tensor, "b n 3 4"], grid: tuple[int, int], stride: int, depths: Float[Tensor, " d"],
    heights: tuple[float, float], ground: Ground,
) -> Int64[Tensor, " all"]:  # fmt: skip
    """The cell of the ground below each place that a cell of a picture's map may show, if it is so deep.

    Of picture n of item b, depth d and cell (i, j) it stands at ``(((b n + n) d + d) h + i) w + j``, cells counted
    through the batch; one behind all of the batch's, ``b cells``, is outside the ground or its heights.

    Args:
        lift: of each picture, see `lift_of`.
        grid: rows and columns of the map, whose cell (i, j) is about the pixel (stride (j + 1/2), stride (i + 1/2)).
        depths: metres along the camera's axis.
        heights: least and largest z of what counts, metres.
    """
    items, device = len(lift), lift.device
    down, right = (
        (torch.arange(side, device=device, dtype=torch.float64) + 0.5) * stride for side in grid
    )  # in float64 throughout: which cell a place is in must not hang on the device's precision
    v, u = torch.meshgrid(down, right, indexing="ij")
    pixel = torch.stack([u, v, torch.ones_like(u)]).flatten(1)
    turn, shift = lift[..., :3].double(), lift[..., 3:].double()
    rays = turn @ pixel
    places = depths.to(rays)[:, None, None] * rays[:, :, None] + shift[:, :, None]
    corner = torch.tensor(ground.corner, device=device, dtype=torch.float64)[:, None]
    steps = torch.floor((places[..., :2, :] - corner) / ground.cell)
    i, j = steps.unbind(dim=-2)
    h, w = ground.shape
    inside = (i >= 0) & (i < h) & (j >= 0) & (j < w)
    inside &= (places[..., 2, :] >= heights[0]) & (places[..., 2, :] < heights[1])
    first = torch.arange(items, device=device)[:, None, None, None] * ground.cells
    cell = torch.where(inside, i * w + j + first, float(items * ground.cells))
    return rearrange(cell, "b n d p -> (b n d p)").long()


__all__ = ["focal", "frustum_cells", "lift_of", "nearest_depth"]
