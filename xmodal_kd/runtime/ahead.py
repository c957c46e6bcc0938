"""The next value of an iterator, made while whoever asked for the last one works with it."""

from __future__ import annotations

from collections.abc import Iterator
from queue import SimpleQueue
from threading import Thread
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")
#: Seconds that `Ahead.close` waits: who stops a run whose disk hangs is not held up by the read that it hangs in.
PATIENCE = 10.0


class _Raised(NamedTuple):
    error: BaseException


class Ahead(Generic[T]):
    """The values of `stream`, one of which is always being made in a thread, or is ready.

    Values come in their order, and what making one raises is raised where that one is asked for. The thread works only
    between a `next` and the value that it has begun: after `settle` it touches nothing until the next `next`. It is a
    daemon, so that a read which hangs keeps no process alive; `close` ends it, and closes the stream.
    """

    def __init__(self, stream: Iterator[T]) -> None:
        self._asked: SimpleQueue[bool] = SimpleQueue()
        self._made: SimpleQueue[T | _Raised] = SimpleQueue()
        #: What was asked for and not yet taken from the queue; what was taken and not yet given.
        self._pending, self._ready = False, list[T | _Raised]()
        self._thread = Thread(target=_serve, args=(stream, self._asked, self._made), name="loader", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if not self._pending and not self._ready:
            self._ask()
        self.settle()
        value = self._ready.pop()
        if isinstance(value, _Raised):
            raise value.error
        self._ask()
        return value

    def _ask(self) -> None:
        self._asked.put(True)
        self._pending = True

    def settle(self) -> None:
        """Wait for the value that is being made, if any: the thread is idle then."""
        if self._pending:
            self._ready.append(self._made.get())
            self._pending = False

    def close(self) -> None:
        """End the thread after the value that it is at; one that takes longer than `PATIENCE` is left behind."""
        self._asked.put(False)
        self._thread.join(PATIENCE)


def _serve(stream: Iterator[T], asked: SimpleQueue[bool], made: SimpleQueue[T | _Raised]) -> None:
    """In the thread: a value for each time that one is asked for. It holds no reference to who asks."""
    try:
        while asked.get():
            try:
                made.put(next(stream))
            except BaseException as error:  # whatever it is, it belongs to whoever asks next
                made.put(_Raised(error))
    finally:
        if (close := getattr(stream, "close", None)) is not None:
            close()
