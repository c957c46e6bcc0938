"""Which pixel shows which point: in front of the camera, inside its picture, and not behind something.

The LiDAR stands beside the camera and sees past edges that the camera does not, so a point may project onto a pixel
that shows something nearer. Depth is measured along the camera's axis.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int64
from scipy.ndimage import minimum_filter

from ..data.frame import Camera

#: Points nearer than this, in metres, are dropped, as in SLidR (Sautier et al., CVPR 2022).
NEAREST = 1.0
#: Metres at which the plane of a surface may pass the camera: roads lie that far below it, facades beside it.
PASSING = 1.5


def visible(
    uv: Float[np.ndarray, "n 2"],
    depth: Float[np.ndarray, " n"],
    camera: Camera,
    depth_map: Float[np.ndarray, "h w"] | None = None,
    radius: int = 2,
    tolerance: float = 0.3,
) -> Int64[np.ndarray, " n"]:
    """The pixel ``v * width + u`` that shows each point, -1 where none does.

    Args:
        uv, depth: of the points, from `Camera.project`.
        camera: whose picture it is.
        depth_map: rendered depth, inf for the sky. A point is visible where it lies on the surface that its pixel
            shows: neither behind it nor, at the edge of a thin object that the pixel's middle misses, before it.
        radius: without a depth map, a point is hidden by a clearly nearer one within so many pixels in u and in v.
        tolerance: metres of depth that are no difference. Slanted surfaces are given more: with a depth map as much as
            it changes within half a pixel, without one as much as a plane that passes the camera at 1.5 m.

    Raises:
        ValueError: a depth map of another size than the camera's picture.
    """
    if depth_map is not None and depth_map.shape != (camera.height, camera.width):
        raise ValueError(f"a depth map of {depth_map.shape} for a picture of {(camera.height, camera.width)}")
    u, v = uv.T
    inside = (depth >= NEAREST) & (u >= 0) & (u < camera.width) & (v >= 0) & (v < camera.height)
    point = np.flatnonzero(inside)
    at = v[point].astype(np.int64) * camera.width + u[point].astype(np.int64)
    if depth_map is None:
        seen = _before_others(at, depth[point], camera, radius, tolerance)
    else:
        seen = _on_surface(at, depth[point], depth_map, tolerance)
    pixel = np.full(len(depth), -1, dtype=np.int64)
    pixel[point[seen]] = at[seen]
    return pixel


def point_index(
    pixel: Int64[np.ndarray, " n"], depth: Float[np.ndarray, " n"], height: int, width: int
) -> Int64[np.ndarray, "h w"]:
    """The nearest point that each pixel shows, -1 where it shows none: `visible` the other way round."""
    shown = np.argsort(-depth, kind="stable")  # the nearest is written last
    shown = shown[pixel[shown] >= 0]
    index = np.full(height * width, -1, dtype=np.int64)
    index[pixel[shown]] = shown
    return index.reshape(height, width)


def _before_others(
    pixel: Int64[np.ndarray, " m"], depth: Float[np.ndarray, " m"], camera: Camera, radius: int, tolerance: float
) -> Bool[np.ndarray, " m"]:
    """Whether no point within `radius` pixels is clearly nearer.

    Over a plane that passes the camera at a distance d, the inverse depth changes by at most ``1 / (f d)`` a pixel.
    """
    nearest = np.full(camera.height * camera.width, np.inf, dtype=np.float32)
    np.minimum.at(nearest, pixel, depth.astype(np.float32))
    around = minimum_filter(nearest.reshape(camera.height, camera.width), size=2 * radius + 1, mode="nearest")
    before = around.ravel()[pixel]
    focal = min(camera.intrinsics[0, 0], camera.intrinsics[1, 1])
    slant = (radius + 1) / (focal * PASSING)  # positions in pixels `radius` apart differ by up to one more
    seen: np.ndarray = (depth <= before + tolerance) | (1 / before - 1 / depth <= slant)
    return seen


def _on_surface(
    pixel: Int64[np.ndarray, " m"],
    depth: Float[np.ndarray, " m"],
    depth_map: Float[np.ndarray, "h w"],
    tolerance: float,
) -> Bool[np.ndarray, " m"]:
    """Whether the depth lies between the least and the most that the surface can have within its pixel.

    Over a plane the inverse depth is linear in u and v, so half a pixel changes it by half the step to the next pixel,
    and of the steps to both sides the smaller one stays on the surface at its edge.
    """
    inverse = 1 / depth_map.astype(np.float64)  # the sky's is 0
    slack = 0.5 * (_smaller_step(inverse) + _smaller_step(inverse.T).T)
    here, spread = inverse.ravel()[pixel], slack.ravel()[pixel]
    with np.errstate(divide="ignore"):
        least, most = 1 / (here + spread), 1 / np.maximum(here - spread, 0)
    seen: np.ndarray = (depth >= least - tolerance) & (depth <= most + tolerance)
    return seen


def _smaller_step(inverse: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """The smaller of the absolute differences to the left and to the right neighbour."""
    step = np.abs(np.diff(inverse, axis=1))
    edge = np.full((len(inverse), 1), np.inf)
    smaller: np.ndarray = np.minimum(np.hstack([edge, step]), np.hstack([step, edge]))
    return np.where(np.isfinite(smaller), smaller, 0.0)  # a picture one pixel wide
