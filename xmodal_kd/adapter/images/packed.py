"""Images that stay where they are packed: an index of places, labels and captions; pixels when they are wanted."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...runtime.errors import UserError
from ...runtime.mapped_columns import Columns, Keep
from ...runtime.mapped_words import Spool, Words, Written, hashed
from ..listed import Skipped
from ..packed.member import Member
from ..packed.packing import Packing, refuse_twice
from ..packed.row import Row
from ..packed.shards import natural
from .later import Later
from .read import CHANNELS, Expected, Images, decoded, say_left_out
from .stores import ARRAYS, EXTENSIONS, class_names

#: What a sample's JSON, or its row's columns, may call these.
LABELS, TEXTS = ("label", "cls", "class", "class_name"), ("text", "caption", "prompt")
NUMBER, TEXT = ".cls", ".txt"
ROW = np.dtype([
    ("label", "i8"), ("texted", "?"), ("name", "u8"), ("ending", "u4"), ("inside", "u4"), ("start", "u8"),
    ("size", "u8"),
])  # fmt: skip


@dataclass(frozen=True)
class Index:
    """The samples of a packing.

    Attributes:
        columns: those of `ROW`, ``key`` and ``text`` as words, ``endings`` and ``labels`` (what numbers stand for) as
            JSON.
    """

    packed: Packing
    columns: Columns

    def __len__(self) -> int:
        return len(self.columns["inside"])

    @property
    def keys(self) -> Words:
        return Words(self.columns, "key")

    def member(self, row: int) -> Member:
        ending = self._endings[int(self.columns["ending"][row])]
        name = self.keys[row] + (ending if ending.startswith(".") else "")
        file = self.packed.files[int(self.columns["inside"][row])]
        return Member(file, name, int(self.columns["start"][row]), int(self.columns["size"][row]))

    def maker(self, decode: Callable[[Member], npt.NDArray[Any]]) -> Callable[[int], npt.NDArray[Any]]:
        """What `decode` makes of the member of a row."""
        return partial(_made, self, decode)

    def labels(
        self, where: Path, classes: Sequence[str] | None
    ) -> tuple[npt.NDArray[np.int64], tuple[str, ...]] | None:
        """The class number of each sample and the classes' names; None where no sample has one.

        Args:
            classes: what numbers are called that have no names; names among them are numbered so.
        Raises:
            UserError: some have none, or the numbers are not 0 to k-1.
        """
        found, told = np.array(self.columns["label"]), self._json("labels")
        if not (found >= 0).any():
            return None
        if not (found >= 0).all():
            bare = self.member(int(np.argmin(found >= 0)))
            raise UserError(f"{bare}: no class: a {NUMBER} beside it, or {LABELS[0]!r} in its .json, says which")
        named, given = _column(self.packed), tuple(classes or ()) or None
        if all(isinstance(one, int) for one in told):
            numbers = np.array(told, np.int64)[found]
            return numbers, class_names(numbers, named or given, str(where))
        names = [str(one) for one in told]
        order = given if given is not None and set(names) <= set(given) else tuple(sorted(set(names), key=natural))
        return np.array([order.index(name) for name in names], np.int64)[found], order

    @cached_property
    def _endings(self) -> list[str]:
        return self._json("endings")

    def _json(self, name: str) -> list[Any]:
        return list(json.loads(self.columns[name].tobytes()))


def _made(index: Index, decode: Callable[[Member], npt.NDArray[Any]], row: int) -> npt.NDArray[Any]:
    return decode(index.member(row))


def index_of(packed: Packing, *, arrays: bool = False) -> Index:
    """The samples of a packing, found in the user's cache from the second time on.

    Args:
        arrays: a sample is an array (.npy) in the place of an image.
    Raises:
        UserError: a broken file; a sample without an image, or with several; one name for two; a label that is none.
    """
    how = f"{'arrays' if arrays else 'images'} 1"
    return Index(packed, packed.columns(how, partial(_build, packed, arrays)))


def _build(packed: Packing, arrays: bool, keep: Keep) -> None:
    numbers = {file: i for i, file in enumerate(packed.files)}
    labels, endings = dict[int | str, int](), dict[str, int]()
    rows, keys, texts = Spool(), Written(), Written()
    column = next(iter(packed.classes), None)
    for row in packed.rows():
        ending = _ending(row, arrays)
        member, label, text = row.members[ending], _label(row, column), row.text(TEXT)
        if text is None and (text := row.first(TEXTS)) is not None and not isinstance(text, str):
            raise UserError(f"{row}: its caption must be text, got {text!r:.80}")
        keys.append(row.key)
        texts.append(text or "")
        known = -1 if label is None else labels.setdefault(label, len(labels))
        place = (endings.setdefault(ending, len(endings)), numbers[row.file], member.start, member.size)
        rows.append(np.array((known, text is not None, hashed(row.key), *place), ROW).tobytes())
    table = rows.array(ROW)
    if not len(table):
        raise UserError(f"{packed.files[0]}: no samples, in this file and {len(packed.files) - 1} more")
    held: dict[str, Any] = {}
    keys.keep("key", held.__setitem__)
    refuse_twice(packed, Words(held, "key"), table["name"], table["inside"])
    for name in ROW.names or ():
        keep(name, np.ascontiguousarray(table[name]))
    keys.keep("key", keep)
    texts.keep("text", keep)
    for name, told in (("labels", list(labels)), ("endings", list(endings))):
        keep(name, np.frombuffer(json.dumps(told).encode(), np.uint8))


def _ending(row: Row, arrays: bool) -> str:
    wanted = {ARRAYS} if arrays else EXTENSIONS
    found = [name for name in row.members if name == "Image" or Path(f"_{name}").suffix in wanted]
    if len(found) == 1:
        return found[0]
    what = "array" if arrays else "image"
    if found:
        raise UserError(f"{row}: it has several {what}s ({', '.join(found)}): one to a sample is expected")
    held = ", ".join(row.members) or "nothing"
    advice = ", and arrays are read where data.latents is true" if not arrays and ARRAYS in row.members else ""
    raise UserError(f"{row}: no {what} in this sample (it holds {held}{advice})")


def _label(row: Row, column: str | None) -> int | str | None:
    """A class's number or name. Raises `UserError` for what is neither."""
    said: Any = row.text(NUMBER)
    if said is not None:
        said = int(said) if said.strip().lstrip("-").isdecimal() else said.strip()
    else:
        said = row.said().get(column) if column is not None else row.first(LABELS)
    if said is None or said == -1:
        return None
    if isinstance(said, bool) or not isinstance(said, int | str) or said == "" or (isinstance(said, int) and said < 0):
        raise UserError(f"{row}: its class must be a number from 0, or a name, got {said!r:.80}")
    return said


def _column(packed: Packing) -> tuple[str, ...] | None:
    """The names of the first column of classes."""
    first = next(iter(packed.classes.values()), None)
    return None if first is None else tuple(first)


def packed_images(
    index: Index, path: Path, expected: Expected, *, who: str | None, classes: tuple[str, ...] | None = None,
    skipped: Skipped, name_of: Callable[[str], str] = str,
) -> Images:  # fmt: skip
    """All samples of an index but for those that are left out, whose pixels are read when they are asked for.

    Args:
        who: needs labels, for messages; None where nobody does.
        classes: what classes are called where the packing only numbers them.
        name_of: how ``data.skip`` names a key.
    Raises:
        UserError: the first image is broken or not as `expected`, which all others are held to when they are read; and,
            where somebody needs them, labels that are wrong or missing.
    """
    found = packed_samples(index, path, partial(_pixels, expected), who, classes, skipped, name_of)
    assert isinstance(found.x, Later)
    first = index.member(int(found.x.rows[0]))
    mode = next(mode for mode, channels in CHANNELS.items() if channels == found.shape[0])
    why = expected.why if expected.size and expected.mode else f"as {first.name}"
    like = Expected((found.shape[1], found.shape[2]), mode, why)
    return replace(found, x=found.x.made_by(index.maker(partial(_pixels, like))))


def packed_samples(
    index: Index, path: Path, decode: Callable[[Member], npt.NDArray[Any]], who: str | None,
    classes: tuple[str, ...] | None, skipped: Skipped, name_of: Callable[[str], str],
) -> Images:  # fmt: skip
    """As `packed_images`, of what `decode` makes of a member, the first of which says shape and type."""
    try:
        labelling = index.labels(path, classes)
    except UserError as error:
        if who is not None:
            raise
        say_left_out(error)
        labelling = None
    if who is not None and labelling is None:
        raise UserError(f"{path}: {who} needs labels: no sample has a {NUMBER}, or {LABELS[0]!r} in its .json")
    rows: npt.NDArray[np.int64] = np.arange(len(index))
    if skipped.keys:
        keys = index.keys
        rows = np.array(skipped.keep(range(len(index)), lambda row: name_of(keys[row])), np.int64)
        if not len(rows):
            raise UserError(f"data.skip: it leaves out every sample of {path}")
    first = decode(index.member(int(rows[0])))
    x = Later(index.maker(decode), rows, first.shape, first.dtype, partial(_signature, index))
    names = Words(index.columns, "key", rows)
    texts = Words(index.columns, "text", rows) if index.columns["texted"][rows].any() else None
    labels, known = (None, None) if labelling is None else (labelling[0][rows], labelling[1])
    return Images(x, labels, known, names, skipped.found, texts=texts)


def _pixels(expected: Expected, member: Member) -> npt.NDArray[np.uint8]:
    pixels, _ = decoded(member.read(), str(member), expected)
    return pixels.transpose(2, 0, 1) if pixels.ndim == 3 else pixels[None]


def _signature(index: Index) -> bytes:
    """What changes with any file of the packing."""
    there = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in index.packed.files]
    return json.dumps(there).encode()


__all__ = ["Index", "index_of", "packed_images", "packed_samples"]
