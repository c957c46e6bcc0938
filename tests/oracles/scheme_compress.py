"""Compression by plain loops: quantisers, sizes on disk, least-squares repair, importance of channels."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence

import numpy as np

from .maths import Array, Ints

# ---------------------------------------------------------------- quantisers (Polino et al., 2018)


def buckets(count: int, size: int) -> list[range]:
    """Indexes of a flattened tensor by bucket; the last may be shorter, none is padded."""
    return [range(at, min(at + size, count)) for at in range(0, count, size)]


def levels(values: Array, bits: int, size: int) -> Ints:
    """Integers ``0 .. 2^bits - 1`` of each value, in `values`'s shape; a bucket of equal values is at level 0."""
    flat, steps = values.reshape(-1), 2**bits - 1
    out = np.zeros(len(flat), dtype=np.int64)
    for bucket in buckets(len(flat), size):
        low, high = min(flat[i] for i in bucket), max(flat[i] for i in bucket)
        for i in bucket:
            out[i] = 0 if high == low else int(np.rint((flat[i] - low) / (high - low) * steps))
    return out.reshape(values.shape)


def quantised(values: Array, bits: int, size: int) -> Array:
    """Method 1: the nearest of ``2^bits`` levels between a bucket's least and greatest value."""
    flat, steps, level = values.reshape(-1), 2**bits - 1, levels(values, bits, size).reshape(-1)
    out = np.zeros(len(flat))
    for bucket in buckets(len(flat), size):
        low, high = min(flat[i] for i in bucket), max(flat[i] for i in bucket)
        for i in bucket:
            out[i] = level[i] / steps * (high - low) + low
    return out.reshape(values.shape)


def assigned(values: Array, points: Array, size: int) -> Ints:
    """Index of the nearest of `points` for each value, once its bucket is scaled to [0, 1]; the lower one of two."""
    flat = values.reshape(-1)
    out = np.zeros(len(flat), dtype=np.int64)
    for bucket in buckets(len(flat), size):
        low, high = min(flat[i] for i in bucket), max(flat[i] for i in bucket)
        for i in bucket:
            scaled = 0.0 if high == low else (flat[i] - low) / (high - low)
            out[i] = min(range(len(points)), key=lambda j: (abs(scaled - points[j]), j))
    return out.reshape(values.shape)


def by_points(values: Array, points: Array, size: int) -> Array:
    """Method 2: each value replaced by its nearest point, scaled back to its bucket."""
    flat, at = values.reshape(-1), assigned(values, points, size).reshape(-1)
    out = np.zeros(len(flat))
    for bucket in buckets(len(flat), size):
        low, high = min(flat[i] for i in bucket), max(flat[i] for i in bucket)
        for i in bucket:
            out[i] = points[at[i]] * (high - low) + low
    return out.reshape(values.shape)


def gradient_of_points(values: Array, gradient: Array, points: Array, size: int) -> Array:
    """dL/dp_j: the sum over values at point j of their bucket's width times dL/dQ(v), which is `gradient`."""
    flat, slope, at = values.reshape(-1), gradient.reshape(-1), assigned(values, points, size).reshape(-1)
    out = np.zeros(len(points))
    for bucket in buckets(len(flat), size):
        width = max(flat[i] for i in bucket) - min(flat[i] for i in bucket)
        for i in bucket:
            out[at[i]] += width * slope[i]
    return out


# ---------------------------------------------------------------- bytes


def packed(level: Sequence[int], bits: int) -> bytes:
    """Integers of `bits` bits one behind another, the first in the lowest bits of the first byte; zeros fill up."""
    stream = [(int(value) >> k) & 1 for value in level for k in range(bits)]
    stream += [0] * (-len(stream) % 8)
    return bytes(sum(bit << k for k, bit in enumerate(stream[at : at + 8])) for at in range(0, len(stream), 8))


def packed_bytes(count: int, bits: int, size: int, *, points: int = 0, number: int = 4) -> int:
    """Size of a tensor of `count` values: its levels, two numbers a bucket (least value, width) and its points.

    Args:
        points: of method 2; 0 for method 1, whose levels need none.
        number: bytes of one stored number.
    """
    whole = (count * bits + 7) // 8
    return whole + 2 * number * len(buckets(count, size)) + number * points


def huffman_bits(level: Sequence[int]) -> int:
    """Bits of all `level` in an optimal prefix code, without its table; one bit each where there is one symbol."""
    heap = list(Counter(level).values())
    if len(heap) == 1:
        return heap[0]
    heapq.heapify(heap)
    total = 0
    while len(heap) > 1:
        both = heapq.heappop(heap) + heapq.heappop(heap)
        total += both
        heapq.heappush(heap, both)
    return total


# ---------------------------------------------------------------- FSKD (Li et al., 2020)


def least_squares(student: Array, teacher: Array, ridge: float = 0.0) -> Array:
    """Q ``(c_t, c_s)`` that minimises ``sum_n ||t_n - Q s_n||^2 + ridge ||Q||_F^2`` over rows ``(n, c)``.

    Solved a teacher's channel at a time as plain least squares, the ridge as rows of its own.
    """
    width = student.shape[1]
    above = np.concatenate([student, np.sqrt(ridge) * np.eye(width)])
    rows = [
        np.linalg.lstsq(above, np.concatenate([teacher[:, c], np.zeros(width)]), rcond=None)[0]
        for c in range(teacher.shape[1])
    ]
    return np.stack(rows)


def residual(student: Array, teacher: Array, q: Array) -> float:
    """Mean over rows of ``||t_n - Q s_n||^2``."""
    return sum(float(np.sum((t - q @ s) ** 2)) for s, t in zip(student, teacher, strict=True)) / len(student)


def absorbed(weight: Array, bias: Array | None, q: Array) -> tuple[Array, Array | None]:
    """W' = Q W and b' = Q b of a linear layer or an ungrouped convolution, weights ``(out, in, *kernel)``."""
    out = np.zeros((len(q), *weight.shape[1:]))
    for o in range(len(q)):
        for k in range(len(weight)):
            out[o] += q[o, k] * weight[k]
    return out, None if bias is None else np.array([sum(q[o] * bias) for o in range(len(q))])


def absorbed_after_norm(
    weight: Array, bias: Array | None, norm: dict[str, Array], eps: float, q: Array
) -> tuple[Array, Array]:
    """The layer that says ``Q norm(W x + b)`` alone: a batch norm between it and Q is folded into W and b first.

    Args:
        norm: ``weight``, ``bias``, ``running_mean``, ``running_var`` of the batch norm in eval mode.
    """
    scale = norm["weight"] / np.sqrt(norm["running_var"] + eps)
    own = np.zeros(len(weight)) if bias is None else bias
    folded = np.stack([scale[o] * weight[o] for o in range(len(weight))])
    shift = scale * (own - norm["running_mean"]) + norm["bias"]
    new, moved = absorbed(folded, shift, q)
    assert moved is not None
    return new, moved


# ---------------------------------------------------------------- importance of channels


def l1_importance(members: Sequence[tuple[Array, int]]) -> Array:
    """Sum of the magnitudes of a channel's weights, over all tensors of its group.

    Args:
        members: each a tensor and the dimension along which the group's channels lie; the others may be of any shape.
    """
    return sum(_slices(np.abs(weight), along) for weight, along in members)  # type: ignore[return-value]


def taylor_importance(members: Sequence[tuple[Array, Array, int]]) -> Array:
    """Change of the loss without a channel, to first order: ``|sum w g|`` over all of the channel's weights.

    Args:
        members: weights, their gradients and the dimension of the channels.
    """
    return np.abs(sum(_slices(weight * slope, along) for weight, slope, along in members))  # type: ignore[arg-type]


def kept(importance: Array, count: int) -> list[int]:
    """The `count` most important channels in their old order; of equals the earlier."""
    best = sorted(range(len(importance)), key=lambda c: (-importance[c], c))[:count]
    return sorted(best)


def _slices(values: Array, along: int) -> Array:
    return np.array([float(np.sum(np.take(values, c, axis=along))) for c in range(values.shape[along])])
