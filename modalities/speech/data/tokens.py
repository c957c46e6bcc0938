"""What a recogniser writes: words or characters, with the CTC blank as symbol 0."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from operator import eq
from typing import Literal, cast, get_args

from xmodal_kd.runtime.errors import UserError

Kind = Literal["words", "characters"]

Normaliser = Literal["plain", "parted", "untagged", "none"]

BLANK = "<blank>"
TAG = re.compile(r"<[^<>]*>|\[[^\[\]]*\]|\{[^{}]*\}|\([^()]*\)")
#: How a space is written among characters.
SPACE = "|"


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

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise UserError(f"tokens: kind {self.kind!r} is neither of {', '.join(get_args(Kind))}")
        if self.normaliser not in NORMALISERS:
            raise UserError(f"tokens: normaliser {self.normaliser!r} is none of {', '.join(NORMALISERS)}")
        if not self.symbols or self.symbols[0] != BLANK:
            raise UserError(f"tokens: symbol 0 must be {BLANK!r}, not {self.symbols[:1]}")
        if len(set(self.symbols)) != len(self.symbols):
            raise UserError("tokens: a symbol occurs twice")

    @classmethod
    def build(cls, kind: Kind, texts: Iterable[str], normaliser: Normaliser = "plain") -> Tokens:
        """The symbols that occur in `texts`, which must be the training texts only.

        Raises `UserError` for digits among characters: "7" says nothing about how it is spoken. Not where texts are
        taken as they are written.
        """
        found: set[str] = set()
        for text in texts:
            pieces = _pieces(kind, NORMALISERS[normaliser](text))
            if not (fresh := set(pieces) - found):
                continue
            digits = fresh if kind == "characters" and normaliser != "none" else ()
            if digit := next((piece for piece in pieces if piece in digits and piece.isnumeric()), None):
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
        pieces = _pieces(self.kind, self.normalise(text))
        index = self._index
        if unknown_left:
            return [index[piece] for piece in pieces if piece in index]
        try:
            return [index[piece] for piece in pieces]
        except KeyError as error:
            unknown = error.args[0]
        raise UserError(f"unknown {self.kind[:-1]} {unknown!r} in {text!r}: no training text, or data.symbols, has it")

    def spells(self, text: str) -> bool:
        """Whether all of `text`, which is in normal form, can be written."""
        return all(piece in self._index for piece in _pieces(self.kind, text))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`. Blanks are skipped; repeats are kept, for they are the decoder's to merge."""
        symbols = [self.symbols[i] for i in ids if i != 0]
        if self.kind == "words":
            return " ".join(symbols)
        return " ".join(word for word in "".join(symbols).split(SPACE) if word)

    @staticmethod
    def min_frames(ids: Sequence[int]) -> int:
        """Output frames that a CTC path of `ids` needs: one each, and a blank between equal neighbours."""
        repeats: int = sum(map(eq, ids, islice(ids, 1, None)))
        return len(ids) + repeats

    def to_json(self) -> str:
        how = {} if self.normaliser == "plain" else {"normaliser": self.normaliser}
        return json.dumps({"kind": self.kind, "symbols": self.symbols, **how}, ensure_ascii=False, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Tokens:
        try:
            record = json.loads(text)
            normaliser = cast(Normaliser, record.get("normaliser", "plain"))
            return cls(cast(Kind, record["kind"]), tuple(record["symbols"]), normaliser)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"tokens: not a vocabulary written by to_json ({error})") from error


def _pieces(kind: Kind, text: str) -> list[str]:
    return text.split() if kind == "words" else list(text.replace(" ", SPACE))
