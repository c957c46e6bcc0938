"""An n-gram language model in ARPA's format, as SRILM, KenLM's ``lmplz`` and others write it.

KenLM's own reader has no wheels and must be compiled; what a beam asks of a model is a look in a table.
"""

from __future__ import annotations

import gzip
import math
from collections.abc import Iterator
from pathlib import Path

from xmodal_kd.runtime.errors import UserError

#: Decimal logarithm of what an unknown word has where the model says nothing of it (as in KenLM).
LEAST = -100.0
START, END, UNKNOWN = "<s>", "</s>", "<unk>"

Context = tuple[str, ...]


class Ngram:
    """Words' probabilities behind other words, in nats.

    A word that was not seen behind its context is looked up behind a shorter one, at the price of the context's
    back-off weight (Katz, 1987).

    Args:
        path: an ARPA file, plain or ``.gz``.
    Raises:
        UserError: it is not there, or no ARPA file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.order = 0
        #: Of each n-gram its log-probability and back-off weight, in nats.
        self._table: dict[Context, tuple[float, float]] = {}
        for number, order, fields in _entries(path):
            self.order = max(self.order, order)
            try:
                p, back = float(fields[0]), float(fields[order + 1]) if len(fields) > order + 1 else 0.0
            except ValueError:
                p, back = math.nan, math.nan
            if len(fields) not in (order + 1, order + 2) or math.isnan(p) or math.isnan(back):
                raise UserError(
                    f"{path}: line {number} is no {order}-gram: a logarithm, {order} words, a back-off weight"
                )
            self._table[tuple(fields[1 : order + 1])] = p * math.log(10), back * math.log(10)
        if not self._table:
            raise UserError(f"{path}: no n-gram in it: an ARPA file is expected (lmplz -o 3 < TEXTS > FILE.arpa)")

    @property
    def words(self) -> list[str]:
        """All that it knows, in its order, without what stands for start, end and the unknown."""
        return [key[0] for key in self._table if len(key) == 1 and key[0] not in (START, END, UNKNOWN, "<UNK>")]

    def start(self) -> Context:
        return (START,)[: self.order - 1]

    def score(self, context: Context, word: str) -> tuple[Context, float]:
        """The context behind `word`, and ``log P(word | context)``."""
        word = word if (word,) in self._table else next((u for u in (UNKNOWN, "<UNK>") if (u,) in self._table), word)
        after = (*context, word)[-(self.order - 1) :] if self.order > 1 else ()
        price = 0.0
        while (*context, word) not in self._table:
            if not context:
                return after, price + LEAST * math.log(10)
            price += self._table.get(context, (0.0, 0.0))[1]
            context = context[1:]
        return after, price + self._table[(*context, word)][0]

    def end(self, context: Context) -> float:
        """``log P(</s> | context)``."""
        return self.score(context, END)[1]


def _entries(path: Path) -> Iterator[tuple[int, int, list[str]]]:
    """Number of the line, n, and the fields of each n-gram."""
    order = 0
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                line = line.strip()
                if line.startswith("\\"):
                    order = int(line[1:-7]) if line.endswith("-grams:") and line[1:-7].isdecimal() else 0
                elif order and line:
                    yield number, order, line.split()
                elif not order and line and not line.startswith("ngram ") and number > 1000:
                    return  # no ARPA file says so much before its first n-gram
    except FileNotFoundError:
        raise UserError(f"{path}: no such file: an ARPA file is expected") from None
    except (OSError, UnicodeDecodeError, EOFError) as error:
        raise UserError(f"{path}: no ARPA file, which is text ({error}): a binary one of KenLM is not read") from None


__all__ = ["Ngram"]
