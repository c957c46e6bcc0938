"""A file that lies within another."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ...runtime.errors import UserError

#: Bytes of one.
MOST = 1 << 31


@dataclass(frozen=True, slots=True)
class Member:
    """Bytes `start` to `start` + `size` of `file`, which are called `name` there."""

    file: Path
    name: str
    start: int
    size: int

    def __str__(self) -> str:
        return f"{self.file}: {self.name}"

    def read(self) -> bytes:
        """Raises `UserError` where the file does not hold that much, or cannot be read."""
        if self.size > MOST:
            raise UserError(f"{self}: it has {self.size:,} bytes, more than the {MOST:,} that a sample may have")
        try:
            opened = os.open(self.file, os.O_RDONLY | os.O_CLOEXEC)
            try:
                parts, left, at = [], self.size, self.start
                while left and (part := os.pread(opened, left, at)):
                    parts.append(part)
                    left, at = left - len(part), at + len(part)
            finally:
                os.close(opened)
        except OSError as error:
            raise UserError(f"{self}: cannot be read: {error.strerror or error}") from None
        if left:
            raise UserError(f"{self}: {self.file} ends before it does: it is cut, or was changed while it was in use")
        return parts[0] if len(parts) == 1 else b"".join(parts)


__all__ = ["Member"]
