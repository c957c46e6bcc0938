"""What a folder of recordings holds: its layout, its splits, its sample rate, its texts."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from xmodal_kd.adapter.packed.packing import Kind, kind_at, packing, packings
from xmodal_kd.adapter.packed.shards import by_split, shards
from xmodal_kd.adapter.sketch import Noted
from xmodal_kd.runtime.errors import UserError

from .audio import Place, rate_of
from .corpora import SPLITS, SourceName, SpeechData, of_all_splits, utterances
from .cuts import cuts_file, holds_cuts
from .layouts import LISTS, TABLES
from .manifests import Utterance, librispeech_lists, manifest_of, manifests_of, read_fsdd, read_manifest
from .stored import packed_utterances
from .suffixes import CONVERT, UNREAD, is_sound

#: Recordings whose headers are looked at, and files of a folder that is of no known layout.
LOOKED_AT, SEARCHED = 50, 10_000
#: Folders below one of no known layout that are tried in its place.
SUBFOLDERS = 200
#: Lists in which transcripts may stand that are not read.
LISTED = (".csv", ".tsv", ".json", ".jsonl", ".txt")
#: Lists that Lhotse writes beside cuts, or in other forms.
OF_LHOTSE = re.compile(r"(cuts|recordings|supervisions).*\.(json|jsonl|jsonl\.gz|yaml)$")
#: Of ten speakers, how many are for dev, and how many for test.
SHARE = 10
#: Vocabularies of words may hold so many, each so often.
FEW_WORDS, OFTEN = 60, 5
HELP = "docs/own_data.md#speech-recordings-and-their-words"

#: Layouts that are known by a file of each split.
SPLIT_FILES: dict[SourceName, tuple[str, ...]] = {
    "kaldi": tuple(f"{split}/wav.scp" for split in SPLITS),
    "common_voice": tuple(f"{split}.tsv" for split in SPLITS),
    "speech_commands": tuple(LISTS.values()),
    "fluent_speech_commands": tuple(TABLES.values()),
}


@dataclass(frozen=True)
class Recordings:
    """A data set that can be trained on.

    Attributes:
        section: keys of the data section that say where it is and how it is split.
        parts: the utterances by split.
        rate: Hz, of most recordings.
        rates: all that were met.
        intents: the classes of the training utterances, where these are what is learnt.
    """

    section: dict[str, Noted]
    parts: dict[str, Sequence[Utterance]]
    rate: int
    rates: tuple[int, ...]
    intents: tuple[str, ...] = ()

    def texts(self, split: str) -> list[str]:
        return [one.text for one in self.parts[split] if one.text is not None]

    @property
    def few_words(self) -> bool:
        """Whether the texts are of a small closed vocabulary, in which dev and test lie."""
        train = Counter(word for text in self.texts("train") for word in text.lower().split())
        others = {word for split in SPLITS[1:] for text in self.texts(split) for word in text.lower().split()}
        return 2 <= len(train) <= FEW_WORDS and min(train.values()) >= OFTEN and others <= set(train)


def recordings(path: Path, intents: bool | None = None) -> Recordings:
    """What `path` holds.

    Args:
        intents: whether classes of utterances are to be learnt, not words; None: where all utterances have one, but for
            single words that are composed to connected ones (fsdd).

    Raises:
        UserError: it is not there, holds no recordings, no texts or intents, or cannot be split; it says what to do.
    """
    section = dict(_layout(path))
    told = {key: noted.value for key, noted in section.items()}
    if intents is not False:
        parts = {split: utterances(SpeechData(**told, task="intents"), split) for split in SPLITS}
        without = next((one.key for part in parts.values() for one in part if one.intent is None), None)
        if intents and without is not None:
            raise UserError(f"--data {path}: {without!r} has no intent, which a classifier names: give each line one")
        intents = without is None and (bool(intents) or told["sources"] != "fsdd")
    if not intents:
        parts = {split: utterances(SpeechData(**told), split) for split in SPLITS}
    rates = _rates(one.path for one in islice(parts["train"], LOOKED_AT))
    names = tuple(sorted({one.intent for one in parts["train"] if one.intent is not None})) if intents else ()
    return Recordings(section, parts, rates.most_common(1)[0][0], tuple(sorted(rates)), names)


def _rates(files: Iterable[Place]) -> Counter[int]:
    """Of the headers that can be read, some of which must: `check` names those that cannot."""
    rates, unread = Counter[int](), None
    for file in files:
        try:
            rates[rate_of(file)] += 1
        except UserError as error:
            unread = unread or error
    if unread is not None and not rates:
        raise unread
    return rates


def _layout(path: Path) -> Iterator[tuple[str, Noted]]:
    """Source, path and, where the layout has no splits of its own, speakers of each."""
    place = path.expanduser()
    if not place.exists() and kind_at(place) is None:
        raise UserError(f"--data {path}: no such folder: give the one that holds the recordings ({HELP})")
    if (kind := kind_at(place)) is not None:
        yield from _packed(kind, path)
        return
    if not place.is_dir() and place.suffix != ".jsonl":
        raise UserError(f"--data {path} is a file: give the folder of recordings, or a manifest (.jsonl): {HELP}")
    manifests = sorted(place.glob("*.jsonl")) if place.is_dir() else [place]
    speakers: Sequence[Utterance] = ()
    if known := _complete(place):
        name, why = known
    elif manifests:
        name, speakers = "manifest", [one for file in manifests for one in read_manifest(file)]
        named = ", ".join(file.name for file in manifests)
        why = f"{named}: not all of train, dev and test, so they are split by speaker"
    elif any(place.glob("[0-9]_*_*.wav")) or any(place.glob("recordings/[0-9]_*_*.wav")):
        name, speakers = "fsdd", read_fsdd(place)
        why = "recordings named {digit}_{speaker}_{take}.wav were found"
    elif below := [one.relative_to(place).as_posix() for one in _subfolders(place) if _complete(one)]:
        which = "give that" if len(below) == 1 else "give one of them"
        raise UserError(f"--data {path}: the splits lie below it, in {', '.join(below)}: {which} ({HELP})")
    elif partly := _partly(place):
        name, speakers = partly, of_all_splits(partly, place)
        why = f"{name.replace('_', ' ')}, without all of train, dev and test, so they are split by speaker"
    else:
        raise UserError(_unknown(path, place))
    yield "sources", Noted(name, why)
    yield "path", Noted(str(path), "relative to where the command is called")
    if speakers:
        yield from _speakers(path, [one.speaker for one in speakers])


def _complete(place: Path) -> tuple[SourceName, str] | None:
    """The layout of a folder that brings its splits, and what tells it."""
    if all(holds_cuts(cuts_file(place, split)) for split in SPLITS):
        named = ", ".join(cuts_file(place, split).name for split in SPLITS)
        return "lhotse", f"{named} hold cuts, which are the splits"
    if all(manifests_of(place, split) for split in SPLITS):
        train, dev, test = (manifest_of(place, split).name for split in SPLITS)
        return "manifest", f"{train}, {dev} and {test} were found, which are the splits"
    for name, files in SPLIT_FILES.items():
        if all((place / file).is_file() for file in files):
            return name, f"{', '.join(files)} were found, which make the splits"
    if all(any(map(librispeech_lists, place.glob(f"{split}*/"))) for split in SPLITS):
        return "librispeech", "folders train*, dev* and test* were found, which are the splits"
    return None


def _subfolders(place: Path) -> Iterator[Path]:
    return islice(chain(sorted(place.glob("*/")), place.glob("*/*/")), SUBFOLDERS)


def _partly(place: Path) -> SourceName | None:
    """The layout of a folder that lacks a split."""
    if any((place / split / "wav.scp").is_file() for split in SPLITS):
        return "kaldi"
    if (place / "clips").is_dir() and any((place / f"{split}.tsv").is_file() for split in SPLITS):
        return "common_voice"
    if any(holds_cuts(cuts_file(place, split)) for split in SPLITS):
        return "lhotse"
    if any(place.glob("*/*_nohash_*.wav")):
        return "speech_commands"
    return "librispeech" if librispeech_lists(place) else None


def _packed(kind: Kind, path: Path) -> Iterator[tuple[str, Noted]]:
    """Shards or a table, by the splits that their names tell; else, of shards, by speaker."""
    if kind == "webdataset" and (shar := next(path.expanduser().glob("**/cuts.*.jsonl*"), None)):
        raise UserError(
            f"--data {path}: {shar.name} is of Lhotse Shar, which is not read: write its audio to files (save_audios) "
            f"and cuts_train.jsonl.gz, cuts_dev.jsonl.gz and cuts_test.jsonl.gz beside them ({HELP})"
        )
    what = "shards of tars" if kind == "webdataset" else "a DatasetDict that datasets has saved"
    parts = packings(kind, path) if kind == "datasets" or by_split(shards(path, "--data")) else {}
    if set(SPLITS) <= set(parts):
        yield "sources", Noted(kind, f"{what}, whose names tell the splits")
        yield "path", Noted(str(path), "relative to where the command is called")
    elif kind == "datasets":
        raise UserError(f"--data {path}: {what}, with the splits {', '.join(parts)}: train, dev and test are needed")
    else:
        yield "sources", Noted(kind, f"{what}, not of all of train, dev and test, so they are split by speaker")
        yield "path", Noted(str(path), "relative to where the command is called")
        yield from _speakers(path, [one.speaker for one in packed_utterances(packing(kind, path, "--data"))])


def _speakers(path: Path, heard: Sequence[str]) -> Iterator[tuple[str, Noted]]:
    """A split for each part of the speakers, those with the fewest recordings in dev and test."""
    count = Counter(heard)
    if len(count) < len(SPLITS):
        raise UserError(
            f"--data {path}: recordings of {len(count)} speaker(s) and no splits: write train.jsonl, dev.jsonl and "
            f"test.jsonl, no sentence in two of them ({HELP})"
        )
    order = [name for name, _ in count.most_common()]
    held = max(1, len(order) // SHARE)
    parts = {"test": order[-held:], "dev": order[-2 * held : -held], "train": order[: -2 * held]}
    for split in SPLITS:
        told = f"{len(parts[split])} of {len(order)} speakers, {sum(count[name] for name in parts[split]):,} recordings"
        why = told if split == "train" else f"{told}: voices that training never hears"
        yield f"{split}_speakers", Noted(sorted(parts[split]), why)


def _unknown(path: Path, place: Path) -> str:
    """What is missing of a folder of no known layout."""
    walked = (Path(at, name) for at, _, names in os.walk(place, followlinks=True) for name in names)
    files = [file for file in islice(walked, SEARCHED) if not file.name.startswith(".")]
    if kaldi := next((file.parent for file in files if file.name == "wav.scp"), None):
        return (
            f"--data {path}: Kaldi's lists lie in {kaldi.relative_to(place)}: give a folder of train, dev and "
            f"test, each with its wav.scp and text ({HELP})"
        )
    if lhotse := sorted(file for file in files if OF_LHOTSE.search(file.name)):
        return (
            f"--data {path}: {lhotse[0].relative_to(place)} is of Lhotse: write cuts_train.jsonl.gz, cuts_dev.jsonl.gz "
            f"and cuts_test.jsonl.gz, by CutSet.from_manifests(recordings=..., supervisions=...).to_file(FILE) ({HELP})"
        )
    if tables := sorted(file for file in files if file.suffix.lower() in (".parquet", ".arrow")):
        return (
            f"--data {path}: {tables[0].relative_to(place)} is of datasets: load_dataset({str(path)!r})."
            f"save_to_disk(FOLDER) and give that folder ({HELP})"
        )
    audio = [file for file in files if is_sound(file)]
    lists = sorted(file for file in files if file.suffix.lower() in LISTED)
    held = f"; {lists[0].relative_to(place)} is not read" if lists else ""
    if audio:
        return (
            f"--data {path}: {len(audio)} recordings, as {audio[0].relative_to(place)}, and no transcripts that are "
            f"known here{held}: write train.jsonl, dev.jsonl and test.jsonl beside them, a line each ({HELP})"
        )
    if unread := [file for file in files if file.suffix.lower() in UNREAD]:
        return (
            f"--data {path}: {len(unread)} recordings that are not read here, as {unread[0].relative_to(place)}: "
            f"{CONVERT}; give a folder as in {HELP}"
        )
    there = ", ".join(sorted(file.name for file in place.iterdir())[:5]) or "nothing"
    return f"--data {path}: no recordings and no manifest, it holds {there}: give a folder as in {HELP}"


__all__ = ["Recordings", "recordings"]
