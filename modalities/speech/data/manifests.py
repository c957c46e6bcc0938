"""Lists of recordings in the layouts their communities use. Every reader sorts, so every machine sees one order."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xmodal_kd.runtime.bounded_files import read_text
from xmodal_kd.runtime.errors import UserError

from . import audio
from .audio import Wave

#: Bytes of a manifest, and seconds that a recording may last.
MOST, LONGEST = 1 << 32, 1e7
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class Utterance:
    """One recording and what is said in it. `duration` is in seconds, None where its list does not say."""

    key: str
    path: Path
    text: str
    speaker: str
    duration: float | None = None

    @property
    def file(self) -> str:
        """Its path however its list writes it: ``./a.wav`` and an absolute path are ``a.wav`` again."""
        return os.path.normpath(self.path.absolute())

    def seconds(self) -> float:
        """Its duration, from the file's header where its list does not say."""
        return audio.duration(self.path) if self.duration is None else self.duration

    def wave(self, sample_rate: int) -> Wave:
        """``(samples,)`` float32 at `sample_rate` Hz.

        Raises `UserError` that names the file if it cannot be read, or is not as long as its list says.
        """
        wave, rate = audio.read(self.path)
        held = len(wave) / rate
        if self.duration is not None and abs(held - self.duration) > max(0.1, 0.02 * self.duration):
            raise UserError(f"{self.path}: it holds {held:.2f} s, its manifest says {self.duration:.2f} s")
        return audio.resample(wave, rate, sample_rate)


def read_manifest(file: Path) -> list[Utterance]:
    """JSON lines with ``audio_filepath`` (relative to the manifest) and ``text``; ``speaker``, ``duration`` optional.

    Sorted by key, which is ``audio_filepath``. Raises `UserError` with the line's number.
    """
    records = [_record(file, number, line) for number, line in enumerate(_lines(file), 1) if line.strip()]
    first: dict[str, int] = {}
    for number, utterance in records:
        if first.setdefault(utterance.file, number) != number:
            raise UserError(f"{file} line {number}: {utterance.key!r} is on line {first[utterance.file]} already")
    return sorted((utterance for _, utterance in records), key=lambda utterance: utterance.key)


def _record(file: Path, number: int, line: str) -> tuple[int, Utterance]:
    where = f"{file} line {number}"
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({' '.join(str(error).split())[:100]})") from error
    if not isinstance(record, dict):
        raise UserError(f"{where}: a JSON object is expected")
    key, text = _string(record, "audio_filepath", where), _string(record, "text", where)
    speaker = str(record.get("speaker", "unknown"))
    return number, Utterance(key, file.parent / key, text, speaker, _duration(record, where))


def _string(record: dict[str, Any], name: str, where: str) -> str:
    if name not in record:
        raise UserError(f"{where}: lacks {name!r}")
    if not isinstance(record[name], str):
        raise UserError(f"{where}: {name!r} must be text, got {record[name]!r}")
    return str(record[name])


def _duration(record: dict[str, Any], where: str) -> float | None:
    value = record.get("duration")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < LONGEST:
        raise UserError(f"{where}: 'duration' must be seconds, got {value!r}")
    return float(value)


def read_fsdd(folder: Path) -> list[Utterance]:
    """``recordings/{digit}_{speaker}_{take}.wav`` (or the folder of recordings itself), in order of digit,
    speaker, take. The text is the digit's name."""
    recordings = folder / "recordings" if (folder / "recordings").is_dir() else folder
    found = [
        (match, path) for path in recordings.glob("*.wav") if (match := re.fullmatch(r"(\d)_(.+)_(\d+)", path.stem))
    ]
    if not found:
        raise UserError(f"{recordings}: no recordings named {{digit}}_{{speaker}}_{{take}}.wav")
    found.sort(key=lambda item: (item[0][1], item[0][2], int(item[0][3]), item[0][3]))
    return [Utterance(path.stem, path, DIGITS[int(match[1])], match[2]) for match, path in found]


def read_librispeech(folder: Path) -> list[Utterance]:
    """``.../{speaker}/{chapter}/*.trans.txt`` beside the FLAC files it names, sorted by utterance."""
    found = [utterance for file in sorted(folder.rglob("*.trans.txt")) for utterance in _chapter(file)]
    if not found:
        raise UserError(f"{folder}: no LibriSpeech transcripts (*.trans.txt) below it")
    return sorted(found, key=lambda utterance: utterance.key)


def _chapter(file: Path) -> Iterator[Utterance]:
    for number, line in enumerate(_lines(file), 1):
        key, _, text = line.strip().partition(" ")
        if not key:
            continue
        path = file.parent / f"{key}.flac"
        if not path.is_file():
            raise UserError(f"{file} line {number}: {path.name} is not beside it")
        yield Utterance(key, path, text, file.parent.parent.name)


def _lines(file: Path) -> list[str]:
    if not file.exists():
        raise UserError(f"{file}: no such manifest")
    # Not splitlines(): JSON may hold other characters that Unicode calls line ends.
    try:
        text = read_text(file, MOST)
    except UserError as error:
        raise UserError(f"{file}: not readable as UTF-8 text ({error})") from error
    return text.removeprefix("\ufeff").replace("\r\n", "\n").split("\n")
