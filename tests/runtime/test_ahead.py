"""The next value of an iterator, made in a thread while the last one is worked with."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from itertools import count

import pytest

from xmodal_kd.runtime import ahead
from xmodal_kd.runtime.ahead import Ahead


class Numbers:
    """0, 1, 2, ... and whether each may be made; `made` are begun and finished, `closed` when nobody wants more."""

    def __init__(self, held: int | None = None, broken: int | None = None) -> None:
        self.held, self.broken = held, broken
        self.let_go, self.made, self.closed = threading.Event(), list[int](), False

    def __call__(self) -> Iterator[int]:
        try:
            for i in count():
                if i == self.held:
                    assert self.let_go.wait(30)
                if i == self.broken:
                    raise ValueError(f"{i} is broken")
                self.made.append(i)
                yield i
        finally:
            self.closed = True


def loading() -> int:
    return sum(thread.name == "loader" for thread in threading.enumerate())


def test_one_value_is_made_ahead_and_no_more() -> None:
    numbers = Numbers()
    with closing(Ahead(numbers())) as values:
        assert numbers.made == [], "nothing is made before it is asked for"
        for i in range(5):
            assert next(values) == i
            values.settle()
            assert numbers.made == list(range(i + 2))
        values.settle()
        assert next(values) == 5


def test_it_is_made_while_the_last_one_is_worked_with() -> None:
    numbers = Numbers(held=1)
    with closing(Ahead(numbers())) as values:
        assert next(values) == 0, "the second is being made, and the first is here"
        assert numbers.made == [0]
        numbers.let_go.set()
        assert next(values) == 1


def test_what_making_one_raises_is_raised_in_its_place() -> None:
    with closing(Ahead(Numbers(broken=2)())) as values:
        assert [next(values), next(values)] == [0, 1]
        values.settle()
        with pytest.raises(ValueError, match="2 is broken"):
            next(values)
        with pytest.raises(StopIteration):
            next(values)


def test_no_thread_outlives_it_and_the_stream_is_closed() -> None:
    before, numbers = loading(), Numbers()
    values = Ahead(numbers())
    assert loading() == before + 1 and next(values) == 0
    values.close()
    assert loading() == before and numbers.closed


def test_a_value_that_is_never_made_holds_up_nobody_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "PATIENCE", 0.05)
    numbers = Numbers(held=1)
    values = Ahead(numbers())
    assert next(values) == 0
    values.close()
    assert not numbers.closed
    numbers.let_go.set()  # and when its disk answers at last, it ends
    for thread in [thread for thread in threading.enumerate() if thread.name == "loader"]:
        thread.join(30)
    assert numbers.closed
