"""Corpora in the layouts of Kaldi, Common Voice, Speech Commands and Fluent Speech Commands, split by split."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from xmodal_kd.runtime.bounded_files import read_text
from xmodal_kd.runtime.errors import UserError

from .manifests import LONGEST, MOST, Utterance

#: How long lines of a list may be: a sentence, and what its readers say of it.
csv.field_size_limit(1 << 20)
#: What parts the first word of Kaldi's lines from the rest.
BLANKS = re.compile(r"[ \t]+")
#: Speech Commands: recordings that are of no word; the lists of each split but training.
NOISE = "_background_noise_"
LISTS = {"dev": "validation_list.txt", "test": "testing_list.txt"}
#: Fluent Speech Commands: the table of each split, and the columns that together are an intent.
TABLES = {"train": "data/train_data.csv", "dev": "data/valid_data.csv", "test": "data/test_data.csv"}
SLOTS = ("action", "object", "location")


def read_kaldi(folder: Path, root: Path) -> list[Utterance]:
    """A data folder: ``wav.scp``, and where there are any ``text``, ``segments`` and ``utt2spk``; sorted by utterance.

    Paths are taken from `root`, else from the folder. An utterance without a line of ``text`` is untranscribed.

    Raises:
        UserError: it names the file and the line: a command in the place of a path, a segment of no recording.
    """
    files = {name: root / told if (root / told).is_file() else folder / told for name, told in _wavs(folder)}
    texts, speakers = dict(_table(folder / "text")), dict(_table(folder / "utt2spk"))
    found = []
    if (folder / "segments").is_file():
        for key, where, told in _rows(folder / "segments"):
            name, start, end = told.split() if len(told.split()) == 3 else ("", "", "")
            if name not in files:
                raise UserError(f"{where}: UTTERANCE RECORDING START END is expected, the recording one of wav.scp")
            offset = _seconds(start, where)
            length = _seconds(end, where) - offset
            if length <= 0:
                raise UserError(f"{where}: the segment ends before it begins")
            found.append(Utterance(key, files[name], texts.get(key), speakers.get(key, "unknown"), length, offset))
    else:
        found = [Utterance(key, path, texts.get(key), speakers.get(key, "unknown")) for key, path in files.items()]
    if texts and found and not any(one.text is not None for one in found):
        raise UserError(
            f"{folder / 'text'}: it has {next(iter(texts))!r} and the like, and no line for any of the {len(found)} "
            f"utterances, as {found[0].key!r}: name them alike"
        )
    return sorted(found, key=lambda one: one.key)


def kaldi_lists(folder: Path) -> list[Path]:
    """The files of a data folder that say what there is."""
    return [folder / name for name in ("wav.scp", "text", "segments", "utt2spk")]


def _wavs(folder: Path) -> Iterator[tuple[str, str]]:
    if not (folder / "wav.scp").is_file():
        raise UserError(f"{folder}: no wav.scp: a Kaldi data folder is expected")
    for key, where, told in _rows(folder / "wav.scp"):
        if told.endswith("|"):
            raise UserError(
                f"{where}: a command, which is not run here: write the audio to files (wav-copy, or sox) and name them"
            )
        yield key, told


def _table(file: Path) -> Iterator[tuple[str, str]]:
    if file.is_file():
        yield from ((key, told) for key, _, told in _rows(file))


def _rows(file: Path) -> Iterator[tuple[str, str, str]]:
    """First word, place and rest of each line, parted by blanks or tabs. `UserError` for a word that is there twice.

    Kaldi's own tools write blanks, those of others tabs.
    """
    first: dict[str, int] = {}
    for number, line in enumerate(_lines(file), 1):
        key, told = (*BLANKS.split(line.strip(), maxsplit=1), "")[:2]
        if key:
            if first.setdefault(key, number) != number:
                raise UserError(f"{file} line {number}: {key!r} is on line {first[key]} already: leave one of them out")
            yield key, f"{file} line {number}", told


def read_common_voice(folder: Path, split: str) -> list[Utterance]:
    """``{split}.tsv`` and ``clips/``, sorted by clip; the reader is ``client_id``.

    Raises:
        UserError: a column is missing.
    """
    file = folder / f"{split}.tsv"
    if not file.is_file():
        raise UserError(f"data.path: {file} is missing: a language of Common Voice has train.tsv, dev.tsv and test.tsv")
    rows = csv.DictReader(_lines(file), delimiter="\t", quoting=csv.QUOTE_NONE)
    if missing := sorted({"path", "sentence", "client_id"} - set(rows.fieldnames or ())):
        raise UserError(
            f"{file}: no column {missing[0]!r} (it has {', '.join(rows.fieldnames or ()) or 'none'}): Common Voice has "
            "client_id, path and sentence, parted by tabs; write other lists as train.jsonl"
        )
    found = {}
    for number, row in enumerate(rows, 2):
        if not row["path"] or row["sentence"] is None:
            raise UserError(f"{file} line {number}: a clip and its sentence are expected")
        name = row["path"] if Path(row["path"]).suffix else f"{row['path']}.mp3"
        found[name] = Utterance(name, folder / "clips" / name, row["sentence"], row["client_id"] or "unknown")
    return [found[name] for name in sorted(found)]


def read_speech_commands(folder: Path, split: str | None) -> list[Utterance]:
    """``{word}/{speaker}_nohash_{take}.wav`` and the lists of dev and test, sorted; text and intent are the folder's
    name.

    Args:
        split: None: all of them.
    Raises:
        UserError: there are none, or a list is missing or names a file that is not there.
    """
    names = sorted(p.relative_to(folder).as_posix() for p in folder.glob("*/*_nohash_*.wav") if p.parent.name != NOISE)
    if not names:
        raise UserError(f"{folder}: no recordings named {{word}}/{{speaker}}_nohash_{{take}}.wav")
    if split is not None:
        listed = {name: _listed(folder / file) for name, file in LISTS.items()}
        if gone := sorted(listed.get(split, set()) - set(names)):
            raise UserError(f"{folder / LISTS[split]}: {gone[0]} is not there")
        kept = listed.get(split) or set(names).difference(*listed.values())
        names = [name for name in names if name in kept]
    parted = [(name, name.partition("/")[0], name.rpartition("/")[2].partition("_")[0]) for name in names]
    return [Utterance(name, folder / name, word, speaker, intent=word) for name, word, speaker in parted]


def read_fluent_speech_commands(file: Path) -> list[Utterance]:
    """``data/{train,valid,test}_data.csv``, whose paths lie below the folder of ``data/``; sorted by path.

    The intent is ``action/object/location`` (Lugosch et al., 2019).

    Raises:
        UserError: the file or a column is missing, or a row names no recording.
    """
    if not file.is_file():
        raise UserError(f"data.path: {file} is missing: Fluent Speech Commands has {', '.join(TABLES.values())}")
    rows = csv.DictReader(_lines(file))
    needed = ("path", "speakerId", "transcription", *SLOTS)
    if missing := [name for name in needed if name not in (rows.fieldnames or ())]:
        raise UserError(
            f"{file}: no column {missing[0]!r} (it has {', '.join(rows.fieldnames or ()) or 'none'}): Fluent Speech "
            "Commands has path, speakerId, transcription, action, object and location; write other lists as train.jsonl"
        )
    found = {}
    for number, row in enumerate(rows, 2):
        slots = [row[name] for name in SLOTS]
        if not row["path"] or not all(slots):
            raise UserError(f"{file} line {number}: a path and the three parts of an intent are expected")
        path = file.parent.parent / row["path"]
        found[row["path"]] = Utterance(
            row["path"], path, row["transcription"], row["speakerId"] or "unknown", intent="/".join(slots)
        )
    return [found[name] for name in sorted(found)]


def _listed(file: Path) -> set[str]:
    if not file.is_file():
        raise UserError(f"{file}: missing: it says which recordings are kept from training")
    return {line.strip() for line in _lines(file) if line.strip()}


def _lines(file: Path) -> list[str]:
    """Not `str.splitlines`: sentences may hold other characters that Unicode calls line ends."""
    return read_text(file, MOST).removeprefix("\ufeff").replace("\r\n", "\n").split("\n")


def _seconds(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < LONGEST:
        raise UserError(f"{where}: {text!r} is no time in seconds")
    return value


__all__ = [
    "LISTS",
    "TABLES",
    "kaldi_lists",
    "read_common_voice",
    "read_fluent_speech_commands",
    "read_kaldi",
    "read_speech_commands",
]
