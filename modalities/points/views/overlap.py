"""How much rotated boxes overlap, from above and in space."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

#: Metres within which a point counts as on an edge: a box and its copy share all of theirs.
EDGE = 1e-9
#: Pairs of boxes that are clipped at once.
CHUNK = 1 << 14

Boxes = Float[np.ndarray, "n 7"]


def corners(boxes: Float[np.ndarray, "n 7"]) -> Float[np.ndarray, "n 4 2"]:
    """The ground corners of boxes (x, y, z, length, width, height, yaw), anticlockwise."""
    x, y, length, width, yaw = boxes[:, [0, 1, 3, 4, 6]].astype(np.float64).T
    along = 0.5 * length[:, None] * np.array([1, -1, -1, 1])
    across = 0.5 * width[:, None] * np.array([1, 1, -1, -1])
    cos, sin = np.cos(yaw)[:, None], np.sin(yaw)[:, None]
    found: np.ndarray = np.stack([x[:, None] + cos * along - sin * across, y[:, None] + sin * along + cos * across], 2)
    return found


def shared_ground(ours: Float[np.ndarray, "n 7"], theirs: Float[np.ndarray, "m 7"]) -> Float[np.ndarray, "n m"]:
    """Square metres that each box of one side shares with each of the other, from above."""
    found = np.zeros((len(ours), len(theirs)))
    if not found.size:
        return found
    reach = [np.hypot(boxes[:, 3], boxes[:, 4]) / 2 for boxes in (ours, theirs)]
    apart = np.hypot(*(ours[:, None, k] - theirs[None, :, k] for k in (0, 1)))
    near = np.argwhere(apart < reach[0][:, None] + reach[1])
    one, other = corners(ours), corners(theirs)
    for start in range(0, len(near), CHUNK):
        i, j = near[start : start + CHUNK].T
        found[i, j] = _common(one[i], other[j])
    return found


def _common(one: Float[np.ndarray, "p 4 2"], other: Float[np.ndarray, "p 4 2"]) -> Float[np.ndarray, " p"]:
    """Area that two convex quadrilaterals share: that of the hull of the corners of each in the other and of where
    their edges cross."""
    middle = one.mean(axis=1, keepdims=True)  # near the origin digits are not lost
    one, other = one - middle, other - middle
    a, b = np.roll(one, -1, axis=1) - one, np.roll(other, -1, axis=1) - other
    gap = other[:, None, :, :] - one[:, :, None, :]
    turn = _cross(a[:, :, None], b[:, None])
    with np.errstate(divide="ignore", invalid="ignore"):
        s, t = _cross(gap, b[:, None]) / turn, _cross(gap, a[:, :, None]) / turn
    crossing = (abs(turn) > 1e-12) & (s >= 0) & (s <= 1) & (t >= 0) & (t <= 1)
    met = one[:, :, None] + np.where(crossing, s, 0)[..., None] * a[:, :, None]
    points = np.concatenate([one, other, met.reshape(len(one), 16, 2)], axis=1)
    counted = np.concatenate([_within(one, other), _within(other, one), crossing.reshape(len(one), 16)], axis=1)
    number = counted.sum(axis=1)
    centre = (points * counted[..., None]).sum(axis=1) / np.maximum(number, 1)[:, None]
    arms = np.where(counted[..., None], points - centre[:, None], 0)
    angle = np.where(counted, np.arctan2(arms[..., 1], arms[..., 0]), np.inf)  # those that do not count come last
    order = np.argsort(angle, axis=1, kind="stable")
    ring = np.take_along_axis(arms, order[..., None], axis=1)
    last = np.take_along_axis(counted, order, axis=1)[..., None]
    ring = np.where(last, ring, ring[:, :1])  # and repeat the first, which closes the ring
    area = _cross(ring, np.roll(ring, -1, axis=1)).sum(axis=1) / 2
    return np.where(number > 2, np.maximum(area, 0), 0)


def _within(points: Float[np.ndarray, "p 4 2"], ring: Float[np.ndarray, "p 4 2"]) -> np.ndarray:
    """``(p, 4)`` which corners lie in a quadrilateral or on its edge."""
    edge = np.roll(ring, -1, axis=1) - ring
    side = _cross(edge[:, None], points[:, :, None] - ring[:, None])
    length = np.linalg.norm(edge, axis=2)[:, None]
    found: np.ndarray = (side >= -EDGE * np.maximum(length, 1e-6)).all(axis=2)
    return found


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    found: np.ndarray = a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
    return found


def iou(
    ours: Float[np.ndarray, "n 7"], theirs: Float[np.ndarray, "m 7"], *, above: bool,
    shared: Float[np.ndarray, "n m"] | None = None,
) -> Float[np.ndarray, "n m"]:  # fmt: skip
    """Intersection over union of rotated boxes (centre, length, width, height, yaw about z).

    Args:
        above: of their ground, as seen from above; else of their volume.
        shared: their `shared_ground`, where it is known.
    """
    shared = shared_ground(ours, theirs) if shared is None else shared
    sizes = [boxes[:, 3:5].prod(axis=1) if above else boxes[:, 3:6].prod(axis=1) for boxes in (ours, theirs)]
    if not above:
        low = [boxes[:, 2] - boxes[:, 5] / 2 for boxes in (ours, theirs)]
        high = [boxes[:, 2] + boxes[:, 5] / 2 for boxes in (ours, theirs)]
        tall = np.minimum(high[0][:, None], high[1]) - np.maximum(low[0][:, None], low[1])
        shared = shared * np.maximum(tall, 0)
    union = sizes[0][:, None] + sizes[1] - shared
    found: np.ndarray = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return found


__all__ = ["corners", "iou", "shared_ground"]
