"""What is looked at of a recording before a run."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from xmodal_kd.adapter.listed import Listed
from xmodal_kd.adapter.packed.member import Member

from .audio import look
from .manifests import Utterance


def listed_file(utterance: Utterance) -> Listed:
    """The file of an utterance, or the one that it lies within."""
    place = utterance.path
    if isinstance(place, Member):
        return Listed(utterance.key, place.file, partial(_within, place), part=place.name)
    return Listed(utterance.key, place, look)


def _within(member: Member, file: Path) -> None:
    look(member)


__all__ = ["listed_file"]
