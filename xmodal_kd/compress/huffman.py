"""Codes of few bits by Huffman's code, whose words are shorter for what comes more often (Huffman, 1952).

Words are canonical: their lengths alone say what they are. Symbols are written in stretches, each from a byte of its
own on, so that all stretches are read at once, a symbol of each at a time.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]
#: Symbols of a stretch.
STRETCH = 1024
#: Bits of the window in which a word is looked for, less those that its first byte may lack.
LONGEST = 57


class Written(NamedTuple):
    """Symbols as a row of bytes.

    Attributes:
        stream: ``(bytes,)``.
        sizes: ``(stretches,)`` bytes of each, a few thousand at most.
    """

    stream: Bytes
    sizes: NDArray[np.int16]


def word_lengths(counts: Sequence[int]) -> list[int]:
    """Bits of each symbol's word, by how often it comes; 0 for one that never does, 1 for the only one.

    >>> word_lengths([5, 1, 0, 1])
    [1, 2, 0, 2]
    """
    heap = [(count, symbol, [symbol]) for symbol, count in enumerate(counts) if count]
    lengths = [0] * len(counts)
    if len(heap) == 1:
        lengths[heap[0][1]] = 1
        return lengths
    heapq.heapify(heap)
    while len(heap) > 1:  # the two that come least often share the beginning of their words
        (a, first, some), (b, _, others) = heapq.heappop(heap), heapq.heappop(heap)
        for symbol in (both := [*some, *others]):
            lengths[symbol] += 1
        heapq.heappush(heap, (a + b, first, both))
    return lengths


def mean_bits(counts: Sequence[int]) -> float:
    """Of a symbol: the mean length of its word."""
    pairs = zip(counts, word_lengths(counts), strict=True)
    return sum(count * length for count, length in pairs) / sum(counts)


def _words(lengths: Sequence[int]) -> tuple[Ints, Ints]:
    """Symbols in the order of their canonical words, shorter ones first, and the words as numbers.

    Raises ``ValueError`` for lengths that are those of no code.
    """
    order = sorted((length, symbol) for symbol, length in enumerate(lengths) if length)
    if not order or order[0][0] < 0 or order[-1][0] > LONGEST or len(lengths) > 256:
        raise ValueError("lengths of words that are no Huffman code")
    words, word, before = list[int](), 0, 0
    for length, _ in order:
        word <<= length - before
        words.append(word)
        word, before = word + 1, length
    if word > 1 << before:
        raise ValueError("lengths of words that are no Huffman code")
    return np.array([symbol for _, symbol in order]), np.array(words)


def write(symbols: Bytes, lengths: Sequence[int]) -> Written:
    """`symbols` ``(n,)``, each of which has a word."""
    order, words = _words(lengths)
    word, size = np.zeros(len(lengths), np.int64), np.array(lengths)
    word[order] = words
    parts = list[Bytes]()
    for begin in range(0, len(symbols), STRETCH):
        some = symbols[begin : begin + STRETCH]
        long = size[some]
        end = np.cumsum(long)
        left = np.repeat(end, long) - 1 - np.arange(end[-1])  # of a bit, how many of its word come after it
        parts.append(np.packbits((np.repeat(word[some], long) >> left & 1).astype(np.uint8)))
    stream = np.concatenate(parts) if parts else np.zeros(0, np.uint8)
    return Written(stream, np.array([len(part) for part in parts], np.int16))


def read(written: Written, lengths: Sequence[int], n: int) -> Bytes:
    """The `n` symbols that were written. Raises ``ValueError`` for a stream that is not theirs."""
    order, words = _words(lengths)
    size = np.array(lengths)[order]
    first = (words << (LONGEST - size)).astype(np.uint64)  # least window that begins with each word
    after = int(words[-1] + 1) << (LONGEST - int(size[-1]))
    stream = np.concatenate([written.stream, np.zeros(8, np.uint8)])
    sizes = written.sizes.astype(np.int64)
    at, out = 8 * (np.cumsum(sizes) - sizes), np.zeros((len(sizes), STRETCH), np.uint8)
    if len(at) != -(-n // STRETCH):
        raise ValueError(f"{len(at)} stretches are not those of {n} symbols")
    for i in range(min(STRETCH, n)):
        held = at[: -(-(n - i) // STRETCH)]  # the last stretch may be over
        if (held < 0).any() or (held // 8 > len(written.stream)).any():
            raise ValueError("it ends too early")
        window = np.zeros(len(held), np.uint64)
        for byte in range(8):
            window = window << np.uint64(8) | stream[held // 8 + byte].astype(np.uint64)
        window = window << (held % 8).astype(np.uint64) >> np.uint64(64 - LONGEST)
        if (window >= np.uint64(after)).any():
            raise ValueError("it holds a word of no symbol")
        which = np.searchsorted(first, window, side="right") - 1
        out[: len(held), i] = order[which]
        held += size[which]
    return np.ascontiguousarray(out.reshape(-1)[:n])


__all__ = ["STRETCH", "Written", "mean_bits", "read", "word_lengths", "write"]
