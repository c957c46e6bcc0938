"""What was said beside what should have been said, word by word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

#: (reference word or None, said word or None): equal, other, left out, put in.
Pair = tuple[str | None, str | None]
#: A reference word, or None, and what each role said there.
Column = tuple[str | None, dict[str, str | None]]


def align(reference: Sequence[str], said: Sequence[str]) -> list[Pair]:
    """A shortest edit path (Levenshtein); of several the one that keeps words in place rather than puts in and out."""
    n, m = len(reference), len(said)
    cost = [[i + j if not i or not j else 0 for j in range(m + 1)] for i in range(n + 1)]
    for i in range(1, n + 1):
        for j in range(1, m + 1):
            other = cost[i - 1][j - 1] + (reference[i - 1] != said[j - 1])
            cost[i][j] = min(other, cost[i - 1][j] + 1, cost[i][j - 1] + 1)
    pairs: list[Pair] = []
    i, j = n, m
    while i or j:
        if i and j and cost[i][j] == cost[i - 1][j - 1] + (reference[i - 1] != said[j - 1]):
            i, j = i - 1, j - 1
            pairs.append((reference[i], said[j]))
        elif i and cost[i][j] == cost[i - 1][j] + 1:
            i -= 1
            pairs.append((reference[i], None))
        else:
            j -= 1
            pairs.append((None, said[j]))
    return pairs[::-1]


def columns(reference: Sequence[str], said: Mapping[str, Sequence[str]]) -> list[Column]:
    """Several texts beside one reference: its words in order, between them a place for each word put in.

    Returns:
        reference word (None: nothing was to be said there) and what each role said there (None: nothing).
    """
    slots: dict[str, list[list[str]]] = {}
    words: dict[str, list[str | None]] = {}
    for role, text in said.items():
        slots[role], words[role] = [[]], []
        for wanted, word in align(reference, text):
            if wanted is None and word is not None:
                slots[role][-1].append(word)
            else:
                words[role].append(word)
                slots[role].append([])
    found: list[Column] = []
    for i in range(len(reference) + 1):
        extra = max((len(slots[role][i]) for role in said), default=0)
        for k in range(extra):
            found.append((None, {role: slots[role][i][k] if k < len(slots[role][i]) else None for role in said}))
        if i < len(reference):
            found.append((reference[i], {role: words[role][i] for role in said}))
    return found


__all__ = ["align", "columns"]
