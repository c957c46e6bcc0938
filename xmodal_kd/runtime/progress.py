"""What a person sees of long work: a live bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import IO, Any, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    track,
)

T = TypeVar("T")


class _Lossy:
    """A stream whose reader may go, or whose disk may fill: what it cannot write is lost."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()


class Lasting(Console):
    """Standard error as it is when something is said. A terminal that was closed ends no work of days."""

    @property
    def file(self) -> IO[str]:
        return _Lossy(super().file)  # type: ignore[return-value]

    @file.setter
    def file(self, new: IO[str]) -> None:
        self._file = new


console = Lasting(stderr=True)
SECONDS_BETWEEN_LINES = 20.0


class Bar:
    """One training's progress."""

    def __init__(self, name: str, steps: int, start: int, live: Progress | None, task: TaskID | None) -> None:
        self.name, self.steps, self.start = name, steps, start
        self._live, self._task = live, task
        self._began = self._printed = monotonic()

    def update(self, step: int, values: Mapping[str, float]) -> None:
        """`step` steps are done; `values` are the loss parts and whatever else is worth a look."""
        text = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        if self._live is not None and self._task is not None:
            self._live.update(self._task, completed=step, status=text)
        elif monotonic() - self._printed > SECONDS_BETWEEN_LINES or step == self.steps:
            self._printed = monotonic()
            left = (self._printed - self._began) / max(1, step - self.start) * (self.steps - step)
            console.print(f"{self.name}  {step}/{self.steps}  {text}  {left:.0f} s left", highlight=False)

    def note(self, text: str) -> None:
        console.print(f"{self.name}  {text}", highlight=False)


@contextmanager
def bar(name: str, steps: int, start: int = 0, *, quiet: bool = False) -> Iterator[Bar]:
    """A bar for `steps` steps of which `start` are done."""
    if quiet or not console.is_terminal:
        silent = Bar(name, steps, start, None, None)
        if quiet:
            silent.update = silent.note = lambda *_: None  # type: ignore[method-assign, assignment]
        yield silent
        return
    columns = [
        TextColumn("[bold]{task.description}"), BarColumn(24), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(), TextColumn("{task.fields[status]}"),
    ]  # fmt: skip
    with Progress(*columns, console=console, transient=False) as live:
        task = live.add_task(name, total=steps, completed=start, status="")
        yield Bar(name, steps, start, live, task)


def each(items: Sequence[T], doing: str, shown: Console) -> Iterable[T]:
    """The items, with a bar on `shown` where there is more than one: of no terminal, with a line now and then."""
    if len(items) < 2:
        return items
    return track(items, doing, console=shown, transient=True) if shown.is_terminal else _told(items, doing, shown)


def _told(items: Sequence[T], doing: str, shown: Console) -> Iterator[T]:
    began = printed = monotonic()
    for done, item in enumerate(items):
        if done and monotonic() - printed > SECONDS_BETWEEN_LINES:
            printed = monotonic()
            left = (printed - began) / done * (len(items) - done)
            shown.print(f"{doing}  {done}/{len(items)}  {left:.0f} s left", highlight=False)
        yield item


def named(path: Path, error: Exception) -> str:
    """What went wrong with a file, its name before it unless it is said already."""
    text = str(error)
    return text if str(path) in text else f"{path}: {text}"
