"""Dead ranks: one of two processes is killed at some moment; the others end, and the run goes on to the same bytes."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from .kills import Baseline, arguments, contents, numbers

TESTS = Path(__file__).parents[1]
#: Seconds until all processes of a run must have ended once one of them died.
PATIENCE = 120


def launched(base: Baseline, out: Path) -> subprocess.Popen[bytes]:
    """Two processes of the run, in a session of their own."""
    words = arguments(base.recipe, base.sets, out, "--resume")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "xmodal_kd"]
    path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*launch, *words], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )


def of_two(base: Baseline, folder: Path) -> Baseline:
    """The undisturbed run of two processes."""
    out = folder / "two"
    shutil.rmtree(out, ignore_errors=True)
    if status := launched(base, out).wait(900):
        raise RuntimeError(f"two processes end with {status}")
    return Baseline(base.recipe, base.sets, out, 0, contents(out), numbers(out))


def dead(draw: random.Random, base: Baseline, out: Path, seconds: float) -> tuple[str, str | None]:
    """Kill a worker after a drawn share of `seconds`, which an undisturbed run takes; go on with two."""
    shutil.rmtree(out, ignore_errors=True)
    process = launched(base, out)
    start, wait = time.monotonic(), draw.uniform(0.2, 0.9) * seconds
    while time.monotonic() - start < wait and process.poll() is None:
        time.sleep(0.05)
    # of one that has ended the number may be another process's by now
    workers = _children(process.pid) if process.poll() is None else []
    what = f"a rank dead after {wait:.0f} s of {seconds:.0f}"
    if workers:
        os.kill(draw.choice(workers), signal.SIGKILL)
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return what, f"the other rank still ran after {PATIENCE} s"
    again = launched(base, out)
    try:
        status = again.wait(900)
    except subprocess.TimeoutExpired:
        os.killpg(again.pid, signal.SIGKILL)
        return what, "--resume did not end"
    return what, f"--resume ends with {status}" if status else base.difference(out)


def _children(process: int) -> list[int]:
    try:
        text = Path(f"/proc/{process}/task/{process}/children").read_text()
    except OSError:
        return []
    return [int(word) for word in text.split()]
