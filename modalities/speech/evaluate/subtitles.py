"""Timed words as subtitles: SubRip and WebVTT."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

#: A cue is no longer than this many characters and seconds, and ends where nothing is said for a while.
CHARACTERS, SECONDS, PAUSE = 84, 6.0, 0.8
Word = Mapping[str, Any]


def cues(words: Sequence[Word]) -> Iterator[tuple[float, float, str]]:
    """``(start, end, text)`` of words with ``word``, ``start`` and ``end``, in order."""
    held: list[Word] = []
    for word in words:
        text = " ".join(str(one["word"]) for one in (*held, word))
        if held and (
            len(text) > CHARACTERS
            or word["end"] - held[0]["start"] > SECONDS
            or word["start"] - held[-1]["end"] > PAUSE
        ):
            yield _cue(held)
            held = []
        held.append(word)
    if held:
        yield _cue(held)


def _apart(held: Sequence[Word], word: Word) -> bool:
    return bool(word["end"] - held[0]["start"] > SECONDS or word["start"] - held[-1]["end"] > PAUSE)


def _cue(held: Sequence[Word]) -> tuple[float, float, str]:
    return float(held[0]["start"]), float(held[-1]["end"]), " ".join(str(word["word"]) for word in held)


def srt(words: Sequence[Word]) -> str:
    """A SubRip file.

    >>> print(srt([{"word": "hello", "start": 0.5, "end": 1.25}]), end="")
    1
    00:00:00,500 --> 00:00:01,250
    hello
    """
    blocks = [
        f"{number}\n{_clock(start, ',')} --> {_clock(end, ',')}\n{text}\n"
        for number, (start, end, text) in enumerate(cues(words), 1)
    ]
    return "\n".join(blocks)


def vtt(words: Sequence[Word]) -> str:
    """A WebVTT file."""
    blocks = [f"{_clock(start, '.')} --> {_clock(end, '.')}\n{_escaped(text)}\n" for start, end, text in cues(words)]
    return "\n".join(["WEBVTT\n", *blocks])


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _clock(seconds: float, point: str) -> str:
    milliseconds = round(1000 * seconds)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}{point}{rest % 1000:03}"


__all__ = ["cues", "srt", "vtt"]
