"""The teacher's signals on disk: what is read is what was said, whatever batch, process or kill came between."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from filled_stores import content, fill, filler
from launch import FORKS
from toy import TERMS, ToyAdapter, ToySource, adapter, roles

from xmodal_kd.adapter.adapter import CACHED
from xmodal_kd.objective.objective import Objective
from xmodal_kd.recipe.cache_spec import CacheSpec
from xmodal_kd.runtime.distributed import Ranks
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.signals.signals import Layout, Signals
from xmodal_kd.teacher_cache import fill as fills
from xmodal_kd.teacher_cache import store as stores
from xmodal_kd.teacher_cache.entries import restored
from xmodal_kd.teacher_cache.fill import Filler
from xmodal_kd.teacher_cache.manifest import Manifest
from xmodal_kd.teacher_cache.source import CachedSource, Replayed
from xmodal_kd.teacher_cache.store import Store
from xmodal_kd.training.loader import steps

# ---------------------------------------------------------------- what is read is what was said


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("settings", [{}, {"features": "int8"}, {"view": "replay", "epochs": 2}])
def test_any_batch_reads_what_the_teacher_would_say(tmp_path: Path, settings: dict[str, Any], workers: int) -> None:
    """Entries know nothing of the batch that they were computed in: order, company and padding are others here."""
    toy = adapter(noise=0.1 if "view" in settings else 0.0)
    made = filler(toy, total=8, **settings)
    kept, _ = fill(made, tmp_path)
    assert list(kept) == ["logits", "body"]
    other = ToyAdapter(toy.config, toy.streams, batch_size=8)
    source = CachedSource(other.data("train"), made.spec, 1, toy, Store(tmp_path), kept)
    student = roles(toy)["student"].eval()
    stream = steps(source, workers=workers)
    for _ in range(6):  # into the third epoch
        [batch] = next(stream)
        live = toy.signals("teacher", made.teacher, batch, ["body"])
        said = restored(kept, batch[CACHED], toy.signals("student", student, batch))
        assert torch.equal(said.ids, live.ids)
        for name in kept:
            rows, layout = said[name]
            assert layout.same_rows(live.layout(name)) and torch.equal(layout.mask, live.layout(name).mask)
            valid, step = layout.mask, 0.02 if settings.get("features") == "int8" and name == "body" else 2e-3
            assert (rows[valid].float() - live.rows(name)[valid]).abs().max() < step * live.rows(name)[
                valid
            ].abs().max()
            assert bool(torch.isfinite(rows).all()), "padding is anew, and finite"
    stream.close()


def test_replay_shows_the_first_epochs_again_in_a_new_order() -> None:
    toy = adapter(noise=0.5)
    scarce = Replayed(toy.data("train"), CacheSpec(view="replay", epochs=2), kinds=2)
    assert [scarce.shown(epoch) for epoch in range(6)] == [0, 1, 2, 3, 0, 1], "two passes of each kind"
    again = Replayed(toy.data("train"), CacheSpec(view="replay", epochs=2))
    assert torch.equal(again.sample(5, 7).x, toy.data("train").sample(5, 1).x)
    assert not torch.equal(again.sample(5, 7).x, again.sample(5, 6).x)
    assert again.plan(2) == toy.data("train").plan(2) != again.plan(0)


def test_only_what_the_training_will_see_is_computed(tmp_path: Path) -> None:
    toy = adapter(noise=0.0)
    assert fill(filler(toy, total=2), tmp_path)[1][:2] == (12, 0), "two batches of six of 24 samples"
    assert fill(filler(toy, total=9), tmp_path)[1][:2] == (12, 12)
    assert fill(filler(toy, total=9), tmp_path)[1][:2] == (0, 24)


def test_seeds_share_what_is_alike(tmp_path: Path) -> None:
    first, second = adapter(noise=0.0, seed=3), adapter(noise=0.0, seed=4)
    fill(filler(first), tmp_path)
    made = filler(second)
    made.teacher = filler(first).teacher
    assert fill(made, tmp_path)[1][:2] == (0, 24), "the same samples in another order"


# ---------------------------------------------------------------- ranks, readers, kills


class Rank(Ranks):
    world = 2

    def __init__(self, rank: int) -> None:
        self.rank = rank


def test_each_rank_writes_its_own_and_all_read_all(tmp_path: Path) -> None:
    toy = adapter(noise=0.0)
    alone, together = tmp_path / "one", tmp_path / "two"
    fill(filler(toy), alone)
    made = filler(toy, Rank(0))
    manifest = Manifest.of(made.teacher, {"path": "toy"}, "fp32")
    micros = list(made.plan())
    kept = made.kept(manifest, micros)
    for rank in range(2):
        filler(toy, Rank(rank)).fill(together, list(kept.values()), micros)
    assert sorted(path.name for path in together.glob("rank-*")) == ["rank-0", "rank-1"]
    one, two = content(alone), content(together)
    assert one.keys() == two.keys(), "the same samples, found by the same content"
    sizes = [len(content_of(together, rank)) for rank in range(2)]
    assert sum(sizes) == len(two) and min(sizes) == max(sizes)


def content_of(folder: Path, rank: int) -> list[bytes]:
    store = Store(folder, rank)
    with store._environments()[0].begin() as transaction:
        found = list(transaction.cursor().iternext(values=False))
    store.close()
    return found


def _fill_slowly(folder: Path) -> None:
    torch.set_num_threads(1)
    fills.SECONDS = -1.0  # a transaction for each micro-batch
    compute = Filler._compute

    def slow(*args: Any, **more: Any) -> int:
        time.sleep(0.05)
        return compute(*args, **more)

    Filler._compute = slow  # type: ignore[method-assign]
    fill(filler(adapter(batch_size=2, noise=0.0), total=12), folder)


def test_a_killed_fill_goes_on_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    """Another process reads while it writes; what it had committed stays, what it had not is computed again."""
    toy, whole, cut = adapter(batch_size=2, noise=0.0), tmp_path / "whole", tmp_path / "cut"
    fill(filler(toy, total=12), whole)
    process = FORKS.Process(target=_fill_slowly, args=(cut,))
    process.start()
    seen, until = 0, time.monotonic() + 60
    while seen < 20 and time.monotonic() < until:
        reader = Store(cut)
        seen = reader.entries()
        reader.close()
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    before = content(cut)
    assert 20 <= len(before) < len(content(whole))
    assert before.items() <= content(whole).items()
    _, filled = fill(filler(toy, total=12), cut)
    assert 0 < filled.computed < 24 and filled.computed + filled.found == 24
    assert content(cut) == content(whole)


def _read(folder: Path, times: int, answer: Any) -> None:
    store = Store(folder)
    keys = sorted(content(folder))
    answer.put(sum(len(value or b"") for _ in range(times) for value in store.get(keys)))


def test_two_processes_read_at_once(tmp_path: Path) -> None:
    fill(filler(adapter(noise=0.0)), tmp_path)
    answers = FORKS.Queue()
    readers = [FORKS.Process(target=_read, args=(tmp_path, 50, answers)) for _ in range(2)]
    for process in readers:
        process.start()
    found = [answers.get(timeout=60) for _ in readers]
    for process in readers:
        process.join()
    assert found == [50 * sum(map(len, content(tmp_path).values()))] * 2


def test_a_store_grows_and_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "FIRST_SIZE", 1 << 16)
    store = Store(tmp_path, 0)
    items = [(bytes([i]), os.urandom(10_000)) for i in range(50)]
    store.put(items)
    assert store.get([key for key, _ in items]) == [value for _, value in items]

    def broken() -> Any:
        yield b"new", b"x"
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        store.put(broken())
    assert store.get([b"new", bytes([3])]) == [None, items[3][1]]
    store.close()


def test_a_store_that_was_deleted_is_a_new_one(tmp_path: Path) -> None:
    store = Store(tmp_path, 0)
    store.put([(b"a", b"1")])
    shutil.rmtree(tmp_path / "rank-0")
    again = Store(tmp_path, 0)
    assert again.get([b"a"]) == [None]
    again.put([(b"b", b"2")])
    again.close()
    assert content(tmp_path) == {b"b": b"2"}


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        fill(filler(adapter(noise=0.0)), tmp_path / "file")


# ---------------------------------------------------------------- refused by name


def test_foreign_stores_are_refused_by_name(tmp_path: Path) -> None:
    toy = adapter(noise=0.0)
    fill(filler(toy), tmp_path)
    with pytest.raises(UserError, match=r"data\.path was 'toy' when it was filled, is 'other'"):
        fill(filler(toy), tmp_path, data="other")
    other = filler(toy)
    with torch.no_grad():
        other.teacher.head.bias[0] += 1e-3  # type: ignore[union-attr, index]
    with pytest.raises(UserError, match="not this run's: teacher was 'Net "):
        fill(other, tmp_path)
    with pytest.raises(UserError, match="'body' are kept as codec fp16, width 24, the recipe says codec int8"):
        fill(filler(toy, features="int8"), tmp_path)


def test_a_sample_that_has_changed_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the training that reads it, and by a fill that looks at it again."""
    toy = adapter(noise=0.0)
    made = filler(toy)
    made.objective = Objective(TERMS[:2])
    kept, _ = fill(made, tmp_path)
    draw = ToySource.sample

    def changed(self: ToySource, index: int, epoch: int) -> Any:
        sample = draw(self, index, epoch)
        return sample._replace(x=sample.x * 1.001) if index == 7 else sample

    monkeypatch.setattr(ToySource, "sample", changed)
    source = CachedSource(toy.data("train"), made.spec, 1, toy, Store(tmp_path), kept)
    assert source.sample(6, 0).entries
    with pytest.raises(UserError, match="sample 7 is not what it was when the cache was filled"):
        source.sample(7, 0)
    stream = steps(source)
    with pytest.raises(UserError, match="sample 7 "):
        for _ in range(4):
            next(stream)
    with pytest.raises(UserError, match="sample toy-7 "):  # one more signal
        fill(filler(toy), tmp_path)


def test_a_teacher_that_says_nan_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="sample toy-9: the teacher's 'logits' hold NaN or Inf"):
        fill(filler(adapter(noise=0.0, nan=9)), tmp_path)


def test_rows_that_do_not_fit_the_students_are_refused(tmp_path: Path) -> None:
    toy = adapter(noise=0.0)
    made = filler(toy)
    kept, _ = fill(made, tmp_path)
    source = CachedSource(toy.data("train"), made.spec, 1, toy, Store(tmp_path), kept)
    [batch] = next(steps(source))
    few = Signals(batch["ids"]).add("logits", torch.zeros(6, 4), Layout.dense("frame", 6, (1,)))
    with pytest.raises(UserError, match="frame rows of the teacher's 'logits' fit no signal of the student"):
        restored(kept, batch[CACHED], few)
