"""``wer<0.1 and modality=speech``: which rows of a table are meant. Nothing of it is executed."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from ..runtime.errors import UserError, nearest

Row = Mapping[str, Any]
Test = Callable[[Row], bool]

#: A quoted text, an operator, a word.
TOKEN = re.compile(
    r"""\s*(?:"(?P<double>[^"]*)"|'(?P<single>[^']*)'|(?P<op><=|>=|!=|==|<|>|=)|(?P<word>[^\s<>=!"']+))"""
)
ORDERS: Mapping[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
SYNTAX = "KEY OP VALUE joined by and / or, OP one of = != < <= > >="


def where(text: str, known: Collection[str]) -> Test:
    """Whether a row is meant; ``and`` binds closer than ``or``. A row that has no such key, or None, is not.

    >>> meant = where("wer<0.1 and modality=speech or seed=2", ["wer", "modality", "seed"])
    >>> meant({"wer": 0.05, "modality": "speech"}), meant({"wer": 0.2, "modality": "speech"}), meant({"seed": 2})
    (True, False, True)

    Args:
        known: the keys that rows have.

    Raises:
        UserError: of one line: what is wrong, and what is known.
    """
    words = _words(text)
    every: list[list[Test]] = [[]]
    for at in range(0, max(len(words), 1), 4):
        every[-1].append(_comparison(text, words[at : at + 3], known))
        kind, joint = words[at + 3] if at + 3 < len(words) else ("", "")
        if joint and (kind != "word" or joint.lower() not in ("and", "or")):
            raise UserError(f"--where {text!r}: 'and' or 'or' is expected before {joint!r}: {SYNTAX}")
        if joint and at + 4 == len(words):
            raise UserError(f"--where {text!r}: a comparison is missing behind {joint!r}: {SYNTAX}")
        if joint.lower() == "or":
            every.append([])
    return lambda row: any(all(test(row) for test in tests) for tests in every)


def _words(text: str) -> list[tuple[str, str]]:
    found, at = [], 0
    while text[at:].strip():
        match = TOKEN.match(text, at)
        if match is None:
            raise UserError(f"--where {text!r}: nothing known begins at {text[at:].strip()!r}: {SYNTAX}")
        kind = match.lastgroup or ""
        found.append(("text" if kind in ("double", "single") else kind, match[kind]))
        at = match.end()
    return found


def _comparison(text: str, words: Sequence[tuple[str, str]], known: Collection[str]) -> Test:
    if [kind for kind, _ in words[:2]] != ["word", "op"] or [kind for kind, _ in words[2:]] not in (["word"], ["text"]):
        raise UserError(f"--where {text!r}: a comparison is missing or not whole: {SYNTAX}")
    (_, name), (_, op), (kind, value) = words
    wanted = _number(value) if kind == "word" else value
    if name not in known:
        raise UserError(f"--where: unknown key {name!r}{_near(name, known)}; known: {', '.join(sorted(known))}")
    if op in ORDERS:
        if isinstance(wanted, str):
            raise UserError(f"--where: {name} {op} {wanted!r}: only numbers have an order")
        order = ORDERS[op]
        return lambda row: isinstance(row.get(name), int | float) and order(row[name], wanted)
    same = op != "!="
    return lambda row: row.get(name) is not None and (_equal(row[name], wanted) == same)


def _equal(value: Any, wanted: float | str) -> bool:
    return bool(value == wanted) or str(value) == str(wanted)


def _near(name: str, known: Collection[str]) -> str:
    said = nearest(name, known)
    return said if "nearest" in said else ""


def _number(word: str) -> float | str:
    try:
        return float(word)
    except ValueError:
        return word


__all__ = ["where"]
