"""A hash of all of a recipe that decides its result."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

#: Of a training: how samples are read ahead decides nothing.
FREE = ("workers", "ahead")
#: Keys that came later than runs which may still go on: at these values they change nothing of them.
YOUNGER: Mapping[str, Mapping[str, Any]] = {
    "train": {"compile": "none"},
    "cache": {"signals": None, "on_missing": "error", "match": "content"},
}


def fingerprint(content: dict[str, Any]) -> str:
    """Of a recipe as JSON, without where it is written, and by whom it is tracked; its sections are changed."""
    for train in (content["train"], *((one or {}).get("train") for one in teachers(content))):
        for key in FREE:
            (train or {}).pop(key, None)
        _without(train, YOUNGER["train"])
    _without(content.get("cache"), YOUNGER["cache"])
    return blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=8).hexdigest()


def teachers(content: Mapping[str, Any]) -> list[dict[str, Any] | None]:
    return [content["teacher"], *content["teachers"].values()]


def _without(section: dict[str, Any] | None, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if section is not None and section.get(key, value) == value:
            section.pop(key, None)
