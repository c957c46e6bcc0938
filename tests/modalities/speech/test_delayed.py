"""A window of delays: the oracle's loops, a student that is the teacher later, its gradient, short utterances."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracles import ctc_sequence as oracle
from torch import Tensor

from xmodal_kd.modalities.speech.losses.delayed import delayed_kd

FRAMES = [5, 1, 0, 3, 9]


def rows(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, int]:
    draw = torch.Generator().manual_seed(seed)
    student, teacher = (2 * torch.randn(sum(FRAMES), 4, generator=draw, dtype=torch.float64) for _ in range(2))
    return student, teacher, torch.arange(len(FRAMES)).repeat_interleave(torch.tensor(FRAMES)), len(FRAMES)


@pytest.mark.parametrize("over", ["least", "mean"])
@pytest.mark.parametrize(("delay", "temperature"), [(0, 1.0), (2, 1.0), (4, 2.5), (50, 1.0)])
def test_equals_the_loops(delay: int, over: Any, temperature: float) -> None:
    student, teacher, item, items = rows()
    values, counts = delayed_kd(student, teacher, item, items, delay=delay, over=over, temperature=temperature)
    assert counts.tolist() == FRAMES
    for s, t, value, frames in zip(student.split(FRAMES), teacher.split(FRAMES), values, FRAMES, strict=True):
        expected = oracle.delayed_kd(s.numpy(), t.numpy(), delay, over, temperature) * frames if frames else 0.0
        assert float(value) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_without_a_delay_it_is_kd() -> None:
    from xmodal_kd.losses import LOSSES

    student, teacher, item, items = rows(1)
    values, counts = delayed_kd(student, teacher, item, items, delay=0, temperature=2.0)
    expected = LOSSES["kd"].fn(student, teacher, temperature=2.0)
    torch.testing.assert_close(values.sum() / counts.sum(), expected.mean())


def test_the_teacher_some_frames_later_costs_nothing_within_the_window() -> None:
    _, teacher, item, items = rows(2)
    late = torch.cat([torch.cat([one.new_zeros(2, 4), one])[: len(one)] for one in teacher.split(FRAMES)])
    within, _ = delayed_kd(late, teacher, item, items, delay=2)
    beyond, _ = delayed_kd(late, teacher, item, items, delay=1)
    assert within[[3, 4]].abs().max() < 1e-12 and beyond[[0, 3, 4]].min() > 0.1
    on_time, _ = delayed_kd(teacher, teacher, item, items, delay=3)
    assert on_time.abs().max() < 1e-12


@pytest.mark.parametrize("over", ["least", "mean"])
def test_gradient_is_that_of_the_value_and_finite(over: Any) -> None:
    student, teacher, item, items = rows(3)
    teacher[:, 1] = -torch.inf  # a symbol that a teacher does not know

    def value(z: Tensor) -> Tensor:
        return delayed_kd(z, teacher, item, items, delay=3, over=over)[0]

    assert torch.autograd.gradcheck(value, student.requires_grad_(), fast_mode=True)
