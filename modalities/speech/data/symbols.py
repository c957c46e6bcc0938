"""The symbols of a recogniser that somebody else trained, and which of ours each of them is.

Vocabularies say the same in different ways: upper case, ``|`` or ``▁`` for the gap between words, the padding token for
the blank. Symbols are matched by name with these differences taken away; scores of a symbol that is written twice
(``a`` and ``A``) are added as probabilities.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xmodal_kd.runtime.bounded_files import read_text
from xmodal_kd.runtime.checkpoint import read_json
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.signals.class_mapping import map_classes

from .tokens import BLANK, SPACE, Kind, Normaliser, Tokens

#: What a word's beginning or the gap between words is called elsewhere.
GAPS = frozenset({"|", " ", "▁", "<space>", "[space]"})
#: What the blank may be called where nothing says which it is.
BLANKS = ("<blank>", "<blk>", "<pad>", "[PAD]", "<eps>", "ε", "_")
#: Symbols of lists that nobody says.
UNSAID = frozenset({*BLANKS, "<s>", "</s>", "<unk>", "[UNK]", "<sos>", "<eos>", "<sos/eos>"})
#: Of a line that lists symbols.
LISTED = 12


@dataclass(frozen=True)
class Vocabulary:
    """Names by class, None where a class has none; which class is the blank, and which stand for nothing spoken."""

    names: tuple[str | None, ...]
    blank: int
    special: frozenset[int] = frozenset()

    def known_as(self, index: int) -> str | None:
        """Our name of class `index`; None for what nobody says (start, end, unknown)."""
        name = self.names[index]
        if index == self.blank:
            return BLANK
        return None if name is None or index in self.special else plain(name)

    @property
    def known(self) -> frozenset[str]:
        """All that it can say, by our names, the blank among them."""
        return frozenset(name for i in range(len(self.names)) if (name := self.known_as(i)) is not None)


@dataclass(frozen=True)
class SymbolMap:
    """Scores of their symbols as scores of ours, -inf for one that they do not know.

    >>> SymbolMap((1, 0), ())(torch.tensor([[1.0, 2.0]]))
    tensor([[2., 1.]])
    """

    columns: tuple[int, ...]
    #: ``(ours, theirs)``: further classes of theirs whose probability is added to one of ours.
    added: tuple[tuple[int, int], ...]

    def __call__(self, scores: Tensor) -> Tensor:
        ours = map_classes(scores, self.columns)
        for mine, theirs in self.added:
            ours[..., mine] = torch.logaddexp(ours[..., mine], scores[..., theirs])
        return ours


def plain(name: str) -> str:
    """A symbol's name without what vocabularies differ in: case, typographic apostrophes, the name of the gap."""
    if name.lower() in GAPS:
        return SPACE
    return unicodedata.normalize("NFKC", name).replace("’", "'").lower()


def match(ours: Sequence[str], theirs: Vocabulary, who: str, *, partial: bool = False) -> SymbolMap:
    """Which of their classes each of our symbols is.

    Args:
        partial: whether they may lack some of ours.
    Raises:
        UserError: a symbol of ours that they cannot write, or next to nothing in common; it names `who`.
    """
    places: dict[str, list[int]] = {}
    for index in range(len(theirs.names)):
        if (name := theirs.known_as(index)) is not None:
            places.setdefault(name, []).append(index)
    found = [places.get(symbol, places.get(plain(symbol), [])) for symbol in ours]
    unknown = [symbol for symbol, at in zip(ours, found, strict=True) if not at]
    if len(ours) - len(unknown) < 2:
        raise UserError(
            f"{who}: of its {len(theirs.names)} classes fewer than two are the student's: it writes "
            f"{listed(sorted(set(places) - {BLANK}))}; data.tokens must say so (characters for letters)"
        )
    if unknown and not partial:
        raise UserError(
            f"{who}: it cannot write {listed(unknown)}, which the training texts hold: say data.vocabulary=by_name and "
            "compare by the term uhc, or change the texts"
        )
    columns = tuple(at[0] if at else -1 for at in found)
    added = tuple((mine, other) for mine, at in enumerate(found) for other in at[1:])
    return SymbolMap(columns, added)


def check_same(theirs: Sequence[str], ours: Sequence[str], who: str, advice: str) -> None:
    """Raises `UserError` that names the first class in which two lists of symbols differ, and says `advice`."""
    if tuple(theirs) == tuple(ours):
        return
    at = next((i for i, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b), None)
    where = f"{len(theirs)} classes there, {len(ours)} here"
    if at is not None:
        where = f"class {at} is {theirs[at]!r} there, {ours[at]!r} here"
    raise UserError(f"{who} writes another vocabulary than the training texts: {where}: {advice}")


def left_out(ours: Sequence[str], theirs: Vocabulary) -> list[str]:
    """Their names of what they write and we do not, special tokens not counted."""
    known = set(ours)
    return [
        str(theirs.names[i])
        for i in range(len(theirs.names))
        if theirs.known_as(i) is not None and theirs.known_as(i) not in known
    ]


def listed(names: Sequence[str]) -> str:
    """Names for a line, the first few of many."""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return " ".join(map(repr, names[:LISTED])) + more


# ---------------------------------------------------------------- as a list of one's own


def read_symbols(path: Path, kind: Kind, normaliser: Normaliser) -> Tokens:
    """The vocabulary that a file gives, in its order.

    A ``.json`` holds a list, or ``{"symbol": column}``; any other file a symbol a line, with its column behind it or
    not (``tokens.txt`` of Kaldi's heirs). The blank and what nobody says are left out, ``|`` and ``▁`` are the gap
    between words, and case is dropped but where texts are taken as they are written.

    Raises:
        UserError: it is not there, no list of symbols, or of symbols that `kind` does not have.
    """
    names = symbol_names(path, "data.symbols: ")
    kept = [name for name in names if name not in UNSAID]
    symbols = kept if normaliser == "none" else [plain(name) for name in kept]
    symbols = [SPACE if name.lower() in GAPS else name for name in symbols] if kind == "characters" else symbols
    if not symbols:
        raise UserError(f"data.symbols: {path} holds no symbols")
    if twice := next((name for name in symbols if symbols.count(name) > 1), None):
        raise UserError(f"data.symbols: {path} holds {twice!r} twice")
    if kind == "characters" and (long := next((name for name in symbols if len(name) > 1), None)):
        raise UserError(f"data.symbols: {path}: {long!r} is no character: tokens: words, or a list of characters")
    return Tokens(kind, (BLANK, *symbols), normaliser)


def symbol_names(path: Path, key: str = "") -> list[str]:
    """The symbols of a file by column, as they are written there. `key`: before what is wrong with it."""
    return _json_symbols(path, key) if path.suffix.lower() == ".json" else _line_symbols(path, key)


def _json_symbols(path: Path, key: str) -> list[str]:
    held = read_json(path)
    if isinstance(held, dict) and all(isinstance(at, int) for at in held.values()):
        held = sorted(held, key=lambda name: held[name])
    if not isinstance(held, list) or not all(isinstance(name, str) for name in held):
        raise UserError(f"{key}{path}: a list of symbols, or a column for each, is expected")
    return held


def _line_symbols(path: Path, key: str) -> list[str]:
    rows = [line.split() for line in read_text(path).removeprefix("\ufeff").split("\n") if line.strip()]
    numbered = all(len(row) == 2 and row[1].isdecimal() for row in rows)
    if bad := next((row for row in rows if len(row) > 1 and not numbered), None):
        raise UserError(f"{key}{path}: {' '.join(bad)[:40]!r} is no symbol: one a line is expected")
    return [row[0] for row in (sorted(rows, key=lambda row: int(row[1])) if numbered else rows)]


# ---------------------------------------------------------------- as transformers saves them


def read_vocabulary(folder: Path, blank: int, classes: int) -> Vocabulary:
    """The vocabulary in a folder of transformers.

    Args:
        blank: the class that the model's configuration calls padding, which its CTC loss takes for the blank.
        classes: of the model's head.
    Raises:
        UserError: no vocabulary, or one that is not by symbol.
    """
    index = _indexes(folder)
    names: list[str | None] = [None] * classes
    for name, at in index.items():
        if 0 <= at < classes:
            if (other := names[at]) is not None:
                raise UserError(
                    f"{folder}: its vocabulary calls class {at} both {other!r} and {name!r}: correct vocab.json"
                )
            names[at] = name
    if not 0 <= blank < classes:
        raise UserError(f"{folder}/config.json: pad_token_id is {blank}, and the head has classes 0 to {classes - 1}")
    gap = _content(_settings(folder).get("word_delimiter_token") or SPACE)
    special = frozenset(index[name] for name in _special(folder) - {gap} if name in index) - {blank}
    return Vocabulary(tuple(SPACE if name == gap else name for name in names), blank, special)


def unwritten(folder: Path, classes: int) -> list[str]:
    """What the vocabulary of a folder has behind the last class of the model's head, special tokens apart."""
    special = _special(folder) | UNSAID
    return [name for name, at in _indexes(folder).items() if at >= classes > 0 and name not in special]


def other_blank(folder: Path, blank: int) -> int | None:
    """The class that the tokenizer of a folder calls padding, where that is another than the model's own."""
    pad = _settings(folder).get("pad_token")
    found = _indexes(folder).get(_content(pad)) if pad else None
    return None if found == blank else found


def _indexes(folder: Path) -> dict[str, int]:
    """Class by name, from ``vocab.json`` or ``tokenizer.json``, with what ``added_tokens.json`` adds."""
    vocab, whole = folder / "vocab.json", folder / "tokenizer.json"
    if vocab.is_file():
        found = _record(vocab)
        if found and all(isinstance(one, Mapping) for one in found.values()):
            found = _of_language(folder, found)
    elif whole.is_file():
        found = _from_tokenizer(whole)
    else:
        raise UserError(f"{folder}: no vocab.json: save its processor beside it (processor.save_pretrained(folder))")
    added = folder / "added_tokens.json"
    found = {**found, **(_record(added) if added.is_file() else {})}
    if not found or not all(isinstance(at, int) for at in found.values()):
        raise UserError(f"{vocab}: a class number by symbol is expected, as CTC tokenizers of transformers save it")
    return found


def _of_language(folder: Path, found: Mapping[str, Any]) -> dict[str, Any]:
    """One of several languages' vocabularies, the tokenizer's own."""
    language = _settings(folder).get("target_lang")
    if not isinstance(language, str) or language not in found:
        raise UserError(
            f"{folder}/vocab.json: vocabularies of {len(found)} languages: set target_lang in tokenizer_config.json"
        )
    return dict(found[language])


def _from_tokenizer(file: Path) -> dict[str, Any]:
    record = _record(file)
    vocab = record.get("model", {}).get("vocab", {})
    pieces = vocab if isinstance(vocab, Mapping) else {piece[0]: at for at, piece in enumerate(vocab)}
    return {**pieces, **{one["content"]: one["id"] for one in record.get("added_tokens", ())}}


def _special(folder: Path) -> set[str]:
    """Names of the tokens that stand for nothing spoken; the word gap, which some files list among them, is spoken."""
    settings = _settings(folder)
    file = folder / "special_tokens_map.json"
    for record in (settings, _record(file) if file.is_file() else {}):
        settings = {**record, **settings}
    keys = ("pad_token", "unk_token", "bos_token", "eos_token", "cls_token", "sep_token", "mask_token")
    found = {_content(settings[key]) for key in keys if settings.get(key)}
    return {name for name in found if name not in GAPS}


def _settings(folder: Path) -> dict[str, Any]:
    file = folder / "tokenizer_config.json"
    return _record(file) if file.is_file() else {}


def _content(token: Any) -> str:
    return str(token["content"] if isinstance(token, Mapping) else token)


def _record(file: Path) -> dict[str, Any]:
    found = read_json(file)
    if not isinstance(found, dict):
        raise UserError(f"{file}: a JSON object is expected")
    return found
