"""What is looked at of a recording, or of a segment of one, before a run."""

from __future__ import annotations

from functools import lru_cache, partial
from pathlib import Path

from xmodal_kd.adapter.listed import Listed
from xmodal_kd.adapter.packed.member import Member

from .audio import check_within, duration, look
from .manifests import Utterance


def listed_file(utterance: Utterance) -> Listed:
    """The file of an utterance, or the one that it lies within; a segment is looked at by itself."""
    place = utterance.path
    if isinstance(place, Member):
        return Listed(utterance.key, place.file, partial(_within, place), part=place.name)
    if utterance.offset is not None:
        seconds = utterance.duration
        part = f"{utterance.offset:.3f}+{'' if seconds is None else f'{seconds:.3f}'}"
        return Listed(utterance.key, place, partial(_segment, utterance.offset, seconds), part)
    return Listed(utterance.key, place, look)


def _segment(offset: float, seconds: float | None, file: Path) -> None:
    stat = file.stat()
    check_within(file, _held(file, (stat.st_size, stat.st_mtime_ns)), offset, seconds)


@lru_cache(maxsize=256)
def _held(file: Path, version: tuple[int, int]) -> float:
    """Seconds of a file of many segments, which is sound: asked once."""
    look(file)
    return duration(file)


def _within(member: Member, file: Path) -> None:
    look(member)


__all__ = ["listed_file"]
