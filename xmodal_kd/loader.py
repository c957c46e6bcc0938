"""Batches of step s as a function of s: the same for any number of workers, and the right next ones on resume."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from typing import Any

from torch.utils.data import DataLoader, Dataset

from .adapter import Batch, Source
from .errors import UserError

Key = tuple[int, int]  # epoch, sample


class _Keyed(Dataset[Any]):
    def __init__(self, source: Source) -> None:
        self.source = source

    def __getitem__(self, key: Key) -> Any:
        epoch, index = key
        try:
            return self.source.sample(index, epoch)
        except UserError as error:  # raised again by `steps`: a worker's would arrive wrapped in its traceback
            return error

    def collate(self, samples: Sequence[Any]) -> Any:
        broken = next((sample for sample in samples if isinstance(sample, UserError)), None)
        return self.source.collate(samples) if broken is None else broken


class _Plan:
    """This rank's micro-batches from `start` on, for ever."""

    def __init__(self, source: Source, start: int, rank: int, world: int, accumulate: int) -> None:
        self.source, self.start, self.rank, self.world, self.accumulate = source, start, rank, world, accumulate

    def __iter__(self) -> Iterator[list[Key]]:
        shares = self.world * self.accumulate
        passed, epoch = 0, 0
        while True:
            batches = [b for b in self.source.plan(epoch) if len(b) >= shares]  # every micro-batch gets a sample
            if not batches:
                raise UserError(f"no batch of epoch {epoch} has the {shares} samples that ranks x accumulate ask for")
            for batch in batches[max(0, self.start - passed) :]:
                for micro in range(self.rank * self.accumulate, (self.rank + 1) * self.accumulate):
                    yield [(epoch, i) for i in _share(batch, micro, shares)]
            passed += len(batches)
            epoch += 1


def _share(batch: Sequence[int], part: int, parts: int) -> Sequence[int]:
    """Part `part` of `batch` cut into `parts` contiguous pieces of nearly equal size."""
    return batch[part * len(batch) // parts : (part + 1) * len(batch) // parts]


def steps(
    source: Source, *, start: int = 0, rank: int = 0, world: int = 1, accumulate: int = 1, workers: int = 0
) -> Iterator[list[Batch]]:
    """Endless: for each step from `start` on, this rank's `accumulate` micro-batches."""
    plan = _Plan(source, start, rank, world, accumulate)
    keyed = _Keyed(source)
    loader: DataLoader[Any] = DataLoader(
        keyed,
        batch_sampler=plan,
        collate_fn=keyed.collate,
        num_workers=workers,
        worker_init_fn=_ignore_interrupts,
    )
    stream = iter(loader)
    try:
        while True:
            micros = []
            for _ in range(accumulate):
                batch = next(stream)
                if isinstance(batch, UserError):
                    raise batch
                micros.append(batch)
            yield micros
    finally:
        del stream  # ends the workers now; kept alive by a traceback, each would cost 5 s at the end


def _ignore_interrupts(worker: int) -> None:
    """Ctrl-C reaches the whole process group; the main process decides when to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
