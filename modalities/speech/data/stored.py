"""Utterances of any layout as columns in the user's cache: of packed samples, and of lists too long to hold."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from xmodal_kd.adapter.packed.member import Member
from xmodal_kd.adapter.packed.packing import Packing, refuse_twice
from xmodal_kd.adapter.packed.row import Row
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.mapped_columns import By, Columns, Keep, columns_of
from xmodal_kd.runtime.mapped_words import Spool, Words, Written, hashed

from .indexed import is_large
from .long import Long, Rows
from .manifests import INTENTS, LONGEST, TEXTS, Utterance, is_name
from .suffixes import SUFFIXES

#: What a sample's JSON, or its row's columns, may call these.
#: Lists whose content is looked at to see whether they changed; of more it is size and times.
FEW = 16
SPEAKERS, DURATIONS = ("speaker", "speaker_id", "spk_id", "client_id"), ("duration",)
ROW = np.dtype([
    ("seconds", "f8"), ("offset", "f8"), ("speaker", "u4"), ("texted", "?"), ("file", "u8"), ("name", "u8"),
    ("inside", "u4"), ("start", "u8"), ("size", "u8"),
])  # fmt: skip


class Stored(Long):
    """Those that `store` has written, in its order.

    Args:
        root: paths of files lie below it, unless they are absolute.
        files: that members lie in.
    """

    def __init__(self, root: Path, files: Sequence[Path], columns: Columns, rows: Rows | None = None) -> None:
        super().__init__(columns, rows)
        self.root, self.files = root, files
        self._keys, self._paths, self._said, self._meant = (
            Words(columns, name) for name in ("key", "path", "text", "intent")
        )

    @cached_property
    def sealed(self) -> bool:  # type: ignore[override]
        """Whether all lie within files by whose times the index is found."""
        return bool(len(self.columns["inside"]) and self.columns["inside"].min())

    def __reduce__(self) -> Any:
        return Stored, (self.root, self.files, self.columns, self.rows)

    def _made(self, row: int) -> Utterance:
        offset, duration = (_or_none(float(self.columns[name][row])) for name in ("offset", "seconds"))
        speaker = self._named[int(self.columns["speaker"][row])]
        place, text, intent = self._place(row), self._text(row), self._meant[row] or None
        return Utterance(self._keys[row], place, text, speaker, duration, offset, intent)

    def _place(self, row: int) -> Path | Member:
        inside, name = int(self.columns["inside"][row]), self._paths[row]
        if not inside:
            return self.root / name
        return Member(self.files[inside - 1], name, *(int(self.columns[part][row]) for part in ("start", "size")))

    def _part(self, rows: Rows) -> Stored:
        return Stored(self.root, self.files, self.columns, rows)

    def _text(self, row: int) -> str | None:
        return self._said[row] if self.columns["texted"][row] else None

    def find(self, key: str) -> list[int]:
        return [int(at) for at in np.flatnonzero(self.column("name") == hashed(key)) if self[int(at)].key == key]


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def store(found: Iterable[Utterance], root: Path, files: Sequence[Path], keep: Keep) -> None:
    """The columns of `Stored`, in the order of `found`; none of it is held."""
    numbers, speakers = {file: i + 1 for i, file in enumerate(files)}, dict[str, int]()
    rows, keys, paths, texts, intents = Spool(), Written(), Written(), Written(), Written()
    for one in found:
        keys.append(one.key)
        texts.append(one.text or "")
        intents.append(one.intent or "")
        seconds, offset = (np.nan if value is None else value for value in (one.duration, one.offset))
        place = (0, 0, 0)
        if isinstance(one.path, Member):
            paths.append(one.path.name)
            place = (numbers[one.path.file], one.path.start, one.path.size)
        else:
            paths.append(str(one.path.relative_to(root) if one.path.is_relative_to(root) else one.path))
        who = speakers.setdefault(one.speaker, len(speakers))
        row = (seconds, offset, who, one.text is not None, hashed(one.file), hashed(one.key), *place)
        rows.append(np.array(row, ROW).tobytes())
    table = rows.array(ROW)
    for name in ROW.names or ():
        keep(name, np.ascontiguousarray(table[name]))
    for written, name in ((keys, "key"), (paths, "path"), (texts, "text"), (intents, "intent")):
        written.keep(name, keep)
    keep("speakers", np.frombuffer(json.dumps(list(speakers)).encode(), np.uint8))


def long_or_held(
    lists: Sequence[Path], root: Path, how: str, read: Callable[[], Iterable[Utterance]], packed: Sequence[Path] = ()
) -> Sequence[Utterance]:
    """What `read` gives: held, or where its lists are as large as a manifest that has an index, by one, in its order.

    Args:
        lists: the files that say what there is.
        root: the folder that most paths lie in.
        how: it says which of what the lists say is read.
        packed: files that samples lie in, among the lists.
    Raises:
        UserError: as `read` does.
    """
    there = [file for file in lists if file.is_file()]
    if not is_large(there):
        return found if isinstance(found := read(), Sequence) else list(found)
    root = Path(os.path.abspath(root))  # noqa: PTH100 - resolve() follows links
    salt = json.dumps(["list 2", how, str(root), os.path.expanduser("~")])  # noqa: PTH111
    by: By = "times" if packed or len(there) > FEW else "content"
    columns = columns_of(there, salt, lambda keep: store(map(_absolute, read()), root, packed, keep), by=by)
    return Stored(root, packed, columns)


def _absolute(one: Utterance) -> Utterance:
    if isinstance(one.path, Member):
        return one
    return replace(one, path=Path(os.path.abspath(one.path)))  # noqa: PTH100


# ---------------------------------------------------------------- packed samples


def packed_utterances(packed: Packing) -> Stored:
    """The recordings of shards or of a table: audio, and a ``.txt`` or ``.json`` (columns, of a table) beside it.

    Of the JSON are read `TEXTS`, `SPEAKERS`, `DURATIONS` and `INTENTS`. What has no text is untranscribed.

    Raises:
        UserError: a broken file; a sample without audio, or with several; one name for two; what is no text.
    """

    def build(keep: Keep) -> None:
        held: dict[str, Any] = {}

        def both(name: str, column: Any) -> None:
            if name in ("key", "key_ends", "name", "inside"):
                held[name] = column
            keep(name, column)

        store((_utterance(row, packed.classes) for row in packed.rows()), Path(), packed.files, both)
        refuse_twice(packed, Words(held, "key"), held["name"], held["inside"] - 1)

    return Stored(Path(), packed.files, packed.columns("speech 2", build))


def _utterance(row: Row, classes: Mapping[str, Sequence[str]]) -> Utterance:
    text = row.text(".txt")
    if text is None and (text := row.first(TEXTS)) is not None and not isinstance(text, str):
        raise UserError(f"{row}: its text must be text, got {text!r:.80}")
    seconds = row.first(DURATIONS)
    if seconds is not None and (
        isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < LONGEST
    ):
        raise UserError(f"{row}: 'duration' must be seconds, got {seconds!r:.80}")
    who = row.first(SPEAKERS)
    speaker = "unknown" if who is None else str(who)
    seconds = None if seconds is None else float(seconds)
    return Utterance(row.key, _audio(row), text, speaker, seconds, intent=_intent(row, classes))


def _intent(row: Row, classes: Mapping[str, Sequence[str]]) -> str | None:
    """Its class by name; a number of a column that names its classes by that, and none by -1, as `datasets` has it."""
    said = row.said()
    name = next((name for name in INTENTS if is_name(said.get(name))), None)
    if name is None:
        return None
    value, names = said[name], classes.get(name, ())
    if not names or not isinstance(value, int):
        return str(value)
    return names[value] if 0 <= value < len(names) else None


def _audio(row: Row) -> Member:
    heard = [name for name in row.members if name == "Audio" or Path(f"_{name}").suffix in SUFFIXES]
    if len(heard) == 1:
        return row.members[heard[0]]
    if heard:
        raise UserError(f"{row}: it has several recordings ({', '.join(heard)}): one to a sample is expected")
    held = ", ".join(row.members) or "nothing"
    raise UserError(
        f"{row}: no recording in this sample (it holds {held}): audio ends in {', '.join(SUFFIXES[:3])}, ..."
    )


__all__ = ["Stored", "packed_utterances", "store"]
