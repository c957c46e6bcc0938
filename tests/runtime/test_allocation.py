"""A model that no machine can hold is refused before its memory is asked for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from xmodal_kd.runtime import allocation
from xmodal_kd.runtime.allocation import bounded
from xmodal_kd.runtime.errors import UserError

BIG = 1 << 24


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Linear(BIG, BIG),
        lambda: nn.Embedding(1 << 40, 1 << 20),
        lambda: torch.zeros(BIG, BIG, dtype=torch.float64),
        lambda: torch.eye(BIG),
        lambda: torch.arange(float(1 << 50)),
        lambda: torch.randn(BIG, BIG),
        lambda: [nn.Linear(1 << 17, 1 << 17) for _ in range(100_000)],
    ],
)
def test_what_is_too_large_is_never_asked_for(make: Callable[[], object]) -> None:
    told = r"student\.params: it would take .* GiB or more, this machine has"
    with pytest.raises(UserError, match=told) as refused, bounded("student.params"):
        make()
    assert "\n" not in str(refused.value)


def test_a_model_of_endless_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocation, "MANY", 100)
    with pytest.raises(UserError, match="it would take"), bounded("x"):
        nn.Sequential(*(nn.Linear(1, 1) for _ in range(100)))


@pytest.mark.parametrize("make", [lambda: nn.Linear(-1, 2), lambda: torch.zeros(1 << 62, 1 << 62), lambda: 1 // 0])
def test_what_is_no_size(make: Callable[[], object]) -> None:
    with pytest.raises(UserError, match=r"x: (no such model can be made|it would take)"), bounded("x"):
        make()


def test_what_fits_is_the_same_as_without() -> None:
    torch.manual_seed(3)
    free = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.GRU(7, 3))
    torch.manual_seed(3)
    with bounded("x"):
        held = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.GRU(7, 3))
    for a, b in zip(free.state_dict().values(), held.state_dict().values(), strict=True):
        assert torch.equal(a, b) and type(a) is type(b)


def test_an_error_of_ours_passes() -> None:
    with pytest.raises(UserError, match=r"^mine$"), bounded("x"):
        raise UserError("mine")
