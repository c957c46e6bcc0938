"""Losses published for images as their released code computes them: its values on the same rows, in float64.

Found as those of `test_released_catalogue`, whose rows and weights they have.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from released_rows import filled, mean_and_slope_of, places, pyramid, rows
from torch import Tensor

from xmodal_kd.losses import LOSSES


def semckd() -> tuple[float, float]:
    """Four items of two layers a side, 4 x 4 and 2 x 2; queries and keys of three numbers."""
    call, at = filled(LOSSES["semckd"].make([5, 6], [7, 8], [2, 2], batch=4, width=3)), places((4, 2), 4)
    (first, last), teacher = pyramid(0, (5, 6), (4, 2), 4), pyramid(2, (7, 8), (4, 2), 4)
    return mean_and_slope_of(lambda s: call([first, s], teacher, at["item"], 4, at["cell"], at["grid"])[0], last)


def attnfd() -> tuple[float, float]:
    """One item of 4 x 4, of which the release's norm of the whole batch is an item's."""
    call, item = filled(LOSSES["attnfd"].make(6, 7, 2, reduction=2)), torch.zeros(16, dtype=torch.int64)
    return mean_and_slope_of(lambda s: call(s, rows(1, 16, 7), item, 1, torch.arange(16), (4, 4))[0], rows(0, 16, 6))


def af_dcd() -> tuple[float, float]:
    """Two items of 8 x 8 without their middle, pooled to 4 x 4, in patches of 2 x 2."""
    call = filled(LOSSES["af_dcd"].make(6, 6, 2, groups=3, patch=2, pool=2, temperature=0.7, regenerate=0.01))
    keep = torch.ones(2, 8, 8, 1, dtype=torch.float64)
    keep[:, 2:5, 2:5] = 0
    call.kept = lambda *_: keep.reshape(-1, 1)
    item = torch.arange(2).repeat_interleave(64)
    student, teacher = (torch.cat([rows(k, 64, 6), rows(k + 2, 64, 6)]) for k in (0, 1))
    return mean_and_slope_of(lambda s: call(s, teacher, item, 2, torch.arange(128), (8, 8))[0], student)


def crcd() -> tuple[float, float]:
    """Four samples, four negatives that are none of them; pairs of a sample with itself taken out of the release's."""
    call = filled(LOSSES["crcd"].make(5, 7, samples=12, negatives=4, width=6, temperature=0.5)).eval()
    for k, bank in ((3, call.bank_s), (4, call.bank_t)):
        bank.copy_(rows(k, 12, 6) / rows(k, 12, 6).norm(dim=1, keepdim=True))
    call.z_s.fill_(20.0), call.z_t.fill_(30.0)
    call.drawn = lambda: torch.tensor([9, 6, 11, 10])
    item, ids = torch.arange(4), torch.tensor([2, 7, 0, 5])
    return mean_and_slope_of(lambda s: call(s, rows(1, 4, 7), item, ids), rows(0, 4, 5))


#: Mean, slope, and how near they must be.
RELEASED: dict[Callable[[], tuple[float, float]], tuple[float, float, float]] = {
    # DefangChen/SemCKD, ebe5db1, models/util.py SelfA, distiller_zoo/SemCKD.py
    semckd: (1.4721656653750552, 0.00031274391774646843, 1e-9),
    # AmirMansurian/AttnFD, f090bbe, cbam.py, distiller.py
    attnfd: (2.1683245130642526, -0.0025843888036940323, 1e-9),
    # OSVAI/Af-DCD, 5b086a7, losses/ocmgd.py with rand_mask False
    af_dcd: (2015.0961314802162, -2.866395892159927, 1e-9),
    # Lechatelia/CRCD, f9176f6, crcd/memory.py, crcd/criterion.py, which adds 1e-6 to differences, 1e-7 to shares
    crcd: (5.441013987741284, -0.03634237654417748, 5e-6),
}


@pytest.mark.parametrize("ours", RELEASED, ids=lambda fn: fn.__name__)
def test_released(ours: Callable[[], tuple[float, float]]) -> None:
    *expected, near = RELEASED[ours]
    assert ours() == pytest.approx(tuple(expected), rel=near)


def test_the_contrast_of_patches_knows_no_other_patch() -> None:
    """Af-DCD of rows on their own: one position, whose groups are told apart; by hand for two groups of one channel."""
    call = filled(LOSSES["af_dcd"].make(2, 2, 0, groups=2, temperature=1.0, drop=0.0, regenerate=0.0))
    student, teacher = rows(0, 3, 2), rows(1, 3, 2)
    made = call.generator(student)
    item = torch.tensor([0, 0, 1])
    values, _ = call(student, teacher, item, 2, torch.arange(3), None)

    def told(i: int) -> Tensor:
        apart = (made[i][:, None] - teacher[i][None]).abs()
        return sum(torch.logsumexp(-apart[m], dim=0) + apart[m, m] for m in range(2))  # type: ignore[return-value]

    torch.testing.assert_close(values, torch.stack([(told(0) + told(1)) / 2, told(2)]))
