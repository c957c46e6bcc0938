"""What a modality shows on a run's page: moments to look at, listen to and turn, as data the core can draw.

A panel is JSON, so that a page can be written again without models or data. The core knows three kinds and none of the
modalities: `clouds` (labelled points to rotate), `sequences` (texts beside their reference, with sound and traces over
time) and `gallery` (small pictures in rows and columns).
"""

from __future__ import annotations

import base64
import io
import struct
import wave
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from ..runtime.bounded_files import inside
from ..runtime.errors import UserError
from ..runtime.whole_files import read_json, write_json
from .panel_schema import checked

FILE = "panels.json"
#: Points of a cloud that a page holds at most: a phone turns so many without a pause.
MOST_POINTS = 14_000
#: The label of a point of which a view says nothing.
UNSEEN = 255
#: Classes whose probabilities are drawn as bars, the width of a bar and the height of all, in pixels.
BARS, BAR, HIGH = 20, 6, 64
PAPER, RIGHT, WRONG, REST = (250, 250, 250), (46, 139, 87), (200, 60, 50), (160, 165, 175)


@dataclass(frozen=True)
class Panel:
    """One part of a page.

    Attributes:
        kind: ``clouds``, ``sequences`` or ``gallery``.
        content: JSON of that kind; made by the functions of this module.
        note: a sentence on how to read it and how what is shown was chosen.
        replaces: captions of pictures in the overview that show the same, and that the page leaves out.
    """

    kind: str
    title: str
    content: Mapping[str, Any]
    note: str = ""
    replaces: Sequence[str] = field(default_factory=tuple)


@dataclass(frozen=True)
class Trace:
    """A role over time: ``height`` in [0, 1] at each frame, marks of text at some.

    Attributes:
        frame: seconds from one frame to the next.
    """

    frame: float
    height: Sequence[float]
    marks: Sequence[tuple[int, str]]


def clouds(
    title: str, xyz: Float[np.ndarray, "n 3"], views: Mapping[str, Int[np.ndarray, " n"]], *, classes: Sequence[str],
    colours: Sequence[tuple[int, int, int]], reference: str | None = None, note: str = "",
    replaces: Sequence[str] = (), most: int = MOST_POINTS,
) -> Panel:  # fmt: skip
    """The same points as several views label them, to rotate side by side.

    Points that every view labels are kept before others where there are more than `most`; what is kept is drawn by a
    fixed seed. Errors are counted on all points that every view labels, so that they compare.

    Args:
        xyz: metres, x forward, y left, z up.
        views: a class of each point, below 0 where a view says nothing.
        reference: the view that the others are held against.
    """
    labels = {name: np.asarray(view) for name, view in views.items()}
    common = np.asarray(np.stack([view >= 0 for view in labels.values()]).all(axis=0))
    kept = _thinned(common, most)
    scale = float(np.abs(xyz).max(initial=1e-6)) / 32767
    shown = []
    for name, view in labels.items():
        packed = np.where(view >= 0, view, UNSEEN).astype(np.uint8)
        counts = _errors(view, labels[reference], common) if reference is not None and name != reference else None
        shown.append({"name": name, "labels": _base64(packed[kept].tobytes()), "errors": counts})
    coordinates = np.round(xyz[kept] / scale).astype("<i2")
    return Panel("clouds", title, {
        "points": len(kept), "of": len(xyz), "scale": scale, "xyz": _base64(coordinates.tobytes()), "views": shown,
        "reference": reference, "classes": list(classes), "colours": [list(colour) for colour in colours],
    }, note, tuple(replaces))  # fmt: skip


def sequences(title: str, items: Sequence[Mapping[str, Any]], *, note: str = "") -> Panel:
    """Texts beside their reference; each item is a `sequence`."""
    return Panel("sequences", title, {"items": list(items)}, note)


def sequence(
    key: str, reference: str, said: Mapping[str, str], *, about: str = "", seconds: float | None = None,
    sound: bytes | None = None, heat: UInt8[np.ndarray, "h w"] | None = None, traces: Mapping[str, Trace] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """One item of `sequences`.

    Args:
        said: the text of each role, words separated by spaces.
        sound: a WAV file, see `wav`.
        heat: an image over time, lowest row last, that stands above the traces; `seconds` long as they are.
    """
    return {
        "key": key, "reference": reference, "said": dict(said), "about": about, "seconds": seconds,
        "sound": None if sound is None else "data:audio/wav;base64," + _base64(sound),
        "heat": None if heat is None else picture(png(HEAT[heat])),
        "traces": {role: asdict(trace) for role, trace in (traces or {}).items()},
    }  # fmt: skip


def gallery(
    title: str, columns: Sequence[str], rows: Sequence[tuple[str, Mapping[str, tuple[bytes, str]]]], *, note: str = "",
    replaces: Sequence[str] = (),
) -> Panel:  # fmt: skip
    """Small pictures: rows by name, in each a PNG and a caption for those of `columns` that there are."""
    content = [
        {"name": name, "cells": {column: [picture(data), caption] for column, (data, caption) in cells.items()}}
        for name, cells in rows
    ]
    return Panel("gallery", title, {"columns": list(columns), "rows": content}, note, tuple(replaces))


def bars(probabilities: Float[np.ndarray, " k"], label: int) -> UInt8[np.ndarray, "h w 3"]:
    """A bar for each of the first classes, as high as its probability: green is the label's, red another answer."""
    shown, answer = probabilities[:BARS], int(probabilities.argmax())
    sheet = np.full((HIGH, BAR * len(shown), 3), PAPER, dtype=np.uint8)
    for i, p in enumerate(shown):
        colour = RIGHT if i == label else WRONG if i == answer else REST
        sheet[HIGH - max(1, round(float(p) * HIGH)) :, i * BAR + 1 : (i + 1) * BAR] = colour
    return sheet


def write(folder: Path, panels: Sequence[Panel]) -> None:
    """Into the run folder, for the page and for whoever writes it again."""
    write_json(folder / FILE, {"schema": 1, "panels": [asdict(panel) for panel in panels]})


def read(folder: Path) -> list[Panel]:
    """Of a run folder; none where the run wrote none.

    Raises:
        UserError: they are not what a page can show.
    """
    path = inside(folder, FILE)
    if path is None:
        return []
    try:
        return [Panel(**panel) for panel in checked(read_json(path))]
    except ValueError as error:
        raise UserError(f"{folder / FILE}: {error}: report --show writes it anew") from None


def wav(samples: Float[np.ndarray, " n"], rate: int) -> bytes:
    """A mono WAV file of 16 bits; `samples` in [-1, 1], clipped."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.round(np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    return buffer.getvalue()


def png(pixels: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """A PNG file, without a library of images: not every modality has one."""
    height, width, _ = pixels.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, width * 3)], axis=1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in parts)


def picture(data: bytes) -> str:
    """A PNG file as the address of an image."""
    return "data:image/png;base64," + _base64(data)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _heat() -> UInt8[np.ndarray, "256 3"]:
    """Night blue over violet and orange to pale yellow: brighter is more, on light and on dark paper."""
    stops = np.array([(14, 13, 36), (62, 26, 102), (142, 42, 112), (217, 84, 74), (250, 160, 64), (252, 244, 176)])
    at = np.linspace(0, len(stops) - 1, 256)
    return np.stack([np.interp(at, range(len(stops)), channel) for channel in stops.T], axis=1).astype(np.uint8)


def _thinned(common: np.ndarray, most: int) -> np.ndarray:
    """Indexes kept, in order."""
    rng = np.random.default_rng(0)
    order = np.concatenate([rng.permutation(np.flatnonzero(common)), rng.permutation(np.flatnonzero(~common))])
    return np.sort(order[:most])


def _errors(view: np.ndarray, reference: np.ndarray, common: np.ndarray) -> list[int]:
    """Points that differ, of those that are compared."""
    return [int((view != reference)[common].sum()), int(common.sum())]


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


HEAT = _heat()

__all__ = [
    "BARS",
    "FILE",
    "HIGH",
    "Panel",
    "Trace",
    "bars",
    "clouds",
    "gallery",
    "picture",
    "png",
    "read",
    "sequence",
    "sequences",
    "wav",
    "write",
]
