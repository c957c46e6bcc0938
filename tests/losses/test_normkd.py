"""NormKD (`kd` with `per_sample`): the student's scale costs nothing, and nothing is gained by shrinking it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from xmodal_kd.losses import LOSSES

KD = LOSSES["kd"].fn


def rows(seed: int, n: int = 6, c: int = 5) -> Tensor:
    return 2 * torch.randn(n, c, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("scale", [1e-3, 0.2, 7.0, 1e3])
def test_the_students_scale_changes_nothing(scale: float, temperature: float) -> None:
    student, teacher = rows(0), rows(1)
    expected = KD(student, teacher, temperature=temperature, per_sample=True)
    torch.testing.assert_close(KD(scale * student, teacher, temperature=temperature, per_sample=True), expected)
    moved = KD(student + 50, teacher - 30, temperature=temperature, per_sample=True)
    torch.testing.assert_close(moved, expected)


def test_the_teachers_scale_is_a_factor() -> None:
    """T^2 with T its deviation times the temperature: three times as large, nine times the value."""
    student, teacher = rows(0), rows(1)
    value = KD(student, teacher, temperature=2.0, per_sample=True)
    torch.testing.assert_close(KD(student, 3 * teacher, temperature=2.0, per_sample=True), 9 * value)


def test_the_gradient_has_no_radial_part() -> None:
    """Neither along the student's centred row nor along a constant."""
    student, teacher = rows(0).requires_grad_(), rows(1)
    (grad,) = torch.autograd.grad(KD(student, teacher, per_sample=True).sum(), student)
    assert grad.norm() > 0.1
    for along in (student - student.mean(dim=1, keepdim=True), torch.ones_like(student)):
        torch.testing.assert_close((grad * along).sum(dim=1), torch.zeros(6, dtype=torch.float64), rtol=0, atol=1e-12)


def test_descent_reaches_the_teachers_normalised_row_and_keeps_a_deviation() -> None:
    """A factor with a gradient is lowered by shrinking the student until nothing is left of it."""
    student, teacher = rows(0).requires_grad_(), rows(1)
    optimizer = torch.optim.SGD([student], lr=1.0)
    for _ in range(2000):
        optimizer.zero_grad()
        KD(student, teacher, temperature=1.0, per_sample=True).sum().backward()
        optimizer.step()
    end = student.detach()
    normal = [(z - z.mean(1, keepdim=True)) / z.std(1, keepdim=True) for z in (end, teacher)]
    torch.testing.assert_close(*normal, rtol=0, atol=0.02)
    assert (end.std(dim=1) >= rows(0).std(dim=1) * (1 - 1e-9)).all(), "steps across the radius only lengthen it"


def test_a_constant_row_counts_as_even() -> None:
    student = torch.tensor([[1.0, 1.0, 1.0]], dtype=torch.float64, requires_grad=True)
    value = KD(student, torch.tensor([[0.0, 1.0, 2.0]], dtype=torch.float64), temperature=1.0, per_sample=True)
    p = torch.softmax(torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64), 0)
    assert value.item() == pytest.approx((p * (3 * p).log()).sum().item(), rel=1e-12)
    (grad,) = torch.autograd.grad(value.sum(), student)
    assert (grad == 0).all()
