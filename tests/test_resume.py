"""A stopped run that goes on ends with the same student to the bit, however it was stopped."""

from __future__ import annotations

import contextlib
import io
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from launch import FORKS
from safetensors.torch import load_file
from toy import RECIPE, adapter, engine, roles

import xmodal_kd
from xmodal_kd.checkpoint import Checkpoints, digest, read_json
from xmodal_kd.cli import call
from xmodal_kd.engine import Engine
from xmodal_kd.errors import UserError
from xmodal_kd.interrupt import Interrupted
from xmodal_kd.recipe import Optimizer, Train

ROOT = Path(xmodal_kd.__file__).parents[1]
STEPS = 6


def made(folder: Path, workers: int) -> Engine:
    config = Train(
        steps=STEPS, batch_size=8, ema=0.8, workers=workers, optimizer=Optimizer(lr=1e-2, weight_decay=0.1),
        eval_every=2, checkpoint_every=1, keep=2,
    )  # fmt: skip
    toy = adapter(batch_size=8)
    models = roles(toy, student={"dropout": 0.3, "batch_norm": True})
    return engine(
        folder, config, toy=toy, models=models, metric=("loss", True),
        evaluate=lambda model: toy.evaluate("student", model, "dev").metrics,
    )  # fmt: skip


def weights(built: Engine) -> tuple[str, ...]:
    owners = (built.roles["student"], built.roles["average"], built.method.objective)
    return tuple(digest(owner.state_dict().items()) for owner in owners)


@pytest.mark.parametrize("workers", [0, 2])
def test_resumes_to_the_bit_from_every_checkpoint(tmp_path: Path, workers: int) -> None:
    """With dropout, BatchNorm, a projector, an average, AdamW, and whatever number of workers."""
    whole = made(tmp_path / "whole", workers=0)
    whole.fit()
    expected, curve = weights(whole), whole.at.evaluations
    for step in range(1, STEPS + 1) if workers == 0 else (2, 5):
        folder = tmp_path / f"stopped{step}"
        stopped = made(folder, workers)
        _stop_after(stopped, step)
        with pytest.raises(Interrupted):
            stopped.fit()
        again = made(folder, workers)
        again.fit(resume=True)
        assert weights(again) == expected, step
        assert again.at.evaluations == curve
        assert again.log.path.read_text().count("\n") == whole.log.path.read_text().count("\n")


def _stop_after(built: Engine, step: int) -> None:
    milestones = built._milestones

    def patched(*args: Any) -> None:
        if built.at.total == step:
            os.kill(os.getpid(), signal.SIGINT)
        milestones(*args)

    built._milestones = patched


def test_a_checkpoint_of_other_parameters_is_refused(tmp_path: Path) -> None:
    made(tmp_path, 0).fit()
    models = roles(adapter(), student={"width": 9, "batch_norm": True})
    other = engine(tmp_path, Train(steps=2, batch_size=8), models=models)
    with pytest.raises(UserError, match=r"'body\.0\.bias' is \(8,\), the model's \(9,\)"):
        other.fit(resume=True)


def test_what_a_kill_left_is_tidied(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3):
        checkpoints.save(step, {}, {"step": step})
    checkpoints.save_best({}, {"step": 2})
    (tmp_path / "step-00000004").mkdir()  # half removed, or copied without its state
    (tmp_path / ".step-00000005.1.tmp").mkdir()
    checkpoints.best().rename(tmp_path / ".best.old")  # killed while the best was stepping aside
    checkpoints.tidy()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best", "step-00000002", "step-00000003"]
    assert checkpoints.latest() == tmp_path / "step-00000003"


# ---------------------------------------------------------------- whole runs, in processes of their own


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "toy.yaml"
    path.write_text(RECIPE)
    return path


def command(recipe: Path, out: Path, *more: str) -> list[str]:
    return ["run", str(recipe), "--out", str(out), "--allow-import", "toy", "--device", "cpu", "--quiet", *more]


@pytest.fixture(scope="module")
def whole(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """An uninterrupted run, and how many seconds it took."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert _run(["--version"]) == 0  # the server that forks has its imports now
    start = time.monotonic()
    assert _run(command(recipe, out)) == 0
    return out, time.monotonic() - start


def _run(arguments: list[str], before: Callable[..., None] | None = None, *args: Any) -> int:
    """The command line in a process of its own: its status, or minus the signal that killed it."""
    return _said(arguments, before, *args)[0]


def _said(arguments: list[str], before: Callable[..., None] | None = None, *args: Any) -> tuple[int, str]:
    """As `_run`, with what it wrote to stderr."""
    ours, theirs = FORKS.Pipe(duplex=False)
    process = FORKS.Process(target=_child, args=(theirs, arguments, before, args))
    process.start()
    theirs.close()
    try:
        text = ours.recv()
    except EOFError:  # killed
        text = ""
    process.join(100)
    assert process.exitcode is not None
    return process.exitcode, text


def _child(pipe: Any, arguments: list[str], before: Callable[..., None] | None, args: tuple[Any, ...]) -> None:
    if before is not None:
        before(*args)
    sys.stderr, sys.stdout = io.StringIO(), io.StringIO()
    status = call(arguments)
    pipe.send(sys.stderr.getvalue())
    os._exit(status)


def _kill_at(number: int) -> None:
    """SIGKILL in place of the `number`-th write to the disk: half of them inside a checkpoint."""
    import xmodal_kd.checkpoint as module

    fsync, calls = os.fsync, 0

    def killing(file: int) -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(file)

    module.os.fsync = killing


def same(out: Path, whole: Path) -> None:
    for role in ("teacher", "control", "student"):
        one, other = (folder / role / "model.safetensors" for folder in (out, whole))
        assert one.read_bytes() == other.read_bytes(), role
    mine, theirs = read_json(out / "report.json"), read_json(whole / "report.json")
    assert {k: v["metrics"] for k, v in mine["roles"].items()} == {k: v["metrics"] for k, v in theirs["roles"].items()}
    assert mine["gap_closed"] == theirs["gap_closed"]
    assert {k: v["samples"] for k, v in mine["cost"].items() if isinstance(v, dict)} == {
        k: v["samples"] for k, v in theirs["cost"].items() if isinstance(v, dict)
    }


def test_killed_at_fixed_writes(recipe: Path, whole: tuple[Path, float], tmp_path: Path) -> None:
    """One run, killed again and again: while its folder is opened, within checkpoints, between roles."""
    for number in (1, 2, 5, 8, 3, 13):
        assert _run(command(recipe, tmp_path / "run", "--resume"), _kill_at, number) == -signal.SIGKILL
    assert _run(command(recipe, tmp_path / "run", "--resume")) == 0
    same(tmp_path / "run", whole[0])


def test_killed_at_random_moments(recipe: Path, whole: tuple[Path, float], tmp_path: Path) -> None:
    draw, kills = random.Random(7), 0
    for _ in range(5):
        pipe = FORKS.Pipe()[1]
        process = FORKS.Process(target=_child, args=(pipe, command(recipe, tmp_path / "run", "--resume"), None, ()))
        process.start()
        process.join(draw.uniform(0.1, 0.6) * whole[1])
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
    assert kills > 2
    assert _run(command(recipe, tmp_path / "run", "--resume")) == 0
    same(tmp_path / "run", whole[0])


def _limit(size: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@pytest.mark.parametrize("size", [2000, 9000])
def test_disk_full(recipe: Path, whole: tuple[Path, float], tmp_path: Path, size: int) -> None:
    """Nothing is lost but what could not be written; with space again the run goes on."""
    out = tmp_path / "run"
    assert _run([*command(recipe, out, "--only", "teacher"), "--set", "trackers=[]"]) == 0
    teacher = (out / "teacher" / "model.safetensors").read_bytes()
    status, text = _said([*command(recipe, out, "--resume"), "--set", "trackers=[]"], _limit, size)
    [line] = text.splitlines()
    assert status == 2
    assert "cannot write" in line and str(out) in line and "the disk is full" in line and "--resume" in line
    assert not list(out.rglob("*.tmp"))
    assert (out / "teacher" / "model.safetensors").read_bytes() == teacher
    for state in out.rglob("state.json"):
        read_json(state)
    assert _run([*command(recipe, out, "--resume"), "--set", "trackers=[]"]) == 0
    same(out, whole[0])


def test_disk_full_for_the_tracker(recipe: Path, tmp_path: Path) -> None:
    """TensorBoard's thread prints what it likes; our line comes last."""
    long = "teacher.train={steps: 300, batch_size: 6, checkpoint_every: 300}"
    status, text = _said(
        command(recipe, tmp_path / "run", "--set", long, "--set", "teacher.params.width=2"), _limit, 4500
    )
    assert status == 2
    assert "/logs: the disk is full" in text.splitlines()[-1]


@contextlib.contextmanager
def program(recipe: Path, out: Path, *more: str) -> Iterator[subprocess.Popen[str]]:
    """The program as a shell starts it."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "xmodal_kd", *command(recipe, out, *more)],
        cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        yield process


def test_interrupted_and_killed_from_a_shell(recipe: Path, tmp_path: Path) -> None:
    out, long = tmp_path / "run", ["--set", "teacher.train.steps=100", "--set", "teacher.train.eval_every=20"]
    with program(recipe, out, *long) as process:
        _wait_for(out / "checkpoints" / "teacher" / "best")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted at step" in errors and "--resume" in errors and len(errors.splitlines()) == 1
    with program(recipe, out, "--resume", *long) as process:
        _wait_for(out / "checkpoints" / "control" / "step-00000002")
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert _run(command(recipe, out, "--resume", *long)) == 0
    assert _run(command(recipe, tmp_path / "whole", *long)) == 0
    same(out, tmp_path / "whole")


def _wait_for(path: Path) -> None:
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end, f"{path} never appeared"
        time.sleep(0.005)


# ---------------------------------------------------------------- folders


def test_a_folder_that_holds_a_run_is_refused(
    recipe: Path, whole: tuple[Path, float], capfd: pytest.CaptureFixture[str]
) -> None:
    assert call(command(recipe, whole[0])) == 2
    [line] = capfd.readouterr().err.splitlines()
    assert "holds a run already: --resume goes on with it" in line


def test_a_run_of_another_recipe_is_refused(
    recipe: Path, whole: tuple[Path, float], capfd: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in whole[0].rglob("*") if path.is_file()}
    assert call([*command(recipe, whole[0], "--resume"), "--set", "train.optimizer.lr=0.5"]) == 2
    [line] = capfd.readouterr().err.splitlines()
    assert "was started with another recipe (train.optimizer.lr was 0.02, is 0.5)" in line
    assert {path: path.read_bytes() for path in whole[0].rglob("*") if path.is_file()} == before


def test_a_folder_of_something_else_is_refused(recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.tex").write_text("")
    assert call(command(recipe, tmp_path)) == 2
    assert "is not empty and not a run" in capfd.readouterr().err


def test_resuming_a_finished_run_changes_nothing(recipe: Path, whole: tuple[Path, float]) -> None:
    student = load_file(whole[0] / "student" / "model.safetensors")
    metrics = read_json(whole[0] / "report.json")["roles"]
    assert _run(command(recipe, whole[0], "--resume")) == 0
    again = load_file(whole[0] / "student" / "model.safetensors")
    assert digest(student.items()) == digest(again.items())
    assert read_json(whole[0] / "report.json")["roles"] == metrics


def test_the_clock_stops_a_run_which_then_goes_on(recipe: Path, whole: tuple[Path, float], tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert _run(command(recipe, out, "--max-minutes", "0")) == 0
    assert not (out / "report.json").exists()
    assert (out / "checkpoints" / "teacher" / "step-00000001").exists()
    assert _run(command(recipe, out, "--resume")) == 0
    same(out, whole[0])
