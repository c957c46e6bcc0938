"""A stopped run that goes on ends with the same student to the bit, however it was stopped."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from killed_runs import child, command, kill_at, run, said, same
from launch import FORKS
from safetensors.torch import load_file
from toy import RECIPE, adapter, engine, roles

import xmodal_kd
from xmodal_kd.cli.main import call
from xmodal_kd.recipe.recipe import Optimizer, Train
from xmodal_kd.runtime.checkpoint import digest, read_json
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.interrupt import Interrupted
from xmodal_kd.runtime.saved_steps import Checkpoints
from xmodal_kd.training.engine import Engine

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
    other = engine(tmp_path, Train(steps=STEPS, batch_size=8), models=models)
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


@pytest.fixture(scope="module")
def whole(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """An uninterrupted run, and how many seconds it took."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert run(["--version"]) == 0  # the server that forks has its imports now
    start = time.monotonic()
    assert run(command(recipe, out)) == 0
    return out, time.monotonic() - start


def test_killed_at_fixed_writes(recipe: Path, whole: tuple[Path, float], tmp_path: Path) -> None:
    """One run, killed again and again: while its folder is opened, within checkpoints, between roles."""
    for number in (1, 2, 5, 8, 3, 13):
        assert run(command(recipe, tmp_path / "run", "--resume"), kill_at, number) == -signal.SIGKILL
    assert run(command(recipe, tmp_path / "run", "--resume")) == 0
    same(tmp_path / "run", whole[0])


def test_killed_at_random_moments(recipe: Path, whole: tuple[Path, float], tmp_path: Path) -> None:
    draw, kills = random.Random(7), 0
    for _ in range(5):
        pipe = FORKS.Pipe()[1]
        process = FORKS.Process(target=child, args=(pipe, command(recipe, tmp_path / "run", "--resume"), None, ()))
        process.start()
        process.join(draw.uniform(0.1, 0.6) * whole[1])
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
    assert kills  # how many of the five depends on how long the whole run took beside other tests
    assert run(command(recipe, tmp_path / "run", "--resume")) == 0
    same(tmp_path / "run", whole[0])


def _limit(size: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@pytest.mark.parametrize("size", [2000, 9000])
def test_disk_full(recipe: Path, whole: tuple[Path, float], tmp_path: Path, size: int) -> None:
    """Nothing is lost but what could not be written; with space again the run goes on."""
    out = tmp_path / "run"
    assert run([*command(recipe, out, "--only", "teacher"), "--set", "trackers=[]"]) == 0
    teacher = (out / "teacher" / "model.safetensors").read_bytes()
    status, text = said([*command(recipe, out, "--resume"), "--set", "trackers=[]"], _limit, size)
    [line] = text.splitlines()
    assert status == 2
    assert "cannot write" in line and str(out) in line and "the disk is full" in line and "--resume" in line
    assert not list(out.rglob("*.tmp"))
    assert (out / "teacher" / "model.safetensors").read_bytes() == teacher
    for state in out.rglob("state.json"):
        read_json(state)
    assert run([*command(recipe, out, "--resume"), "--set", "trackers=[]"]) == 0
    same(out, whole[0])


def test_disk_full_for_the_tracker(recipe: Path, tmp_path: Path) -> None:
    """TensorBoard's thread prints what it likes; our line comes last."""
    long = "teacher.train={steps: 300, batch_size: 6, checkpoint_every: 300}"
    status, text = said(
        command(recipe, tmp_path / "run", "--set", long, "--set", "teacher.params.width=2"), _limit, 4500
    )
    assert status == 2
    assert "/logs: the disk is full" in text.splitlines()[-1]


@contextlib.contextmanager
def program(recipe: Path, out: Path, *more: str) -> Iterator[subprocess.Popen[str]]:
    """The program as a shell starts it."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
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
    assert run(command(recipe, out, "--resume", *long)) == 0
    assert run(command(recipe, tmp_path / "whole", *long)) == 0
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
    assert run(command(recipe, whole[0], "--resume")) == 0
    again = load_file(whole[0] / "student" / "model.safetensors")
    assert digest(student.items()) == digest(again.items())
    assert read_json(whole[0] / "report.json")["roles"] == metrics


def test_the_clock_stops_a_run_which_then_goes_on(recipe: Path, whole: tuple[Path, float], tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert run(command(recipe, out, "--max-minutes", "0")) == 0
    assert not (out / "report.json").exists()
    assert (out / "checkpoints" / "teacher" / "step-00000001").exists()
    assert run(command(recipe, out, "--resume")) == 0
    same(out, whole[0])
