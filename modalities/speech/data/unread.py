"""Why something is no recording that is read here, and what to do, by its first bytes and its header."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path
from typing import BinaryIO

from xmodal_kd.runtime.bounded_files import is_pointer

from .suffixes import CONVERT

#: Bytes of a file that tell what it is.
HEAD = 4096
#: Kinds of sound that libsndfile does not read: where in a file stands what, and what that is called.
KINDS = (
    (4, b"ftyp", "MPEG-4 audio (M4A, MP4)"), (0, b"\x1aE\xdf\xa3", "WebM or Matroska"), (0, b"#!AMR", "AMR"),
    (0, bytes.fromhex("3026b2758e66cf11"), "Windows Media"), (0, b"\xff\xf1", "AAC"), (0, b"\xff\xf9", "AAC"),
    (0, b"DSD ", "DSD"), (0, b"MAC ", "Monkey's Audio"), (0, b"wvpk", "WavPack"),
)  # fmt: skip
#: Kinds of files whose headers tell how much they hold, and libsndfile believes them.
TOLD = ("WAV", "WAVEX", "MP3")
#: Seconds of bytes behind a recording's own that are padding, or a tag.
PLAY = 0.1
#: What a chunk of a WAV is called.
NAME = re.compile(rb"[\w ]{4}", re.ASCII)


def advice(head: bytes) -> str:
    """What a file is that begins so, where that is known, and what to do."""
    if is_pointer(head):
        return "it is a pointer of Git LFS: git lfs pull brings the file"
    if head[:512].lstrip()[:1] == b"<":
        return "it is a web page: download the file again"
    if head[:7] == b"NIST_1A" and b"shorten" in head[:1024]:
        return "packed by shorten: unpack it (sph2pipe -p -f wav FILE FILE.wav)"
    kind = next((kind for at, mark, kind in KINDS if head[at : at + len(mark)] == mark), None)
    if kind is not None:
        return f"it is {kind}: {CONVERT}"
    return f"{CONVERT}; of bare samples say what they are (sox -t raw -r RATE -e signed -b 16 -c 1 FILE FILE.wav)"


def elsewhere(path: Path) -> str:
    """Why nothing lies at a path, where it is nearly right."""
    written = str(path)
    if "file:/" in written:
        return ": it is a URL: write the path alone"
    for form in ("NFC", "NFD"):
        if Path(unicodedata.normalize(form, written)).is_file():
            return ": one is there whose name has the same letters in another Unicode form: rename it, or list it so"
    if "\\" in written:
        return ": write its path with slashes, not backslashes"
    if path.name.rpartition(":")[2].isdecimal() and ".ark" in path.name:
        return ": it is a place in a Kaldi archive: write the audio to files (wav-copy) and name them"
    return ""


def unpromised(file: BinaryIO, kind: str) -> int:
    """Bytes of sound behind what a header tells of: of a recorder that was stopped, or of recordings that were joined.

    Args:
        kind: of the file, as libsndfile calls it, one of `TOLD`.
    """
    size = file.seek(0, 2)
    return (_behind_frames if kind == "MP3" else _behind_data)(file, size)


def _at(file: BinaryIO, place: int, count: int) -> bytes:
    file.seek(place)
    return file.read(count)


def _behind_data(file: BinaryIO, size: int) -> int:
    at, rate = 12, 0
    while len(chunk := _at(file, at, 24)) >= 8:
        length = int.from_bytes(chunk[4:8], "little")
        if chunk[:4] == b"fmt ":
            rate = int.from_bytes(chunk[16:20], "little")  # bytes a second
        at += 8 + length + length % 2
        if chunk[:4] == b"data":
            return _behind_chunks(file, at, size, round(PLAY * rate))
    return 0


def _behind_chunks(file: BinaryIO, at: int, size: int, play: int) -> int:
    """Bytes from `at` on that are no further chunks of a WAV, silence apart."""
    while len(chunk := _at(file, at, 8)) == 8 and chunk[:4] != b"RIFF" and NAME.fullmatch(chunk[:4]):
        length = int.from_bytes(chunk[4:8], "little")
        if at + 8 + length > size:
            break
        at += 8 + length + length % 2
    rest = size - at
    return rest if rest > max(play, 8) and any(_at(file, at, HEAD)) else 0


def _behind_frames(file: BinaryIO, size: int) -> int:
    """Of an MP3 whose first frame says how many bytes it has: those behind them, where another recording begins."""
    tag, start = _at(file, 0, 10), 0
    if tag[:3] == b"ID3":
        start = 10 + sum((byte & 0x7F) << (7 * (3 - i)) for i, byte in enumerate(tag[6:10]))
    frame = _at(file, start, 200)
    mark = max(frame.find(b"Xing"), frame.find(b"Info"))
    flags = int.from_bytes(frame[mark + 4 : mark + 8], "big") if mark >= 0 else 0
    place = mark + (12 if flags & 1 else 8)
    told = int.from_bytes(frame[place : place + 4], "big") if flags & 2 else 0
    behind = _at(file, start + told, 3)
    again = behind == b"ID3" or (behind[:1] == b"\xff" and behind[1:2] >= b"\xe0")
    return size - start - told if told and again else 0


__all__ = ["HEAD", "TOLD", "advice", "elsewhere", "unpromised"]
