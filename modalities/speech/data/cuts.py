"""Lhotse's cuts as JSON lines, plain or gzipped: recordings on disk, as ``CutSet.to_file`` lists them; no package is
needed.

Each supervision is an utterance, as ``trim_to_supervisions`` makes them; a cut without any is untranscribed audio.
What is not in a file as it will be heard (mixed, padded, perturbed when it is loaded, fetched) is refused by its
line.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from xmodal_kd.runtime.errors import UserError

from .manifests import LONGEST, ROUNDED, Utterance, splits_meant

#: What a split's list may be called.
NAMES = ("{}.jsonl.gz", "{}.jsonl", "cuts_{}.jsonl.gz", "cuts_{}.jsonl")
#: Bytes of a line: a cut with its supervisions and alignments.
LINE = 1 << 24


def cuts_file(folder: Path, split: str) -> Path:
    """A split's list, be it there or not: one of `NAMES`, or else one of cuts that is named after the split, as
    ``librispeech_cuts_train-clean-100.jsonl.gz``."""
    found = [folder / name.format(split) for name in NAMES if (folder / name.format(split)).is_file()]
    if not found:
        lists = sorted(file for end in ("jsonl", "jsonl.gz") for file in folder.glob(f"*cuts*.{end}"))
        found = [file for file in lists if splits_meant(file.name) == {split}]
    if len(found) > 1:
        raise UserError(f"data.path: {folder} has {found[0].name} and {found[1].name}: leave one of them")
    return found[0] if found else folder / NAMES[0].format(split)


def holds_cuts(file: Path) -> bool:
    """Whether a list is one of cuts, by its first line."""
    if not file.is_file():
        return False
    try:
        _, record = next(_records(file))
    except (StopIteration, UserError):
        return False
    return "supervisions" in record or "tracks" in record


def read_cuts(file: Path) -> list[Utterance]:
    """The supervisions of a list of cuts, sorted by key.

    Paths are absolute, from ``~``, relative to the list, or else to where the command is called, as Lhotse has them.

    Raises:
        UserError: it names the line and what is wrong with it.
    """
    found: dict[str, Utterance] = {}
    for number, record in _records(file):
        for utterance in _utterances(record, file, f"{file} line {number}"):
            if utterance.key in found:
                raise UserError(f"{file} line {number}: {utterance.key!r} was on a line before: give each its own id")
            found[utterance.key] = utterance
    return [found[key] for key in sorted(found)]


def _records(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    try:
        with gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb") as lines:
            number = 0
            while line := lines.readline(LINE):
                number += 1
                if line.strip():
                    yield number, _record(line, f"{file} line {number}")
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{file}: not a list of cuts that can be read ({error}): write it again") from error


def _record(line: bytes, where: str) -> Mapping[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({' '.join(str(error).split())[:100]})") from error
    if not isinstance(record, dict):
        raise UserError(f"{where}: a cut, as a JSON object, is expected")
    return record


def _utterances(cut: Mapping[str, Any], file: Path, where: str) -> Iterator[Utterance]:
    key, kind = str(cut.get("id", "")), cut.get("type", "MonoCut")
    if kind != "MonoCut":
        raise UserError(f"{where}: a {kind}, where a MonoCut is expected: write its audio to files (save_audios)")
    recording = cut.get("recording")
    if not isinstance(recording, dict):
        raise UserError(f"{where}: cut {key!r} has no recording: its features alone are not read here")
    if [one for one in recording.get("transforms") or [] if one.get("name") != "Resample"]:  # which is done here, too
        raise UserError(
            f"{where}: the recording of {key!r} is changed when it is loaded: write it to files (save_audios), or let "
            "data.augment change it"
        )
    path = _source(recording, cut.get("channel", 0), file, where)
    start, length = (_number(cut, name, where) for name in ("start", "duration"))
    whole = start == 0 and abs(length - float(recording.get("duration") or -1)) <= ROUNDED
    said = cut.get("supervisions") or []
    if not said:
        yield Utterance(key, path, None, "unknown", length, None if whole else start)
    for one in said:
        begins, lasts = (_number(one, name, where) for name in ("start", "duration"))
        if begins < -ROUNDED or begins + lasts > length + ROUNDED:
            raise UserError(
                f"{where}: supervision {one.get('id')!r} lies partly outside of its cut: cut by trim_to_supervisions"
            )
        if not isinstance(text := one.get("text"), str | None):
            raise UserError(f"{where}: 'text' must be text, got {text!r}")
        all_of_it = whole and len(said) == 1 and abs(lasts - length) <= ROUNDED
        yield Utterance(
            key if len(said) == 1 else str(one.get("id")), path, text, str(one.get("speaker") or "unknown"),
            lasts, None if all_of_it else max(0.0, start + begins),
        )  # fmt: skip


def _source(recording: Mapping[str, Any], channel: Any, file: Path, where: str) -> Path:
    """The file of a cut's channel."""
    found = [one for one in recording.get("sources") or [] if channel in one.get("channels", [])]
    if len(found) != 1 or found[0].get("type") != "file":
        kind = found[0].get("type") if found else None
        raise UserError(f"{where}: its recording is no file (but {kind}): write it to one (save_audios)")
    if len(found[0]["channels"]) > 1:
        raise UserError(f"{where}: its file has {len(found[0]['channels'])} channels: write channel {channel} to one")
    named = Path(str(found[0].get("source", ""))).expanduser()
    return file.parent / named if (file.parent / named).is_file() else named


def _number(record: Mapping[str, Any], name: str, where: str) -> float:
    value = record.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not -LONGEST < value < LONGEST:
        raise UserError(f"{where}: {name!r} must be seconds, got {value!r}")
    return float(value)


__all__ = ["cuts_file", "holds_cuts", "read_cuts"]
