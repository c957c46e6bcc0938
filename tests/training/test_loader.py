"""The loader: batches of step s are a function of s, whoever loads them and wherever training resumes."""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence
from contextlib import closing, nullcontext
from itertools import islice
from pathlib import Path
from time import sleep, time
from typing import Any

import numpy as np
import pytest
import torch
import toy
from launch import FORKS
from loader_worker import makers

from xmodal_kd.adapter.adapter import Batch
from xmodal_kd.recipe.recipe import Train
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.training.loader import Supply, steps


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


def supplied(count: int, source: Numbers | None = None, *, ahead: bool, **how: int) -> list[Any]:
    with closing(Supply(steps(source or Numbers(), **how), ahead=ahead)) as supply:
        return [[{key: value.tolist() for key, value in micro.items()} for micro in next(supply)] for _ in range(count)]


@pytest.mark.parametrize("how", [{}, {"start": 5, "accumulate": 3}, {"rank": 1, "world": 2}])
def test_a_thread_changes_nothing(how: dict[str, int]) -> None:
    torch.manual_seed(7)
    np.random.seed(7)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index]
    assert supplied(9, ahead=True, **how) == supplied(9, ahead=False, **how)
    assert torch.equal(torch.get_rng_state(), before[0]), "nothing is drawn from the caller's randomness"
    assert np.random.get_state()[1].tolist() == before[1]  # type: ignore[index]


def test_a_broken_sample_stops_the_same_step_in_a_thread() -> None:
    source = Numbers(broken=Numbers().plan(0)[2][0])
    with closing(Supply(steps(source), ahead=True)) as supply:
        assert [len(next(supply)[0]["ids"]) for _ in range(2)] == [6, 6]
        supply.settle()
        with pytest.raises(UserError) as error:
            next(supply)
    assert str(error.value) == f"sample {source.broken}: it is broken"


@pytest.mark.parametrize("ahead", [False, True])
def test_what_a_step_waits_is_measured(ahead: bool) -> None:
    """0.02 s a batch; a step of 0.05 s waits for it only where it is made after the step before."""

    def slowly() -> Generator[list[Batch], None, None]:
        while True:
            sleep(0.02)
            yield []

    with closing(Supply(slowly(), ahead=ahead)) as supply:
        next(supply)
        first = supply.waited
        for _ in range(4):
            sleep(0.05)
            next(supply)
    assert first >= 0.02
    assert (supply.waited - first < 0.08) == ahead


@pytest.mark.parametrize("broken", [False, True])
def test_a_training_leaves_no_thread(tmp_path: Path, broken: bool) -> None:
    engine = toy.engine(tmp_path / "run", Train(steps=3, batch_size=6), toy=toy.adapter(broken=20 if broken else None))
    with pytest.raises(UserError, match="toy-20: cannot be read") if broken else nullcontext():
        engine.fit()
    assert not [thread for thread in threading.enumerate() if thread.name == "loader"]
    assert broken or 0 <= engine.at.waited <= engine.at.stepping <= engine.at.seconds


def test_trained_weights_are_the_same_with_and_without_a_thread(tmp_path: Path) -> None:
    found = []
    for ahead in (True, False):
        models = toy.roles(toy.adapter(), student={"dropout": 0.3})
        train = Train(steps=9, batch_size=6, ahead=ahead, eval_every=2)
        evaluate = lambda model: toy.adapter().evaluate("student", model, "dev").metrics  # noqa: E731
        toy.engine(tmp_path / str(ahead), train, models=models, evaluate=evaluate).fit()
        found.append(models["student"].state_dict())
    assert all(torch.equal(a, b) for a, b in zip(found[0].values(), found[1].values(), strict=True))


def test_nothing_is_loaded_while_dev_is_measured(tmp_path: Path) -> None:
    source, seen = toy.adapter().data("train"), list[int]()
    made = list[int]()
    sample = source.sample
    source.sample = lambda index, epoch: (made.append(index), sample(index, epoch))[1]  # type: ignore[method-assign]
    engine = toy.engine(tmp_path, Train(steps=4, batch_size=6, eval_every=1))

    def evaluate(model: Any) -> dict[str, float]:
        seen.append(len(made))
        sleep(0.01)
        assert len(made) == seen[-1]
        return {"loss": 1.0}

    engine.source, engine.evaluate = source, evaluate
    engine.fit()
    assert seen == [12, 18, 24, 30], "the next step's batch is there, and no more"


def test_workers_end_with_who_was_killed() -> None:
    """Also where their parent's parent lives on, which for torch's own watch is their parent."""
    here, there = FORKS.Pipe()
    process = FORKS.Process(target=makers, args=(there,))
    process.start()
    there.close()
    pids = here.recv()
    assert len(pids) == 2 and process.pid not in pids
    process.kill()
    deadline = time() + 20
    while time() < deadline and any(Path(f"/proc/{pid}").exists() for pid in pids):
        sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
