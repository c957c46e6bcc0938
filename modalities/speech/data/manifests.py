"""Lists of recordings in the layouts their communities use. Every reader sorts, so every machine sees one order."""

from __future__ import annotations

import json
import math
import os
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from xmodal_kd.adapter.packed.member import Member
from xmodal_kd.adapter.packed.shards import MEANT
from xmodal_kd.runtime.bounded_files import read_text
from xmodal_kd.runtime.errors import UserError

from . import audio
from .audio import Wave

#: Seconds by which the ends of two segments may overlap for being rounded.
ROUNDED = 0.02
#: Bytes of a manifest, and seconds that a recording may last.
MOST, LONGEST = 1 << 32, 1e7
#: Ends of names of JSON lines.
LINES = (".jsonl", ".json")
#: What a transcript is called in the files of others.
TEXTS = ("text", "transcript", "transcription", "sentence", "normalized_text")
#: What the class of an utterance is called there.
INTENTS = ("intent", "intent_class", "label")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True, slots=True)
class Utterance:
    """One recording, or a segment of one, and what is said in it.

    Attributes:
        text: None where nobody wrote it down.
        duration: in seconds, None where its list does not say.
        offset: seconds into the file at which a segment begins; None for a file as a whole.
        intent: the class of what is said, as ``data.task: intents`` learns it; None where nobody said it.
    """

    key: str
    path: Path | Member
    text: str | None
    speaker: str
    duration: float | None = None
    offset: float | None = None
    intent: str | None = None

    @property
    def file(self) -> str:
        """Its path however its list writes it: ``./a.wav`` and an absolute path are ``a.wav`` again."""
        if isinstance(self.path, Member):
            return f"{os.path.abspath(self.path.file)}: {self.path.name}"  # noqa: PTH100
        return os.path.abspath(self.path)  # noqa: PTH100 resolve() follows links

    @property
    def span(self) -> tuple[float, float]:
        """Seconds of the file that it takes, without what lists round."""
        start = self.offset or 0.0
        whole = self.offset is None or self.duration is None
        return start + ROUNDED, math.inf if whole else start + (self.duration or 0.0) - ROUNDED

    def seconds(self) -> float:
        """Its duration, from the file's header where its list does not say."""
        return audio.duration(self.path) - (self.offset or 0.0) if self.duration is None else self.duration

    def wave(self, sample_rate: int) -> Wave:
        """``(samples,)`` float32 at `sample_rate` Hz.

        Raises `UserError` that names the file if it cannot be read, or is not as long as its list says.
        """
        if self.offset is not None:
            wave, rate = audio.read(self.path, self.offset, self.duration)
            return audio.resample(wave, rate, sample_rate)
        wave, rate = audio.read(self.path)
        held = len(wave) / rate
        if self.duration is not None and abs(held - self.duration) > max(0.1, 0.02 * self.duration):
            raise UserError(f"{self.path}: it holds {held:.2f} s, its manifest says {self.duration:.2f} s")
        return audio.resample(wave, rate, sample_rate)


def read_manifest(file: Path) -> list[Utterance]:
    """JSON lines with ``audio_filepath`` (absolute, from ``~``, or relative to the manifest) and ``text``.

    ``speaker``, ``duration`` and ``intent`` (or ``label``) are optional; ``offset`` (seconds) makes a line a segment of
    its file. A line without ``text`` is untranscribed audio.

    Sorted by key, which is ``audio_filepath``, of a segment with ``@`` and its offset. Raises `UserError` with the
    line's number.
    """
    stat = file.stat() if file.is_file() else None
    return list(_read(file, stat and (stat.st_ino, stat.st_size, stat.st_mtime_ns)))


@lru_cache(maxsize=8)
def _read(file: Path, version: tuple[int, int, int] | None) -> tuple[Utterance, ...]:
    """A run asks for each list several times, of one split to see that another has none of its recordings."""
    found: list[Utterance] = []
    first: dict[str, int] = {}
    for number, line in enumerate(_lines(file), 1):
        if not line.strip():
            continue
        utterance = as_record(file, number, line)
        place = utterance.file if utterance.offset is None else f"{utterance.file}@{utterance.offset}"
        if first.setdefault(place, number) != number:
            raise UserError(f"{file} line {number}: {utterance.key!r} is on line {first[place]} already")
        found.append(utterance)
    return tuple(sorted(found, key=place_of))


def manifest_of(folder: Path, split: str) -> Path:
    """The manifest of a split, of `manifests_of`; ``train.jsonl`` and the like where there is none.

    Raises:
        UserError: there are several.
    """
    named = manifests_of(folder, split)
    if len(named) > 1:
        names = ", ".join(file.name for file in named)
        raise UserError(f"data.path: {folder} has {names} for the {split} split: join them into {split}.jsonl")
    return named[0] if named else folder / f"{split}.jsonl"


def manifests_of(folder: Path, split: str) -> list[Path]:
    """``train.jsonl``, or else what is named after a split, as ``val.jsonl`` is after dev and ``train_manifest.json``
    after train."""
    plain = folder / f"{split}.jsonl"
    if plain.is_file():
        return [plain]
    return [
        file for file in sorted(folder.glob("*.json*")) if file.suffix in LINES and splits_meant(file.stem) == {split}
    ]


def splits_meant(stem: str) -> set[str]:
    """The splits that a file's name tells."""
    return {MEANT[word] for word in re.split(r"[^a-z]+", stem.lower()) if word in MEANT}


def place_of(utterance: Utterance) -> tuple[str, float]:
    """Where it comes in its list."""
    name = utterance.key if utterance.offset is None else utterance.key.rpartition("@")[0]
    return name, utterance.offset or 0.0


#: Of each file the spans that utterances take, in order.
Taken = Mapping[str, Sequence[tuple[float, float]]]


def taken_by(utterances: Sequence[Utterance]) -> Taken:
    taken: dict[str, list[tuple[float, float]]] = {}
    for utterance in utterances:
        taken.setdefault(utterance.file, []).append(utterance.span)
    for spans in taken.values():
        spans.sort()
    return taken


def overlap(taken: Taken, others: Iterable[Utterance]) -> Utterance | None:
    """The first of `others` that holds audio which is taken."""
    return next((other for other in others if _meets(other.span, taken.get(other.file, []))), None)


def _meets(span: tuple[float, float], spans: Sequence[tuple[float, float]]) -> bool:
    """Whether a span meets one of `spans`, which are sorted and, being of one list, hardly overlap themselves."""
    at = bisect_left(spans, span)
    return any(start < span[1] and span[0] < end for start, end in spans[max(0, at - 1) : at + 1])


def as_record(file: Path, number: int, line: str) -> Utterance:
    """A line of a manifest. Raises `UserError` that names it."""
    where = f"{file} line {number}"
    if line.lstrip().startswith("["):
        raise UserError(
            f"{where}: a JSON object is expected, one a line, not a list: jq -c '.[]' {file.name} > LINES.jsonl"
        )
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({' '.join(str(error).split())[:100]})") from error
    if not isinstance(record, dict):
        raise UserError(f"{where}: a JSON object is expected, one a line")
    if "text" not in record and (other := next((name for name in TEXTS if record.get(name)), None)):
        raise UserError(f"{where}: has {other!r} and no 'text': name the transcript text")
    key = _string(record, "audio_filepath", where)
    text = None if record.get("text") is None else _string(record, "text", where)
    intent = next((str(value) for name in INTENTS if is_name(value := record.get(name))), None)
    speaker = "unknown" if record.get("speaker") is None else str(record["speaker"])
    path = file.parent / (Path(key).expanduser() if key.startswith("~") else key)
    offset = _seconds(record, "offset", where)
    key = key if offset is None else f"{key}@{offset:g}"
    return Utterance(key, path, text, speaker, _duration(record, where), offset, intent)


def is_name(value: object) -> bool:
    """Whether it may be what a class is called: lists of labels and the like are of something else."""
    return isinstance(value, str | int | float) and value != ""


def _string(record: dict[str, Any], name: str, where: str) -> str:
    if name not in record:
        raise UserError(f"{where}: lacks {name!r} (it has {', '.join(record) or 'nothing'})")
    if not isinstance(record[name], str):
        raise UserError(f"{where}: {name!r} must be text, got {record[name]!r}")
    return str(record[name])


def _duration(record: dict[str, Any], where: str) -> float | None:
    value = _seconds(record, "duration", where)
    if value == 0:
        raise UserError(f"{where}: 'duration' must be seconds, got {value!r}")
    return value


def _seconds(record: dict[str, Any], name: str, where: str) -> float | None:
    value = record.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < LONGEST:
        raise UserError(f"{where}: {name!r} must be seconds, got {value!r}")
    return float(value)


def read_fsdd(folder: Path) -> list[Utterance]:
    """``recordings/{digit}_{speaker}_{take}.wav`` (or the folder of recordings itself), in order of digit,
    speaker, take. Text and intent are the digit's name."""
    recordings = folder / "recordings" if (folder / "recordings").is_dir() else folder
    found = [
        (match, path) for path in recordings.glob("*.wav") if (match := re.fullmatch(r"(\d)_(.+)_(\d+)", path.stem))
    ]
    if not found:
        raise UserError(f"{recordings}: no recordings named {{digit}}_{{speaker}}_{{take}}.wav")
    found.sort(key=lambda item: (item[0][1], item[0][2], int(item[0][3]), item[0][3]))
    named = [(match, path, DIGITS[int(match[1])]) for match, path in found]
    return [Utterance(path.stem, path, digit, match[2], intent=digit) for match, path, digit in named]


def read_librispeech(folder: Path) -> list[Utterance]:
    """``.../{speaker}/{chapter}/*.trans.txt`` beside the FLAC files it names, sorted by utterance."""
    found = [utterance for file in librispeech_lists(folder) for utterance in _chapter(file)]
    if not found:
        raise UserError(f"{folder}: no LibriSpeech transcripts (*.trans.txt) below it")
    return sorted(found, key=lambda utterance: utterance.key)


def librispeech_lists(folder: Path) -> list[Path]:
    """Also where chapters, speakers or splits are links to folders elsewhere, as those of a subset are."""
    walked = os.walk(folder, followlinks=True)
    return sorted(Path(at, name) for at, _, names in walked for name in names if name.endswith(".trans.txt"))


def _chapter(file: Path) -> Iterator[Utterance]:
    for number, line in enumerate(_lines(file), 1):
        key, text = (*line.split(maxsplit=1), "", "")[:2]
        if not key:
            continue
        path = file.parent / f"{key}.flac"
        if not path.is_file():
            raise UserError(f"{file} line {number}: {path.name} is not beside it")
        yield Utterance(key, path, text.strip(), file.parent.parent.name)


def _lines(file: Path) -> list[str]:
    if not file.exists():
        raise UserError(f"{file}: no such manifest")
    # Not splitlines(): JSON may hold other characters that Unicode calls line ends.
    try:
        text = read_text(file, MOST)
    except UserError as error:
        raise UserError(f"{file}: not readable as UTF-8 text ({error})") from error
    return text.removeprefix("\ufeff").replace("\r\n", "\n").split("\n")
