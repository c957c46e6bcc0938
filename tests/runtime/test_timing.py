"""The clock: only the steps asked for, in milliseconds a step, and what no part claimed; the latency of a call."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from xmodal_kd.runtime.timing import StepTimer, latency


@pytest.fixture
def timer(monkeypatch: pytest.MonkeyPatch) -> StepTimer:
    """A clock whose every look at the time is a second after the last."""
    ticks: Iterator[int] = iter(range(1000))
    monkeypatch.setattr("xmodal_kd.runtime.timing.perf_counter", lambda: float(next(ticks)))
    return StepTimer(torch.device("cpu"))


def step(timer: StepTimer, measured: bool) -> None:
    with timer.step(measured):
        for part in ("teacher", "student", "student"):
            with timer.time(part):
                pass


def test_only_measured_steps_count(timer: StepTimer) -> None:
    step(timer, False)
    assert timer.split() == {} and timer.seconds == {}
    step(timer, True)
    step(timer, False)
    step(timer, True)
    # 8 looks a step: 7 s from first to last, of which 1 s for the teacher, 2 s for the student
    assert timer.split() == {"teacher": 1000, "student": 2000, "other": 4000, "step": 7000}


def test_parts_outside_a_measured_step_do_not_count(timer: StepTimer) -> None:
    with timer.time("evaluation"):
        pass
    assert timer.seconds == {}


def test_an_interrupted_step_stops_measuring(timer: StepTimer) -> None:
    with pytest.raises(RuntimeError), timer.step(True):
        raise RuntimeError
    with timer.time("evaluation"):
        pass
    assert timer.split() == {} and "evaluation" not in timer.seconds


def test_latency_counts_calls_after_the_first_ones() -> None:
    calls: list[int] = []
    found = latency(lambda: calls.append(0), runs=10, warm=2)
    assert len(calls) == 12 and found["runs"] == 10 and 0 <= found["median_ms"] <= found["p95_ms"]


def test_a_slow_call_is_timed_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = [0.0]
    monkeypatch.setattr("xmodal_kd.runtime.timing.perf_counter", lambda: seconds[0])
    took = iter([9.0, 2.0, 2.0, 4.0])

    def slow() -> None:
        seconds[0] += next(took)

    assert latency(slow, limit=1.0) == {"median_ms": 2000.0, "p95_ms": 2000.0, "runs": 1}, "the first does not count"
