"""Codebooks that are fitted while training goes on: the error that they leave, what is never used, when they stay."""

from __future__ import annotations

import torch
from learned_small import made, randn
from oracles.codebook_losses import quantised


def train(module: torch.nn.Module, rows: torch.Tensor, times: int = 30) -> None:
    for _ in range(times):
        module(rows[:, :3].detach().requires_grad_(), rows)


def error(module: torch.nn.Module, rows: torch.Tensor) -> float:
    return float((module.decode(module.codes(rows)) - rows).square().sum() / (rows - rows.mean(0)).square().sum())


def test_each_codebook_takes_off_the_error() -> None:
    rows = randn(400, 6)
    found = [error_of(rows, books) for books in (1, 2, 4)]
    assert found[0] < 0.65 and found[1] < 0.8 * found[0] and found[2] < 0.6 * found[1]


def error_of(rows: torch.Tensor, books: int) -> float:
    module = made("mvq", 3, 6, codebooks=books, size=8, rows=10**6)
    train(module, rows)
    return error(module, rows)


def test_rows_that_are_sums_of_centres_are_found_again() -> None:
    """Two books of four centres, one ten times the other: nine tenths of the smaller one, a hundredth of all, too."""
    books = [10 * randn(4, 5, seed=1), randn(4, 5, seed=2)]
    rows = (books[0][:, None] + books[1][None]).reshape(16, 5).repeat(8, 1)
    rows = rows[torch.randperm(128, generator=torch.Generator().manual_seed(0))]
    module = made("mvq", 3, 5, codebooks=2, size=4, rows=10**6)
    train(module, rows, 60)
    assert error(module, rows) < 2e-3


def test_every_choice_is_the_best_beside_the_others() -> None:
    module, rows = made("mvq", 3, 6, codebooks=3, size=5), randn(40, 6)
    train(module, rows, 3)
    books = [list(book.numpy()) for book in module.centres.double()]
    for row, codes in zip(rows, module.codes(rows), strict=True):
        assert codes.tolist() == quantised(row.numpy(), books, module.refine)


def test_centres_that_nobody_uses_begin_anew() -> None:
    module, rows = made("mvq", 3, 4, codebooks=1, size=4, rows=10**6), randn(64, 4)
    rows[::16] = rows[0]  # all centres begin alike
    train(module, rows, 40)
    assert len(module.codes(rows).unique()) == 4 and error(module, rows) < 0.7


def test_after_its_rows_and_in_evaluation_nothing_moves() -> None:
    module, rows = made("mvq", 3, 4, codebooks=2, size=4, rows=100), randn(64, 4)
    train(module, rows, 1)
    before = module.centres.clone()
    module.eval()
    train(module, 9 * rows, 1)
    assert torch.equal(module.centres, before) and int(module.seen) == 64
    module.train()
    train(module, rows, 1)
    after = module.centres.clone()
    train(module, 9 * rows, 2)
    assert torch.equal(module.centres, after) and not torch.equal(before, after) and int(module.seen) == 128


def test_a_student_learns_the_codes() -> None:
    module, rows = made("mvq", 4, 4, codebooks=2, size=4), randn(128, 4)
    optimizer = torch.optim.Adam(module.parameters(), 0.1)
    for _ in range(150):
        optimizer.zero_grad()
        value = module(rows, rows)
        value.backward()
        optimizer.step()
    right = (module.heads(rows).unflatten(1, (2, 4)).argmax(2) == module.codes(rows)).double().mean()
    assert right > 0.85
