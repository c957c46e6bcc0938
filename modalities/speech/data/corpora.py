"""The data section of a speech recipe, and the recordings of its splits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, combinations
from pathlib import Path
from typing import Annotated, Literal, get_args

import numpy as np
from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from xmodal_kd.adapter.listed import Skipped
from xmodal_kd.adapter.packed.packing import KINDS as PACKED
from xmodal_kd.adapter.packed.packing import Kind as Packed
from xmodal_kd.adapter.packed.packing import packing, packings
from xmodal_kd.adapter.packed.shards import is_pattern, shards
from xmodal_kd.adapter.source import DataSection, Strict
from xmodal_kd.runtime.discovery import in_checkout
from xmodal_kd.runtime.errors import UserError, nearest

from .augment import Augment
from .compose import Compose
from .cuts import cuts_file, read_cuts
from .features import Features
from .indexed import open_manifest, shared_audio
from .layouts import (
    TABLES,
    kaldi_lists,
    read_common_voice,
    read_fluent_speech_commands,
    read_kaldi,
    read_speech_commands,
)
from .long import Long
from .manifests import Utterance, librispeech_lists, manifest_of, read_fsdd, read_librispeech
from .pieces import Pieces, given, trained
from .stored import long_or_held, packed_utterances
from .symbols import read_symbols
from .tokens import NORMALISERS, Kind, Normaliser, Tokens

SPLITS = ("train", "dev", "test")
#: Keys of the data section that one of the two tasks alone reads.
OF_CTC = ("tokens", "bpe", "symbols", "unknown", "vocabulary", "beam", "features", "streaming")
OF_SEQ2SEQ = ("processor", "language", "leading_space")
#: What a transducer, and what a classifier, does not read of either.
NOT_TRANSDUCER = (*OF_SEQ2SEQ, "vocabulary")
NOT_INTENTS = (*OF_SEQ2SEQ, *(key for key in OF_CTC if key != "features"), "metric", "normaliser", "compose")
SourceName = Literal[
    "fsdd", "manifest", "librispeech", "kaldi", "common_voice", "speech_commands", "fluent_speech_commands", "lhotse",
    "webdataset", "datasets",
]  # fmt: skip
_ONE = {"enum": list(get_args(SourceName))}
#: One name stands for a list of one.
Sources = Annotated[
    tuple[SourceName, ...],
    Field(min_length=1),
    BeforeValidator(lambda value: (value,) if isinstance(value, str) else value),
    WithJsonSchema({"anyOf": [_ONE, {"type": "array", "items": _ONE, "minItems": 1}]}, mode="validation"),
]


class WordBeamSpec(Strict):
    """A beam search by which test is also measured: over the words of `lexicon`, weighed by `lm`; of a transducer over
    symbols, of which `size` alone speaks."""

    #: An n-gram language model in ARPA's format.
    lm: Path | None = None
    #: A word a line; None: the words of `lm`.
    lexicon: Path | None = None
    #: Prefixes that are kept.
    size: int = Field(default=32, ge=1)
    #: Of the language model's log-probability in nats, beside the recogniser's. To be chosen on dev.
    lm_weight: float = Field(default=1.0, ge=0)
    #: Added for each word. To be chosen on dev.
    word_score: float = 0.0


class SpeechData(DataSection):
    """Where the recordings are, how they are split, and what a recogniser hears and writes.

    With speaker lists, a split is its speakers' recordings. Without them, a source brings its own splits: a
    manifest folder as ``train.jsonl``, ``dev.jsonl``, ``test.jsonl`` or other files named after them
    (`manifest_of`), LibriSpeech as folders ``train*``, ``dev*``, ``test*``, Kaldi as folders ``train``, ``dev``,
    ``test``, Common Voice as ``train.tsv``, ``dev.tsv``, ``test.tsv``, Speech Commands by its two lists, Fluent Speech
    Commands by its tables, Lhotse's cuts as manifests, gzipped or not, ``cuts_`` before their names or not, shards of
    tars by the beginnings of their names (or of their folders'), what `datasets` has saved as a `DatasetDict`.
    """

    #: What the student writes by: the frames of CTC, a transducer (rows are nodes of its lattice), or a decoder as
    #: Whisper's, whose rows are the tokens of the text. Of intents it writes nothing: it names an utterance's class.
    task: Literal["ctc", "transducer", "seq2seq", "intents"] = "ctc"
    #: Of seq2seq: a folder of transformers whose tokenizer and features all roles share; None: the teacher's.
    processor: Path | None = None
    #: Of seq2seq: what is spoken, where the model knows many languages (``en``); None: as its generation config says.
    language: str | None = None
    #: Of seq2seq: whether a text begins with a space, as Whisper was trained; False as the usual fine-tuning has it.
    leading_space: bool = True
    sources: Sources
    #: The folder of the one source; of several, the folder that holds a folder named after each. Of shards also a
    #: pattern: ``shards/train-{000..099}.tar::shards/dev-*.tar``.
    path: Path
    train_speakers: tuple[str, ...] = ()
    dev_speakers: tuple[str, ...] = ()
    test_speakers: tuple[str, ...] = ()
    tokens: Kind = "words"
    #: What pieces ``bpe`` has.
    bpe: Pieces = Pieces()
    #: How transcripts are written: ``plain`` (lower case, letters, digits, apostrophes), ``parted`` (punctuation parts
    #: words), ``untagged`` (plain, without <tags>), ``none`` (as they are, composed).
    normaliser: Normaliser = "plain"
    #: A file of the student's symbols; None: those of the training texts, which some recordings must have.
    symbols: Path | None = None
    #: What a dev or test transcript with a symbol means that no training text has: an error, or, kept, an error of
    #: whoever cannot write it.
    unknown: Literal["error", "keep"] = "error"
    #: What models are chosen and compared by: errors in words, or in characters where a language has no spaces.
    metric: Literal["wer", "cer"] = "wer"
    #: A saved teacher's vocabulary: the student's, or one of its own, which the term `uhc` compares by symbols.
    vocabulary: Literal["same", "by_name"] = "same"
    #: Beside greedy decoding, by which models are chosen: words from a list, weighed by a language model, on test
    #: (``wer_beam``, ``cer_beam``).
    beam: WordBeamSpec | None = None
    features: Features = Features()
    #: Export the student with its state too, for sound that comes in chunks: both are scored.
    streaming: bool = False
    compose: Compose | None = None
    augment: Augment = Augment()
    #: What the teacher hears of a training batch: its ``clean`` features, or the ``features`` that the student hears.
    teacher_view: Literal["clean", "shared"] = "clean"
    #: Longer training utterances are left out, and reported.
    max_seconds: float = Field(default=30.0, gt=0)
    #: Of the recordings, which models made from them inherit: stands on their cards, as Hugging Face names it.
    license: str | None = None
    #: Classes of similar duration that training batches are drawn from: 1 is no bucketing.
    buckets: int = Field(default=10, ge=1)

    @property
    def speakers(self) -> dict[str, tuple[str, ...]]:
        """The speakers listed for each split."""
        return {"train": self.train_speakers, "dev": self.dev_speakers, "test": self.test_speakers}

    @property
    def by_speaker(self) -> bool:
        return any(self.speakers.values())

    @model_validator(mode="after")
    def _check_speakers(self) -> SpeechData:
        for (one, here), (other, there) in combinations(self.speakers.items(), 2):
            if both := sorted(set(here) & set(there)):
                raise ValueError(f"{one}_speakers and {other}_speakers: {both[0]!r} is in both")
        if self.tokens == "bpe" and self.symbols is not None:
            raise ValueError("symbols: a list says nothing of how words are split: give bpe.model instead")
        if self.streaming and self.features.normalise == "utterance":
            raise ValueError("streaming: features.normalise: utterance needs the whole recording: set running or none")
        if "fsdd" in self.sources and not self.by_speaker:
            raise ValueError("train_speakers: fsdd has no splits of its own: list speakers for train, dev and test")
        return self

    @model_validator(mode="after")
    def _check_task(self) -> SpeechData:
        other = {"ctc": OF_SEQ2SEQ, "transducer": NOT_TRANSDUCER, "seq2seq": OF_CTC, "intents": NOT_INTENTS}[self.task]
        for key in other:
            if getattr(self, key) != SpeechData.model_fields[key].default:
                raise ValueError(f"{key}: it says nothing to task {self.task}: leave it out")
        words = self.beam is not None and (self.beam.lm is not None or self.beam.lexicon is not None)
        if self.task == "ctc" and self.beam is not None and not words:
            raise ValueError("beam: give lm or lexicon: a beam over words needs to know them")
        if self.task == "transducer" and words:
            raise ValueError("beam: a transducer's beam is over symbols: leave lm and lexicon out")
        if self.task == "seq2seq" and self.augment.warp is not None:
            raise ValueError("augment.warp: it knows the filters of CTC students only: leave it out")
        return self


def utterances(data: SpeechData, split: str, skipped: Skipped | None = None) -> Sequence[Utterance]:
    """The recordings of `split`, sorted, but for those of ``data.skip``.

    Args:
        skipped: is told which those are; it was made of ``data.skip``.
    Raises:
        UserError: it names the key of `data` that is at fault: a path that does not exist, a speaker that nobody is,
            a split without recordings, a recording in two splits.
    """
    if split not in SPLITS:
        raise UserError(f"no split {split!r}{nearest(split, SPLITS)}")
    if not data.path.expanduser().exists() and not ("webdataset" in data.sources and is_pattern(data.path)):
        where = "" if data.path.expanduser().is_absolute() else f" in {Path.cwd()}, where this was called"
        there = in_checkout(data.path)
        advice = f": it lies beside the recipes: --set data.path={there}" if there is not None else ""
        raise UserError(f"data.path: {data.path} does not exist{where}{advice}")
    if data.by_speaker and not data.speakers[split]:
        raise UserError(f"data.{split}_speakers: the {split} split is empty: list at least one speaker")
    found, skipped = _found(data, split), skipped or Skipped.of(data.skip)
    if isinstance(found, Long):
        if data.by_speaker:
            _check_known(data, set(found.speakers()))
            found = found.of_speakers(data.speakers[split])
        if lost := sorted({at for key in skipped.keys for at in found.find(key)}):
            skipped.found += [found[at].key for at in lost]
            found = found.chosen(np.delete(np.arange(len(found)), lost))
        silent = next((found[int(at)] for at in np.flatnonzero(~found.column("texted"))[:1]), None)
    else:
        if data.by_speaker:
            _check_known(data, {utterance.speaker for utterance in found})
            found = [utterance for utterance in found if utterance.speaker in data.speakers[split]]
        found = skipped.keep(found, lambda utterance: utterance.key)
        silent = next((one for one in found if one.text is None), None)
    if not found:
        raise UserError(f"data.path: {data.path} has no utterance for the {split} split")
    if data.task == "intents":
        return found
    if silent is not None and split != "train":
        raise UserError(
            f"data: {split} utterance {silent.key!r} lacks 'text': only training audio may go untranscribed"
        )
    if silent is not None and data.compose is not None:
        raise UserError(f"data.compose: {silent.key!r} lacks 'text': what is composed needs every clip's text")
    return found


def of_all_splits(name: SourceName, path: Path) -> Sequence[Utterance]:
    """The recordings of one source as speaker lists choose from them, whichever of its splits are there."""
    return _source(SpeechData(sources=(name,), path=path, train_speakers=("all",)), name, path, "train")


def build_tokens(data: SpeechData) -> Tokens:
    """The vocabulary that is given, or that of the training split's texts.

    Raises `UserError` for a list that cannot be one, and where no recording has a text.
    """
    if data.tokens == "bpe" and data.bpe.model is not None:
        return Tokens.of_pieces(given(data.bpe.model.expanduser()), data.normaliser)
    if data.symbols is not None:
        return read_symbols(data.symbols.expanduser(), data.tokens, data.normaliser)
    found = utterances(data, "train")
    if isinstance(found, Long):
        make = lambda: np.frombuffer(_built(data, found.texts()).to_json().encode(), np.uint8)  # noqa: E731
        how = f"{data.tokens} {data.bpe.size}" if data.tokens == "bpe" else data.tokens
        return Tokens.from_json(found.remembered(f"symbols {how} {data.normaliser}", make).tobytes().decode())
    return _built(data, (utterance.text for utterance in found))


def _built(data: SpeechData, texts: Iterable[str | None]) -> Tokens:
    known = (text for text in texts if text is not None)
    first = next(known, None)
    if first is None:
        raise UserError(
            "data: no training recording has a text: some are needed, to know what the student writes, or its symbols, "
            "as data.symbols"
        )
    if data.tokens == "bpe":
        normalised = map(NORMALISERS[data.normaliser], chain([first], known))
        return Tokens.of_pieces(trained(normalised, data.bpe.size), data.normaliser)
    return Tokens.build(data.tokens, chain([first], known), data.normaliser)


def _found(data: SpeechData, split: str) -> Sequence[Utterance]:
    """All that the sources give for a split, by an index where their lists are long."""
    if len(data.sources) == 1:
        return _source(data, data.sources[0], data.path, split)

    def read() -> Iterator[Utterance]:
        for name in data.sources:
            folder = data.path.expanduser() / name
            if not folder.is_dir():
                raise UserError(f"data.path: of several sources, {name!r} is expected at {folder}")
            for one in _source(data, name, folder, split):
                yield replace(one, key=f"{name}/{one.key}")

    lists = [_lists(name, data.path.expanduser() / name) for name in data.sources]
    every = [] if None in lists else [file for files in lists for file in files or ()]
    packed = [file for name, files in zip(data.sources, lists, strict=True) if name in PACKED for file in files or ()]
    how = f"{data.sources} {'all' if data.by_speaker else split}"
    return long_or_held(every, data.path.expanduser(), how, read, packed)


def _lists(name: SourceName, folder: Path) -> Sequence[Path] | None:
    """The files that say what one of several sources holds in all splits; None where names of recordings do."""
    if name == "webdataset":
        return shards(folder) if folder.is_dir() else None
    return {
        "manifest": lambda: sorted(folder.glob("*.jsonl")),
        "kaldi": lambda: [file for split in SPLITS for file in kaldi_lists(folder / split)],
        "common_voice": lambda: [folder / f"{split}.tsv" for split in SPLITS],
        "fluent_speech_commands": lambda: [folder / TABLES[split] for split in SPLITS],
        "librispeech": lambda: librispeech_lists(folder),
        "datasets": lambda: sorted(folder.rglob("*.arrow")),
    }.get(name, lambda: None)()


def _source(data: SpeechData, name: SourceName, path: Path, split: str) -> Sequence[Utterance]:
    folder = path.expanduser()
    readers: dict[SourceName, Callable[[], Sequence[Utterance]]] = {
        "fsdd": lambda: read_fsdd(folder),
        "librispeech": lambda: _librispeech(data, folder, split),
        "manifest": lambda: _manifests(data, folder, split),
        "kaldi": lambda: _parts(
            data, folder, split, folder.joinpath, lambda part: read_kaldi(part, folder), kaldi_lists
        ),
        "common_voice": lambda: _parts(
            data,
            folder,
            split,
            lambda name: folder / f"{name}.tsv",
            lambda part: read_common_voice(folder, part.stem),
            lambda part: [part],
        ),
        "lhotse": lambda: _parts(
            data, folder, split, lambda name: cuts_file(folder, name), read_cuts, lambda part: [part]
        ),
        "speech_commands": lambda: read_speech_commands(folder, None if data.by_speaker else split),
        "fluent_speech_commands": lambda: _parts(
            data, folder, split, lambda name: folder / TABLES[name], read_fluent_speech_commands, lambda part: [part]
        ),
        "webdataset": lambda: _packed(data, "webdataset", path, split),
        "datasets": lambda: _packed(data, "datasets", path, split),
    }
    return readers[name]()


def _manifests(data: SpeechData, folder: Path, split: str) -> Sequence[Utterance]:
    if not data.by_speaker:
        return _parts(data, folder, split, partial(manifest_of, folder), open_manifest)
    files = sorted(folder.glob("*.jsonl")) if folder.is_dir() else [folder]
    if len(files) == 1:
        return open_manifest(files[0])
    return long_or_held(files, folder, "manifests", lambda: (one for file in files for one in open_manifest(file)))


def _packed(data: SpeechData, kind: Packed, path: Path, split: str) -> Sequence[Utterance]:
    if data.by_speaker:
        return packed_utterances(packing(kind, path))
    parts = packings(kind, path)
    if split not in parts:
        raise UserError(
            f"data.path: {path} has no {split} split, only {', '.join(parts) or 'none that is known'}: without speaker "
            "lists, train, dev (validation) and test are told apart by the names of shards, folders or splits"
        )
    return packed_utterances(parts[split])


def _parts(
    data: SpeechData, folder: Path, split: str, where: Callable[[str], Path],
    read_part: Callable[[Path], Sequence[Utterance]], lists: Callable[[Path], Sequence[Path]] = lambda _: (),
) -> Sequence[Utterance]:  # fmt: skip
    """What a file or folder for each split holds; with speaker lists all of them, else no audio of another split's.

    Args:
        lists: the files of a part that make it long; none where `read_part` sees to that.
    """
    places = {name: place for name in SPLITS if (place := where(name)).exists()}
    if data.by_speaker and places:
        every = [file for place in places.values() for file in lists(place)]
        return long_or_held(
            every, folder, "all", lambda: (one for place in places.values() for one in read_part(place))
        )
    if split not in places:
        raise UserError(f"data.path: {where(split)} is missing; without speaker lists it is the {split} split")
    read = {name: long_or_held(lists(place), folder, name, partial(read_part, place)) for name, place in places.items()}
    for name, others in read.items():
        if name != split and (both := shared_audio(read[split], others)):
            here, there = places[split].name, places[name].name
            raise UserError(f"data.path: {both.key!r} is in {here} and in {there}: a split must not see another")
    return read[split]


def _librispeech(data: SpeechData, folder: Path, split: str) -> Sequence[Utterance]:
    if data.by_speaker:
        return long_or_held(librispeech_lists(folder), folder, "all", lambda: read_librispeech(folder))
    parts = sorted(part for part in folder.glob(f"{split}*") if part.is_dir())
    if not parts:
        raise UserError(f"data.path: {folder} has no folder {split}*; without speaker lists that is the {split} split")
    lists = [file for part in parts for file in librispeech_lists(part)]
    return long_or_held(lists, folder, split, lambda: (one for part in parts for one in read_librispeech(part)))


def _check_known(data: SpeechData, known: set[str]) -> None:
    for split, listed in data.speakers.items():
        for speaker in listed:
            if speaker not in known:
                raise UserError(f"data.{split}_speakers: no recording of {speaker!r}{nearest(speaker, known)}")
