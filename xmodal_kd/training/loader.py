"""Batches of step s as a function of s: the same for any number of workers, and the right next ones on resume."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Generator, Iterator, Sequence
from threading import Thread
from time import perf_counter
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from ..adapter.adapter import Batch, Source
from ..adapter.long_lists import at_least
from ..runtime.ahead import Ahead
from ..runtime.errors import UserError

Key = tuple[int, int]  # epoch, sample


class _Keyed(Dataset[Any]):
    def __init__(self, source: Source) -> None:
        self.source = source

    def __getitem__(self, key: Key) -> Any:
        epoch, index = key
        try:
            return self.source.sample(index, epoch)
        except UserError as error:
            return error  # as a value: raised in a worker it would arrive as text with a traceback


class _Collate:
    def __init__(self, source: Source) -> None:
        self.source = source

    def __call__(self, samples: Sequence[Any]) -> Batch | UserError:
        broken = next((sample for sample in samples if isinstance(sample, UserError)), None)
        return broken or self.source.collate(samples)


class _Plan:
    """This rank's micro-batches from `start` on, for ever."""

    def __init__(self, source: Source, start: int, rank: int, world: int, accumulate: int) -> None:
        self.source, self.start, self.rank, self.world, self.accumulate = source, start, rank, world, accumulate

    def __iter__(self) -> Iterator[list[Key]]:
        shares = self.world * self.accumulate
        passed, epoch = 0, 0
        while True:
            batches = at_least(self.source.plan(epoch), shares)  # every micro-batch gets a sample
            if not batches:
                raise UserError(f"no batch of epoch {epoch} has the {shares} samples that ranks x accumulate ask for")
            for number in range(max(0, self.start - passed), len(batches)):
                batch = batches[number]
                # the ranks' pieces of one micro-batch lie side by side: together they are what one process would have
                for micro in range(self.rank, shares, self.world):
                    yield [(epoch, i) for i in share(batch, micro, shares)]
            passed += len(batches)
            epoch += 1


def share(batch: Sequence[int], part: int, parts: int) -> Sequence[int]:
    """Part `part` of `batch` cut into `parts` contiguous pieces of nearly equal size."""
    return batch[part * len(batch) // parts : (part + 1) * len(batch) // parts]


def steps(
    source: Source, *, start: int = 0, rank: int = 0, world: int = 1, accumulate: int = 1, workers: int = 0
) -> Generator[list[Batch], None, None]:
    """Endless: for each step from `start` on, this rank's `accumulate` micro-batches."""
    plan = _Plan(source, start, rank, world, accumulate)
    loader: DataLoader[Any] = DataLoader(
        _Keyed(source),
        batch_sampler=plan,
        collate_fn=_Collate(source),
        num_workers=workers,
        worker_init_fn=_begin,
        generator=torch.Generator(),  # it draws a seed for its workers: not from the caller's randomness
    )
    stream = iter(loader)
    try:
        while True:
            yield [_sound(next(stream)) for _ in range(accumulate)]
    finally:
        del stream  # a traceback that kept it would keep its workers, and they take seconds to notice


def first_batch(source: Source) -> Batch:
    """The whole batch of the first step."""
    [batch] = next(steps(source))
    return batch


class Supply:
    """The batches of a training, and how long it waited for them.

    Args:
        stream: batches by step.
        ahead: make those of the next step in a thread while this one is computed: the same ones, for what is drawn for
            a sample is a function of its epoch and its number. Torch lets go of the interpreter within its operations,
            and there the thread works.
    """

    def __init__(self, stream: Generator[list[Batch], None, None], *, ahead: bool) -> None:
        self._stream = Ahead(stream) if ahead else stream
        #: Seconds so far.
        self.waited = 0.0

    def __next__(self) -> list[Batch]:
        """Raises whatever the making of this step's batches raises, of `steps` a `UserError` that names the sample."""
        begun = perf_counter()
        batches = next(self._stream)
        self.waited += perf_counter() - begun
        return batches

    def settle(self) -> None:
        """No sample is being made from now on until the next batches are asked for."""
        if isinstance(self._stream, Ahead):
            begun = perf_counter()
            self._stream.settle()
            self.waited += perf_counter() - begun

    def close(self) -> None:
        self._stream.close()


def _sound(batch: Batch | UserError) -> Batch:
    if isinstance(batch, UserError):
        raise batch
    return batch


def _begin(worker: int) -> None:
    """Ctrl-C reaches the whole process group; the main process decides when to stop. When it is killed, so is a worker.

    Torch's workers look whether their parent is another by now, which it never is where a server of forks made them.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)
