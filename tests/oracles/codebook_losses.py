"""Losses on the codes of quantised rows, in loops that follow what the docstring says.

Of the same hand as the loss, and written in another form (every choice by the error itself); what another hand says of
the same rows and codes is in the commit that brought it.
"""

from __future__ import annotations

import numpy as np

from .layers import Params, linear, under
from .maths import Array, log_softmax


def mvq(
    student: Array, teacher: Array, *, state: Params, codebooks: int = 8, size: int = 256, refine: int = 2,
    rows: int = 200_000,
) -> float:  # fmt: skip
    """-mean over rows of sum_k log softmax(W_k s + b_k)[i_k] (Yang et al., 2022), before codebooks have seen any row.

    Codebook k begins with what is left of every n-th row, k of them further on, by the nearest centres of those before.
    """
    if not len(teacher):
        return 0.0
    assert int(state["seen"]) == 0
    books: list[list[Array]] = []
    rest = [row.copy() for row in teacher]
    for k in range(codebooks):
        book = [rest[(i * codebooks + k) * len(teacher) // (size * codebooks)].copy() for i in range(size)]
        rest = [row - min(book, key=lambda centre: float(np.sum((row - centre) ** 2))) for row in rest]
        books.append(book)
    logits = linear(student, under(state, "heads"))
    total = 0.0
    for scores, row in zip(logits, teacher, strict=True):
        codes = quantised(row, books, refine)
        for k, code in enumerate(codes):
            total -= float(log_softmax(scores[k * size : (k + 1) * size])[code]) / len(teacher)
    return total


def quantised(row: Array, books: list[list[Array]], refine: int) -> list[int]:
    """Codes of a row: each the best beside those before it, then `refine` times each the best beside the others."""
    codes: dict[int, int] = {}
    for _ in range(1 + refine):
        for k, book in enumerate(books):
            others = sum((books[j][code] for j, code in codes.items() if j != k), np.zeros(len(row)))
            errors = [float(np.sum((row - others - centre) ** 2)) for centre in book]
            codes[k] = int(np.argmin(np.round(errors, 9)))
    return [codes[k] for k in range(len(books))]
