"""What a recogniser writes: words, characters or pieces of words, with the CTC blank as symbol 0."""

from __future__ import annotations

import json
import re
import unicodedata
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from operator import eq
from typing import Literal, Protocol, cast, get_args

from xmodal_kd.runtime.errors import UserError

from . import pieces

Kind = Literal["words", "characters", "bpe"]

Normaliser = Literal["plain", "parted", "untagged", "none"]

BLANK = "<blank>"
TAG = re.compile(r"<[^<>]*>|\[[^\[\]]*\]|\{[^{}]*\}|\([^()]*\)")
#: How a space is written among characters.
SPACE = "|"
#: With what a piece begins that begins a word.
WORD = "▁"
#: How one of each kind is called.
ONE = {"words": "word", "characters": "character", "bpe": "piece"}


def normalise(text: str) -> str:
    """The form that WER is computed on: lower case, words of letters, digits and apostrophes, single spaces.

    Hyphens and dashes part words (``helter-skelter`` is two); other punctuation is dropped.

    >>> normalise("Red-Eye's face,  he said.")
    "red eye's face he said"
    """
    if text.isascii():  # most texts, at a tenth of the time: composing changes nothing of them
        kept = text.lower().translate(_KEPT_ASCII)
    else:
        text = unicodedata.normalize("NFKC", text).replace("’", "'").lower()
        kept = "".join(_kept(character) for character in text)
    return " ".join(word for word in kept.split() if word.strip("'"))


def parted(text: str) -> str:
    """As `normalise`, but all punctuation parts words and no other character is lost.

    >>> parted("rock'n'roll, 3.5%")
    "rock'n'roll 3 5%"
    """
    text = unicodedata.normalize("NFKC", text).replace("’", "'").lower()
    inside = (" " if unicodedata.category(c)[0] == "P" and c not in "'%&#@" else c for c in text)
    return " ".join(word for word in "".join(inside).split() if word.strip("'"))


def untagged(text: str) -> str:
    """`normalise` of what stands outside of tags: ``<noise>``, ``[laughs]``, ``{um}``, ``(unclear)``.

    >>> untagged("so <breath> it's [laughs] fine")
    "so it's fine"
    """
    return normalise(TAG.sub(" ", text))


def as_written(text: str) -> str:
    """Composed characters and single spaces; case, punctuation and tags stay."""
    return " ".join(unicodedata.normalize("NFC", text).split())


#: How transcripts are written before symbols are made of them, by name.
NORMALISERS: Mapping[str, Callable[[str], str]] = {
    "plain": normalise, "parted": parted, "untagged": untagged, "none": as_written,
}  # fmt: skip


def _kept(character: str) -> str:
    category = unicodedata.category(character)
    if character == "'" or category[0] in "LMN":
        return character
    return " " if category == "Pd" or character.isspace() else ""


_KEPT_ASCII = {code: _kept(chr(code)) for code in range(128)}


class Writes(Protocol):
    """What a source asks of the symbols that its texts become."""

    def encode(self, text: str, *, unknown_left: bool = False) -> list[int]: ...
    def normalise(self, text: str) -> str: ...
    def min_frames(self, ids: Sequence[int]) -> int:
        """Output rows that a text needs."""
        ...

    def to_json(self) -> str: ...


@dataclass(frozen=True)
class Tokens:
    """A vocabulary. Symbol 0 is the blank; the rest are sorted, so that one training set gives one order.

    >>> digits = Tokens.build("words", ["one two", "two nine"])
    >>> digits.symbols, digits.encode("two two")
    (('<blank>', 'nine', 'one', 'two'), [3, 3])
    """

    kind: Kind
    symbols: tuple[str, ...]
    normaliser: Normaliser = "plain"
    #: By which `bpe` splits texts, as SentencePiece keeps it.
    model: bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise UserError(f"tokens: kind {self.kind!r} is neither of {', '.join(get_args(Kind))}")
        if self.normaliser not in NORMALISERS:
            raise UserError(f"tokens: normaliser {self.normaliser!r} is none of {', '.join(NORMALISERS)}")
        if not self.symbols or self.symbols[0] != BLANK:
            raise UserError(f"tokens: symbol 0 must be {BLANK!r}, not {self.symbols[:1]}")
        if len(set(self.symbols)) != len(self.symbols):
            raise UserError("tokens: a symbol occurs twice")
        if (self.kind == "bpe") != (self.model is not None):
            raise UserError("tokens: bpe, and nothing else, has a SentencePiece model")

    @classmethod
    def of_pieces(cls, model: bytes, normaliser: Normaliser = "plain") -> Tokens:
        """The pieces of a SentencePiece model, in its order."""
        return cls("bpe", (BLANK, *pieces.names(model)), normaliser, model)

    @classmethod
    def build(cls, kind: Kind, texts: Iterable[str], normaliser: Normaliser = "plain") -> Tokens:
        """The symbols that occur in `texts`, which must be the training texts only.

        Raises `UserError` for digits among characters: "7" says nothing about how it is spoken. Not where texts are
        taken as they are written.
        """
        found: set[str] = set()
        for text in texts:
            split = _split(kind, NORMALISERS[normaliser](text))
            if not (fresh := set(split) - found):
                continue
            digits = fresh if kind == "characters" and normaliser != "none" else ()
            if digit := next((piece for piece in split if piece in digits and piece.isnumeric()), None):
                raise UserError(f"tokens: {digit!r} in {text!r}: characters need numbers written as words")
            found |= fresh
        return cls(kind, (BLANK, *sorted(found)), normaliser)

    def __len__(self) -> int:
        return len(self.symbols)

    @cached_property
    def _index(self) -> dict[str, int]:
        return {symbol: i for i, symbol in enumerate(self.symbols)}

    def normalise(self, text: str) -> str:
        return NORMALISERS[self.normaliser](text)

    def encode(self, text: str, *, unknown_left: bool = False) -> list[int]:
        """Symbol numbers of `text`, which is normalised first. Raises `UserError` that names an unknown symbol.

        Args:
            unknown_left: leave unknown symbols out instead.
        """
        split = self._split(self.normalise(text))
        index = self._index
        if unknown_left:
            return [index[piece] for piece in split if piece in index]
        try:
            return [index[piece] for piece in split]
        except KeyError as error:
            unknown = error.args[0]
        raise UserError(f"unknown {ONE[self.kind]} {unknown!r} in {text!r}: no training text, or data.symbols, has it")

    def spells(self, text: str) -> bool:
        """Whether all of `text`, which is in normal form, can be written."""
        return all(piece in self._index for piece in self._split(text))

    def begins_word(self, symbol: int) -> bool:
        """Whether what was said before a symbol is another word."""
        return self.kind == "words" or (self.kind == "bpe" and self.symbols[symbol].startswith(WORD))

    def ends_word(self, symbol: int) -> bool:
        """Whether what is said behind a symbol is another word."""
        return self.kind == "words" or (self.kind == "characters" and self.symbols[symbol] == SPACE)

    def _split(self, text: str) -> list[str]:
        """The pieces of a text in normal form."""
        if self.model is None:
            return _split(self.kind, text)
        return cast(list[str], pieces.processor(self.model).encode(text, out_type=str))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`. Blanks are skipped; repeats are kept, for they are the decoder's to merge."""
        symbols = [self.symbols[i] for i in ids if i != 0]
        if self.kind == "words":
            return " ".join(symbols)
        gap = WORD if self.kind == "bpe" else SPACE
        return " ".join(word for word in "".join(symbols).split(gap) if word)

    @staticmethod
    def min_frames(ids: Sequence[int]) -> int:
        """Output frames that a CTC path of `ids` needs: one each, and a blank between equal neighbours."""
        repeats: int = sum(map(eq, ids, islice(ids, 1, None)))
        return len(ids) + repeats

    def to_json(self) -> str:
        how: dict[str, str] = {} if self.normaliser == "plain" else {"normaliser": self.normaliser}
        how |= {} if self.model is None else {"model": b64encode(self.model).decode()}
        return json.dumps({"kind": self.kind, "symbols": self.symbols, **how}, ensure_ascii=False, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Tokens:
        try:
            record = json.loads(text)
            normaliser = cast(Normaliser, record.get("normaliser", "plain"))
            model = b64decode(record["model"]) if "model" in record else None
            return cls(cast(Kind, record["kind"]), tuple(record["symbols"]), normaliser, model)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"tokens: not a vocabulary written by to_json ({error})") from error


def _split(kind: Kind, text: str) -> list[str]:
    return text.split() if kind == "words" else list(text.replace(" ", SPACE))
