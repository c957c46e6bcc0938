"""The clock: only the steps asked for, in milliseconds a step, and what no part claimed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from xmodal_kd.clock import Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock whose every look at the time is a second after the last."""
    ticks: Iterator[int] = iter(range(1000))
    monkeypatch.setattr("xmodal_kd.clock.perf_counter", lambda: float(next(ticks)))
    return Clock(torch.device("cpu"))


def step(clock: Clock, measured: bool) -> None:
    with clock.step(measured):
        for part in ("teacher", "student", "student"):
            with clock.time(part):
                pass


def test_only_measured_steps_count(clock: Clock) -> None:
    step(clock, False)
    assert clock.split() == {} and clock.seconds == {}
    step(clock, True)
    step(clock, False)
    step(clock, True)
    # 8 looks a step: 7 s from first to last, of which 1 s for the teacher, 2 s for the student
    assert clock.split() == {"teacher": 1000, "student": 2000, "other": 4000, "step": 7000}


def test_parts_outside_a_measured_step_do_not_count(clock: Clock) -> None:
    with clock.time("evaluation"):
        pass
    assert clock.seconds == {}


def test_an_interrupted_step_stops_measuring(clock: Clock) -> None:
    with pytest.raises(RuntimeError), clock.step(True):
        raise RuntimeError
    with clock.time("evaluation"):
        pass
    assert clock.split() == {} and "evaluation" not in clock.seconds
