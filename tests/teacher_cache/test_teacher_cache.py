"""The teacher's signals on disk: what is read is what was said, whatever batch, process or kill came between."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from launch import FORKS
from safetensors.torch import load_file
from torch import Tensor
from toy import RECIPE, TERMS, ToyAdapter, ToySource, adapter, roles

from xmodal_kd.adapter.adapter import CACHED
from xmodal_kd.check.cached import cache as cached_check
from xmodal_kd.check.subject import prepare
from xmodal_kd.cli.main import call
from xmodal_kd.objective.objective import Objective
from xmodal_kd.recipe.cache_spec import CacheSpec
from xmodal_kd.recipe.recipe import load
from xmodal_kd.run import runner
from xmodal_kd.runtime.checkpoint import read_json
from xmodal_kd.runtime.device import make_accelerator
from xmodal_kd.runtime.distributed import Ranks
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.signals.signals import Layout, Signals
from xmodal_kd.teacher_cache import fill as fills
from xmodal_kd.teacher_cache import store as stores
from xmodal_kd.teacher_cache.entries import restored
from xmodal_kd.teacher_cache.fill import Filled, Filler
from xmodal_kd.teacher_cache.manifest import Manifest
from xmodal_kd.teacher_cache.session import filled_store
from xmodal_kd.teacher_cache.source import CachedSource, Replayed, Seeing
from xmodal_kd.teacher_cache.store import Store
from xmodal_kd.training.loader import steps
from xmodal_kd.training.method import Distil

PLAIN = f"{RECIPE}trackers: []\n"
QUIET = PLAIN.replace("data: {}", "data: {noise: 0.0}")  # the teacher sees the same in every epoch


def filler(toy: ToyAdapter, ranks: Ranks | None = None, total: int = 4, **settings: Any) -> Filler:
    spec = CacheSpec(**settings)
    return Filler(
        spec, toy.data("train"), Seeing(toy.data("train"), spec, 1, toy), toy, roles(toy)["teacher"].eval(),
        Objective(TERMS), toy.streams, make_accelerator("cpu", "fp32"), ranks or Ranks(), total,
        (ranks or Ranks()).world, quiet=True,
    )  # fmt: skip


def fill(made: Filler, folder: Path, data: str = "toy") -> tuple[dict[str, Any], Filled]:
    return filled_store(made, folder, Manifest.of(made.teacher, {"path": data}, "fp32"))


def content(folder: Path) -> dict[bytes, bytes]:
    """Everything in a store."""
    store, found = Store(folder), {}
    for environment in store._environments():
        with environment.begin() as transaction:
            found |= dict(transaction.cursor())
    store.close()
    return found


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
    with pytest.raises(UserError, match="sample 7 "):  # one more signal
        fill(filler(toy), tmp_path)


def test_a_teacher_that_says_nan_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="sample 9: the teacher's 'logits' hold NaN or Inf"):
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


# ---------------------------------------------------------------- whole runs


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe, and its run without a cache."""
    folder = tmp_path_factory.mktemp("cache")
    (folder / "quiet.yaml").write_text(QUIET)
    (folder / "toy.yaml").write_text(PLAIN)
    assert run(folder, "live") == 0
    return folder


def run(folder: Path, out: str, *more: str, recipe: str = "quiet", command: str = "run") -> int:
    words = [command, str(folder / f"{recipe}.yaml"), "--out", str(folder / out), "--allow-import", "toy"]
    return call([*words, "--device", "cpu", "--quiet", *more])


def cached(folder: Path, out: str, *more: str, **keys: str) -> dict[str, Any]:
    """The report of a run with a cache, on the teacher of the run without one."""
    teacher = ["--set", f"teacher={{path: {folder / 'live' / 'teacher'}}}"]
    assert run(folder, out, "--set", "cache={}", *teacher, *more, **keys) == 0
    report: dict[str, Any] = read_json(folder / out / "report.json")
    return report


def student(folder: Path, out: str) -> dict[str, Tensor]:
    found: dict[str, Tensor] = load_file(folder / out / "student" / "model.safetensors")
    return found


def test_a_run_with_a_cache_gives_nearly_the_same_student(
    recipes: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []
    says = ToyAdapter.signals

    def watched(self: ToyAdapter, role: str, *args: Any) -> Signals:
        asked.append(role)
        return says(self, role, *args)

    monkeypatch.setattr(ToyAdapter, "signals", watched)
    # which asks as often as it has time to
    monkeypatch.setattr(runner, "latency", lambda run, **how: {"median_ms": 1.0, "p95_ms": 1.0, "runs": 1})
    facts = cached(recipes, "cached", "--set", "train.checkpoint_every=8")["cost"]["student"]["cache"]
    for name, value in student(recipes, "live").items():
        torch.testing.assert_close(student(recipes, "cached")[name], value, rtol=2e-3, atol=2e-4)
    assert facts["computed"] == 24 and facts["hit_rate"] == 0.5 and facts["epochs"] == 2.0
    assert facts["bytes"] > 0 and facts["signals"]["logits"]["bytes_per_row"] == 8
    assert 0 <= facts["loss_error"]["kd"] < 1e-3 and 0 <= facts["loss_error"]["hint"] < 1e-3
    text = (recipes / "cached" / "report.md").read_text()
    assert "50.0 % of what training asked of the teacher was read" in text
    # one batch for its shape, four of the pass; then scores (twice a role, dev and test), and the batch measured
    training = asked[: asked.index("student")]
    assert training.count("teacher") <= 1 + 1 + 8 + 24 + 5
    capfd.readouterr()


def test_few_labels_and_a_cache_go_together(recipes: Path) -> None:
    """The pool is cached like all else; what repeats is drawn by passes of the labelled samples and of the pool."""
    report = cached(recipes, "scarce", "--set", "labels=6", "--set", "self_training=false")
    facts = report["cost"]["student"]["cache"]
    assert facts["computed"] == 24 and facts["loss_error"]["kd"] < 1e-3
    more = ["--set", "labels=6", "--set", "self_training=false", "--set", "control=false"]
    assert run(recipes, "few", *more, "--set", "cache={view: replay, epochs: 1}", recipe="toy") == 0
    facts = read_json(recipes / "few" / "report.json")["cost"]["student"]["cache"]
    assert facts["computed"] <= 24 + 6 and facts["loss_error"]["kd"] < 1e-3


def test_a_stopped_run_goes_on_to_the_same_bit_with_any_workers(recipes: Path) -> None:
    cached(recipes, "whole")
    teacher = ["--set", f"teacher={{path: {recipes / 'live' / 'teacher'}}}", "--set", "cache={}"]
    assert run(recipes, "stopped", *teacher, "--set", "control=false", "--max-minutes", "0") == 0
    assert run(recipes, "stopped", *teacher, "--set", "control=false", "--resume") == 0
    for name, value in student(recipes, "whole").items():
        assert torch.equal(student(recipes, "stopped")[name], value)
    cached(recipes, "workers", "--set", "train.workers=2")
    for name, value in student(recipes, "whole").items():
        assert torch.equal(student(recipes, "workers")[name], value)


def test_a_large_teacher_is_paid_for(recipes: Path) -> None:
    facts = _facts(recipes, "large", "teacher.params.width=60000")
    assert facts["cached_ms"] < facts["live_ms"] / 2
    assert facts["paid_after_epochs"] is not None and facts["paid_after_epochs"] > 0


def _facts(folder: Path, out: str, *sets: str) -> dict[str, Any]:
    more = [word for item in (*sets, "objective=[{loss: kd}]", "teacher.train.steps=1", "cache={}", "control=false")
            for word in ("--set", item)]  # fmt: skip
    recipe = (folder / "quiet.yaml").read_text().replace("  - {loss: hint, on: body}\n", "")
    (folder / "kd.yaml").write_text(recipe)
    assert (
        run(folder, out, *[w.replace("[{loss: kd}]", "[{loss: test_ce}, {loss: kd}]") for w in more], recipe="kd") == 0
    )
    found: dict[str, Any] = read_json(folder / out / "report.json")["cost"]["student"]["cache"]
    return found


def test_the_command_fills_for_runs_to_read(recipes: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shared = ["--set", f"cache.path={recipes / 'shared'}", "--set", f"teacher.path={recipes / 'live' / 'teacher'}"]
    assert run(recipes, "filled", *shared, command="cache") == 0
    out = capfd.readouterr().out
    assert "24 computed" in out and "logits: fp16, 8 bytes a frame" in out and "kd" in out
    report = cached(recipes, "reads", "--set", f"cache.path={recipes / 'shared'}")
    facts = report["cost"]["student"]["cache"]
    assert facts["computed"] == 0 and facts["found"] == 24 and facts["hit_rate"] == 1.0
    assert not (recipes / "reads" / "cache").exists()
    capfd.readouterr()


def refused(capfd: pytest.CaptureFixture[str], done: Callable[[], int]) -> str:
    capfd.readouterr()
    assert done() == 2
    [line] = capfd.readouterr().err.splitlines()
    return line


def test_what_changes_from_epoch_to_epoch_has_no_clean_view(recipes: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Before anything is trained; replayed it has, and the control sees what the student does."""
    line = refused(capfd, lambda: run(recipes, "noisy", "--set", "cache={}", recipe="toy"))
    assert "cache.view: clean" in line and "changes from epoch to epoch" in line and "cache.view=replay" in line
    assert not (recipes / "noisy").exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("xmodal_kd.runtime.registry.allowed_imports", {"toy"})
        with pytest.raises(UserError, match="from epoch to epoch"):
            list(cached_check(prepare(load(str(recipes / "toy.yaml"), ["cache={}"]), "cpu")))
        [found] = cached_check(prepare(load(str(recipes / "quiet.yaml"), ["cache={}"]), "cpu"))
    assert found.status == "pass" and "alike in every epoch: at most 24" in found.found
    assert run(recipes, "replayed", "--set", "cache={view: replay, epochs: 2}", recipe="toy") == 0
    facts = read_json(recipes / "replayed" / "report.json")["cost"]["student"]["cache"]
    assert facts["computed"] == 48 and facts["loss_error"]["kd"] < 1e-3
    assert run(recipes, "once", "--set", "cache={view: replay, epochs: 1}", recipe="toy") == 0
    controls = [load_file(recipes / out / "control" / "model.safetensors") for out in ("replayed", "once")]
    assert any(not torch.equal(controls[0][name], value) for name, value in controls[1].items())


def test_a_cache_that_cannot_be_is_refused(
    recipes: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = refused(capfd, lambda: run(recipes, "x", "--set", "cache={epochs: 2}"))
    assert "epochs belongs to view: replay" in line
    line = refused(capfd, lambda: run(recipes, "x", "--set", "cache={temperature: 2}"))
    assert "give top_k" in line
    line = refused(capfd, lambda: run(recipes, "x", "--set", "teacher=null", command="cache"))
    assert "the recipe has no teacher" in line
    monkeypatch.setattr(Distil, "cacheable", False)
    assert "choose the method distil" in refused(capfd, lambda: run(recipes, "x", "--set", "cache={}"))
