"""Which student layer learns from which teacher layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

LayerMap = Literal["last", "uniform", "skip", "spaced"]
Pairs = list[tuple[int, int]]


def layer_pairs(layers: LayerMap, student_depth: int, teacher_depth: int) -> Pairs:
    """Pairs ``(m, n)``, counted from 1: student layer m learns from teacher layer n.

    ``last``
        The teacher's last layers, as many as the student has: ``n = N - M + m``.
    ``uniform``
        Evenly over the teacher's depth, its last layer for the student's last: ``n = m N / M``, a half rounded up
        (TinyBERT's g(m) = 3m of 4 and 12 layers).
    ``skip``
        As ``uniform`` without the last pair, whose output the logits already compare (PKD-skip of Sun et al., 2019:
        2, 4, ..., 10 of 6 and 12 layers). A student of one layer keeps it.
    ``spaced``
        As far from each other as they can be, the teacher's first and last among them: ``n = 1 + floor((m - 1)(N - 1) /
        (M - 1))`` (Distil-Whisper of Gandhi et al., 2023: 1 and 32 of 32). A student of one layer has the last.

    >>> layer_pairs("skip", 6, 12)
    [(1, 2), (2, 4), (3, 6), (4, 8), (5, 10)]

    Raises ``ValueError`` for a name that is none of them, and for a student that is deeper than its teacher.
    """
    if layers not in MAPS:
        raise ValueError(f"layer map {layers!r} is none of {', '.join(MAPS)}")
    if not 1 <= student_depth <= teacher_depth:
        raise ValueError(
            f"a student of {student_depth} layers cannot be mapped onto a teacher of {teacher_depth}: "
            "it needs at least one layer and at most as many as the teacher"
        )
    return MAPS[layers](student_depth, teacher_depth)


def _last(m: int, n: int) -> Pairs:
    return [(i, n - m + i) for i in range(1, m + 1)]


def _uniform(m: int, n: int) -> Pairs:
    return [(i, (2 * i * n + m) // (2 * m)) for i in range(1, m + 1)]


def _skip(m: int, n: int) -> Pairs:
    return _uniform(m, n)[: max(m - 1, 1)]


def _spaced(m: int, n: int) -> Pairs:
    return [*((i + 1, 1 + i * (n - 1) // (m - 1)) for i in range(m - 1)), (m, n)]


MAPS: Mapping[str, Callable[[int, int], Pairs]] = {
    "last": _last, "uniform": _uniform, "skip": _skip, "spaced": _spaced,
}  # fmt: skip
