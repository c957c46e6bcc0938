"""Rows without a direction, a deviation or a relation: every loss is finite, and its gradient is bounded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from harness import FUNCTIONS, NAMES, batch, call, each, gradient, listed, rows_of, settings
from torch import Tensor

from xmodal_kd.losses import LOSSES
from xmodal_kd.losses.guards import LEAST, centred, deviation, direction, inverse_root, living

#: No gradient of these rows, whose values are of size 2, is longer than this.
BOUND = 1e5


def zero_rows(rows: Tensor) -> Tensor:
    return rows.index_fill(0, torch.arange(3), 0.0)


def all_zero(rows: Tensor) -> Tensor:
    return torch.zeros_like(rows)


def a_pair_of_equal_rows(rows: Tensor) -> Tensor:
    return torch.cat([rows[1:2], rows[1:]])


def all_equal(rows: Tensor) -> Tensor:
    return rows[:1].expand_as(rows).clone()


def a_constant_channel(rows: Tensor) -> Tensor:
    return rows.index_fill(1, torch.tensor([0]), 3.7)


def constant_rows(rows: Tensor) -> Tensor:
    return torch.cat([rows[:2, :1].expand(2, rows.shape[1]), rows[2:]])


def rows_nearly_equal(rows: Tensor) -> Tensor:
    return torch.cat([rows[1:2] + 1e-9, rows[1:]])


def a_channel_nearly_constant(rows: Tensor) -> Tensor:
    return torch.cat([3.7 + 1e-8 * rows[:, :1], rows[:, 1:]], dim=1)


def rows_nearly_zero(rows: Tensor) -> Tensor:
    return torch.cat([1e-9 * rows[:3], rows[3:]])


KINDS = [
    zero_rows, all_zero, a_pair_of_equal_rows, all_equal, a_constant_channel, constant_rows, rows_nearly_equal,
    a_channel_nearly_constant, rows_nearly_zero,
]  # fmt: skip


@pytest.mark.parametrize(("name", "params"), settings(NAMES))
def test_degenerate_rows_have_a_bounded_gradient(name: str, params: dict[str, Any]) -> None:
    """Of the student alone, and of both sides, in either precision."""
    spec = LOSSES[name]
    for dtype in (torch.float32, torch.float64):
        inputs = batch(0, spec, dtype)
        for kind in KINDS:
            if name == "jacobian" and kind is rows_nearly_zero:
                continue  # a network that is sure has input gradients of that size, whose direction counts
            spoilt = inputs | {"student": each(kind, inputs["student"])}
            for given in (spoilt, spoilt | {"teacher": each(kind, inputs["teacher"])}):
                values, grads = gradient(spec, given, **params)
                assert values.isfinite().all(), (kind.__name__, dtype)
                longest = max(float(grad.norm()) for grad in grads)
                assert longest < BOUND, (kind.__name__, dtype, longest)


@pytest.mark.parametrize("rows", [0, 1])
@pytest.mark.parametrize(("name", "params"), settings(NAMES))
def test_no_row_and_one_row(name: str, params: dict[str, Any], rows: int) -> None:
    """Finite, or refused by name where rows are compared with one another; the objective leaves such batches out."""
    spec = LOSSES[name]
    inputs = rows_of(batch(0, spec), torch.arange(rows))
    try:
        values, grads = gradient(spec, inputs, **params)
    except ValueError as error:
        assert name.partition("_")[0] in str(error) or "batch" in str(error), error
        return
    assert values.isfinite().all() and all(grad.norm() < BOUND for grad in grads)


@pytest.mark.parametrize("name", [n for n in FUNCTIONS if not LOSSES[n].many])
def test_one_class_or_channel(name: str) -> None:
    spec, inputs = LOSSES[name], batch(0, LOSSES[name])
    narrow = {side: inputs[side][:, :1] for side in ("student", "teacher")}
    try:
        values, grads = gradient(spec, inputs | narrow | {"labels": torch.zeros_like(inputs["labels"])})
    except ValueError:
        return  # says what it needs: test_losses
    assert values.isfinite().all() and all(grad.norm() < BOUND for grad in grads)


def test_one_class_says_nothing_to_dist() -> None:
    assert LOSSES["dist"].fn(torch.randn(4, 1), torch.randn(4, 1)).item() == 0


def test_norm_and_mlkd_take_no_rows() -> None:
    assert LOSSES["norm"].fn(torch.zeros(0, 16), torch.zeros(0, 2)).shape == (0,)
    assert LOSSES["mlkd"].fn(torch.zeros(0, 3), torch.zeros(0, 3)).item() == 0


# ---------------------------------------------------------------- the guards


def test_direction_is_exact_above_its_least_length_and_nothing_below() -> None:
    rows = torch.tensor([[3.0, 4.0], [0.0, 0.0], [3e-7, 4e-7], [3e-6, 4e-6]], dtype=torch.float64, requires_grad=True)
    found = direction(rows)
    expected = torch.tensor([[0.6, 0.8], [0, 0], [0, 0], [0.6, 0.8]], dtype=torch.float64)
    torch.testing.assert_close(found.detach(), expected, rtol=1e-15, atol=0)
    (grad,) = torch.autograd.grad(found[:, 0].sum(), rows)
    assert (grad[1:3] == 0).all() and grad[3].norm() == pytest.approx(0.8 / 5e-6), "1 / length times the sine"
    assert torch.equal(living(rows)[1:3], torch.zeros(2, 2, dtype=torch.float64)) and torch.equal(
        living(rows)[0], rows[0]
    )


def test_held_direction_has_the_gradient_of_a_fixed_length() -> None:
    rows = torch.tensor([[3.0, 4.0]], dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(direction(rows, held=True)[:, 0].sum(), rows)
    assert grad.tolist() == [[pytest.approx(0.2), 0.0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_what_varies_by_rounding_is_constant(dtype: torch.dtype) -> None:
    rows = torch.full((1000, 1), 0.1, dtype=dtype) * torch.tensor([1.0, 1e4], dtype=dtype)
    assert (centred(rows, dim=0) == 0).all()
    wobbly = torch.tensor([[100.0], [100.01]], dtype=dtype)
    assert centred(wobbly, dim=0).flatten().tolist() == pytest.approx([-0.005, 0.005], rel=1e-2)
    assert deviation(torch.zeros(3, 4, dtype=dtype)).tolist() == [[0.0]] * 3
    assert inverse_root(torch.tensor([4.0, 0.0, LEAST**2 / 2])).tolist() == [0.5, 0.0, 0.0]


def test_the_gradient_of_a_small_exponent_has_no_pole() -> None:
    """`at` with p = 1/2, whose slope at 0 is infinite."""
    spec, inputs = LOSSES["at"], batch(0, LOSSES["at"])
    _, grads = gradient(spec, inputs | {"student": zero_rows(inputs["student"]).relu()}, p=0.5)
    assert grads[0].isfinite().all() and grads[0].norm() < BOUND
    assert call(spec, inputs, p=0.5).isfinite().all() and listed(inputs["student"])
