"""What a person sees while cells run: bars on a terminal, a line at each end elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic
from types import TracebackType

from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from ..runtime.progress import console
from .plan import Cell

#: Seconds between looks into the cells' logs.
LOOK = 1.0
#: Bytes of a log's end in which its last line is.
TAIL = 4096


class Progress:
    """Cells done, running and failed, and the time left as far as the steps done so far tell."""

    def __init__(self, reused: int, todo: Sequence[Cell], folder: Callable[[Cell], Path], quiet: bool) -> None:
        self.reused, self.folder, self.quiet = reused, folder, quiet
        self.total, self.count = reused + len(todo), reused
        self.work = {cell.key: cell.steps for cell in todo}
        self.shares = dict.fromkeys(self.work, 0.0)
        self.before: dict[str, float] = {}
        self.tasks: dict[str, TaskID] = {}
        self.waited: set[str] = set()
        self.began = self.looked = monotonic()
        self.bars: Bars | None = None

    def __enter__(self) -> Progress:
        if self.reused:
            self._line(f"{self.reused} of {self.total} cells are there already")
        if not self.quiet and console.is_terminal:
            columns = [TextColumn("{task.description}"), BarColumn(24), TimeElapsedColumn(),
                       TextColumn("{task.fields[status]}")]  # fmt: skip
            self.bars = Bars(*columns, console=console, transient=True)
            self.bars.start()
            self.all = self.bars.add_task("[bold]all cells", total=1.0, status=f"{self.count} of {self.total}")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.bars is not None:
            self.bars.stop()

    def started(self, cell: Cell) -> None:
        self.before[cell.key] = share_done(self.folder(cell), cell.steps)
        if self.bars is not None and cell.key not in self.tasks:  # a lost one starts again
            self.tasks[cell.key] = self.bars.add_task(cell.name, total=1.0, status="starts")

    def waits(self, cell: Cell) -> None:
        """Another comparison runs it, or one that was killed has left it running."""
        if cell.key not in self.waited:
            self.waited.add(cell.key)
            self._line(f"waits   for {cell.name}, which a process of another comparison still runs")

    def done(self, cell: Cell) -> None:
        self._end(cell)
        self._line(f"done    {cell.name}  ({self.count} of {self.total}{self._left()})")

    def failed(self, cell: Cell, line: str) -> None:
        self._end(cell)
        self._line(f"failed  {cell.name}: {line}")

    def update(self, running: Sequence[Cell]) -> None:
        """Look how far the running cells are, now and then."""
        if self.bars is None or monotonic() - self.looked < LOOK:
            return
        self.looked = monotonic()
        for cell in running:
            share = share_done(self.folder(cell), cell.steps)
            self.shares[cell.key] = max(0.0, share - self.before[cell.key])
            self.bars.update(self.tasks[cell.key], completed=share, status=f"{100 * share:.0f} %")
        whole = sum(self.shares[key] * work for key, work in self.work.items()) / max(1, sum(self.work.values()))
        self.bars.update(self.all, completed=whole, status=f"{self.count} of {self.total}{self._left()}")

    def _end(self, cell: Cell) -> None:
        self.count += 1
        self.shares[cell.key] = 1.0
        if self.bars is not None and cell.key in self.tasks:
            self.bars.remove_task(self.tasks.pop(cell.key))

    def _left(self) -> str:
        """Time left at the pace so far; nothing to say before the first steps, or when all is done."""
        done = sum(self.shares[key] * work for key, work in self.work.items())
        left = sum(self.work.values()) - done
        if not done or not left:
            return ""
        seconds = (monotonic() - self.began) / done * left
        return f", about {seconds:.0f} s left" if seconds < 120 else f", about {seconds / 60:.0f} min left"

    def _line(self, text: str) -> None:
        if not self.quiet:
            console.print(text, markup=False, highlight=False, soft_wrap=True)


def share_done(folder: Path, steps: int) -> float:
    """How far a cell's training is, by the last line of its newest log."""
    logs = sorted(folder.glob("checkpoints/*/log.jsonl"), key=lambda path: path.stat().st_mtime)
    if not logs:
        return 0.0
    with logs[-1].open("rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - TAIL))
        lines = file.read().decode(errors="replace").splitlines()
    for line in reversed(lines):
        try:
            return min(1.0, float(json.loads(line)["step"]) / steps)
        except (ValueError, KeyError, TypeError):  # a line that is being written, or was cut by the tail
            continue
    return 0.0


__all__ = ["Progress", "share_done"]
