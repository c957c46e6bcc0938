"""A sample that lies packed: its key, its parts, and what is said of it beside them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...runtime.bounded_files import parse_json
from ...runtime.errors import UserError
from .member import Member

#: Bytes of a text or of a JSON about one sample.
MOST = 1 << 20
JSON = ".json"


@dataclass
class Row:
    """One sample.

    Attributes:
        file: that it lies in.
        members: its parts by ending; of a row of a table also by column, where that holds bytes.
        values: what it says of itself that needs no reading.
    """

    key: str
    file: Path
    members: dict[str, Member]
    values: Mapping[str, Any] | None = None
    _said: Mapping[str, Any] | None = field(default=None, init=False, repr=False)

    def __str__(self) -> str:
        return f"{self.file}: {self.key}"

    def said(self) -> Mapping[str, Any]:
        """Its values, or else those of its JSON. Raises `UserError` where that is no object."""
        if self.values is not None:
            return self.values
        if self._said is None:
            content: Any = {}
            if (member := self.members.get(JSON)) is not None:
                content = parse_json(_read(member), f"{member}:")
            if not isinstance(content, dict):
                raise UserError(f"{self.file}: {self.key}{JSON}: a JSON object is expected")
            self._said = content
        return self._said

    def first(self, keys: Iterable[str]) -> Any:
        """What it says under the first of `keys` that it has; None: nothing."""
        said = self.said()
        return next((said[key] for key in keys if said.get(key) is not None), None)

    def text(self, ending: str) -> str | None:
        """The content of a member as UTF-8, without the end of its line. Raises `UserError` that names it."""
        if (member := self.members.get(ending)) is None:
            return None
        try:
            return _read(member).decode("utf-8").removeprefix("\ufeff").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise UserError(f"{member}: a text in UTF-8 is expected ({error.reason})") from error


def _read(member: Member) -> bytes:
    if member.size > MOST:
        raise UserError(f"{member}: it has {member.size:,} bytes, more than the {MOST:,} that a text may have")
    return member.read()


__all__ = ["JSON", "Row"]
