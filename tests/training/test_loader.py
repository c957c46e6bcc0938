"""The loader: batches of step s are a function of s, whoever loads them and wherever training resumes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import pytest
import torch

from xmodal_kd.adapter.adapter import Batch
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.training.loader import steps


class Numbers:
    """Samples are (epoch, index) and a draw of their stream; epochs differ in order and in number of batches."""

    def __init__(self, n: int = 23, batch: int = 6, broken: int | None = None) -> None:
        self.n, self.batch, self.broken, self.streams = n, batch, broken, Streams(4)

    def __len__(self) -> int:
        return self.n

    def plan(self, epoch: int) -> Sequence[Sequence[int]]:
        order = self.streams.numpy("order", epoch).permutation(self.n).tolist()
        return [order[i : i + self.batch] for i in range(0, self.n - epoch, self.batch)]

    def sample(self, index: int, epoch: int) -> Any:
        if index == self.broken:
            raise UserError(f"sample {index}: it is broken")
        return epoch, index, torch.rand(1, generator=self.streams.torch("noise", epoch, index)).item()

    def collate(self, samples: Sequence[Any]) -> Batch:
        epochs, ids, noise = zip(*samples, strict=True)
        return {"ids": torch.tensor(ids), "epoch": torch.tensor(epochs), "noise": torch.tensor(noise)}


def take(count: int, source: Numbers | None = None, **how: int) -> list[list[list[tuple[int, ...]]]]:
    """Steps > micro-batches > (epoch, id, noise)."""
    found = list(islice(steps(source or Numbers(), **how), count))
    return [[list(zip(*(m[k].tolist() for k in ("epoch", "ids", "noise")), strict=True)) for m in s] for s in found]


def test_an_epoch_is_the_plan_and_then_comes_the_next() -> None:
    source = Numbers()
    ids = [[i for _, i, _ in micro] for [micro] in take(8, source)]
    assert ids == [*source.plan(0), *source.plan(1)]


def test_workers_change_nothing() -> None:
    assert take(9, workers=2) == take(9, workers=0)


@pytest.mark.parametrize("start", [0, 1, 3, 4, 5, 8, 11])
def test_resume_goes_on_with_the_right_batch_across_epochs(start: int) -> None:
    whole = take(13)
    assert take(13 - start, start=start) == whole[start:]


def test_resume_with_workers_and_micro_batches() -> None:
    whole = take(9, accumulate=3)
    assert take(4, start=5, accumulate=3, workers=2) == whole[5:]


@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (2, 1), (1, 3), (2, 2), (3, 2), (5, 1)])
def test_ranks_and_micro_batches_partition_the_global_batch(world: int, accumulate: int) -> None:
    whole = take(6, Numbers(24))  # 24 samples: batches of 6 in every epoch's first four steps
    shares = [take(4, Numbers(24), rank=rank, world=world, accumulate=accumulate) for rank in range(world)]
    for step in range(4):
        # micro-batch by micro-batch, the ranks side by side: relations see what one process sees
        micros = [shares[rank][step][i] for i in range(accumulate) for rank in range(world)]
        assert len(micros) == world * accumulate and all(micros)
        assert [sample for micro in micros for sample in micro] == whole[step][0]
        sizes = [len(micro) for micro in micros]
        assert max(sizes) - min(sizes) <= 1


def test_a_last_batch_too_small_to_share_is_skipped_by_every_rank() -> None:
    source = Numbers(14, batch=6)  # 6, 6, 2
    for rank in range(3):
        epochs = [step[0][0][0] for step in take(4, source, rank=rank, world=3)]
        assert epochs == [0, 0, 1, 1]


def test_too_few_samples_for_all_ranks_is_an_error() -> None:
    with pytest.raises(UserError, match="no batch of epoch 0 has the 8 samples"):
        next(steps(Numbers(), world=4, accumulate=2))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_sample_is_one_line_whoever_loads_it(workers: int) -> None:
    with pytest.raises(UserError) as error:
        take(4, Numbers(broken=7), workers=workers)
    assert str(error.value) == "sample 7: it is broken"


def test_good_batches_come_before_the_broken_one() -> None:
    source = Numbers(broken=Numbers().plan(0)[2][0])
    stream = steps(source)
    assert [len(next(stream)[0]["ids"]) for _ in range(2)] == [6, 6]
    with pytest.raises(UserError, match="it is broken"):
        next(stream)
