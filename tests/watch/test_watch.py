"""A page that shows a run while it is at work: finished, running, failed, killed, or put there by a stranger."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from threading import Thread
from time import time
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from browser import CHROMIUM, Browser
from made_up_report import run_folder, shown
from refusals import Capture, fails

from xmodal_kd.adapter import moments
from xmodal_kd.adapter.moments import Moment, Moments, laid_over, thinned
from xmodal_kd.adapter.panels import Panel
from xmodal_kd.cli.main import call
from xmodal_kd.runtime import run_status
from xmodal_kd.watch.look import look, signature
from xmodal_kd.watch.page import parts, size, span
from xmodal_kd.watch.server import Server

EVIL = "\"><script>alert(1)</script><img src=x onerror='alert(1)'>"
ABOUT: dict[str, Any] = {
    "recipe": "speech/tiny", "modality": "speech", "method": "distil", "seed": 3, "metric": "wer",
    "lower_is_better": True,
}  # fmt: skip


def tell(folder: Path, role: str, step: int, steps: int, **changes: Any) -> None:
    """``progress.json`` and log of a training, as it stands at `step`."""
    place = folder / "checkpoints" / role
    place.mkdir(parents=True, exist_ok=True)
    dev = [{"step": s, "value": 1 - s / (2 * steps)} for s in range(10, step + 1, 10)]
    run_status.write(place / run_status.PROGRESS, {
        "step": step, "steps": steps, "stage": 0, "stages": 1, "seconds": 4.0 * step, "step_seconds": 4.0, "dev": dev,
        "best_at": dev[-1]["step"] if dev else None, "written": time(),
        "machine": {"device": "cpu", "name": "x86", "peak": 2**30, "capacity": 2**34}, **changes,
    })  # fmt: skip
    lines = [{"step": s, "ctc": 30.0 / s, "lr/student": 0.1} for s in range(1, step + 1)]
    (place / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def running(tmp_path: Path) -> Path:
    """A run whose process lives, which is this one: the teacher is loaded, the control done, the student learns."""
    folder = tmp_path / "runs" / "now"
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text("modality: speech\n")
    trained = {"steps": 40, "seconds": 160.0, "dev": [{"step": 40, "wer": 0.5}], "best_step": 40}
    (folder / "state.json").write_text(json.dumps({"roles": {"teacher": {}, "control": {"training": trained}}}))
    run_status.began(folder, ABOUT, [("teacher", 0), ("control", 40), ("student", 40), ("self_training", 40)])
    tell(folder, "control", 40, 40)
    tell(folder, "student", 20, 40)
    for role in ("control", "student"):
        kept = Moments(folder, role)
        for step in (10, 20):
            kept.add(step, of(role))
    (folder / ".lock").write_text(json.dumps({"host": socket.gethostname(), "process": os.getpid()}))
    return folder


def of(role: str) -> list[Panel]:
    """Panels that show one role."""
    found, _ = shown()
    return [Panel(**json.loads(json.dumps(vars(panel)).replace("student", role))) for panel in found]


def text_of(folder: Path) -> str:
    return "".join(parts(folder, 0).values())


# ---------------------------------------------------------------- what a folder says


def test_a_run_at_work_says_what_it_does_and_how_long_it_takes(running: Path) -> None:
    found = look(running)
    assert (found.state, found.metric, list(found.trainings)) == (
        "running", "wer", ["teacher", "control", "student", "self_training"],
    )  # fmt: skip
    assert found.learning is not None and (found.learning.role, found.learning.step) == ("student", 20)
    assert found.learning.progress is not None and found.learning.progress.seconds_left == 80
    assert found.seconds_left == 240  # its own 20 steps, and 40 of the one that comes
    text = text_of(running)
    for said in (
        "student, step 20 of 40", "80 s", "4 min", "a model that is loaded", "40 of 40 steps, 3 min", "waiting",
        "best 0.75 at step 20", 'class="best of-student"', "wer on dev", ">ctc<", "1 GiB", "modality: speech",
    ):  # fmt: skip
        assert said in text, said


def test_a_role_that_has_learned_is_measured(running: Path) -> None:
    tell(running, "student", 40, 40)
    assert "the student has learned its 40 steps and is measured" in parts(running, 0)["run-0-now"]


@pytest.mark.parametrize(
    ("how", "state", "why"),
    [
        ("finished", "finished", ""), ("failed", "failed", "the disk"), ("stopped", "stopped", "interrupted at step 3"),
        ("killed", "killed", "--resume goes on"), ("elsewhere", "running", ""), ("silent", "killed", "--resume"),
    ],
)  # fmt: skip
def test_how_a_run_ended(how: str, state: str, why: str, running: Path) -> None:
    lock = running / ".lock"
    if how in ("finished", "failed", "stopped"):
        run_status.ended(running, how, why)  # type: ignore[arg-type]
        lock.unlink()
    elif how == "killed":  # the number of a process that there is not
        lock.write_text(json.dumps({"host": socket.gethostname(), "process": 2**22 + 1}))
    else:
        lock.write_text(json.dumps({"host": "another", "process": 1}))
        if how == "silent":
            os.utime(lock, (1e9, 1e9))
    found = run_status.condition(running)
    assert found[0] == state and why in found[1]
    assert f"badge {state}" in text_of(running)


def test_a_run_of_an_earlier_version_has_no_status(running: Path) -> None:
    for path in (running / run_status.STATUS, running / ".lock", *running.rglob(run_status.PROGRESS)):
        path.unlink()
    found = look(running)
    assert found.state == "killed" and found.metric == "wer" and found.trainings["student"].step == 20
    assert found.trainings["control"].dev.points == [(40, 0.5)] and "control, best 0.5 at step 40" in text_of(running)


def test_a_finished_run_shows_its_result_and_what_its_page_shows(tmp_path: Path) -> None:
    text = text_of(run_folder(tmp_path / "tiny"))
    for said in ("badge finished", "wer on test", "67 %", "Points", "Heard", "Samples", "20 of 20 steps"):
        assert said in text, said


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, capfd: Capture) -> None:
    assert "no run is there" in fails(capfd, 2, "watch", str(tmp_path / "nowhere"))
    assert "nor in its folders" in fails(capfd, 2, "watch", str(tmp_path))


def test_times_and_sizes_as_people_say_them() -> None:
    assert [span(s) for s in (8, 600, 12_000, 400_000)] == ["8 s", "10 min", "3 h 20 min", "4.6 days"]
    assert [size(b) for b in (2**29, 3 * 2**29)] == ["512 MiB", "1.5 GiB"]


# ---------------------------------------------------------------- what is shown while it learns


def test_moments_are_thinned_evenly_and_keep_sound_once(tmp_path: Path) -> None:
    kept = Moments(tmp_path, "student")
    for step in range(10, 210, 10):
        kept.add(step, of("student"))
    found = moments.read(tmp_path, "student")
    steps = [one.step for one in found]
    assert len(steps) == moments.MOST and steps[0] == 10 and steps[-1] == 200
    assert max(b - a for a, b in pairwise(steps)) <= 60
    heard = [one.panels[1].content["items"][0]["sound"] is not None for one in found]
    assert heard == [False] * 7 + [True]
    assert [one.step for one in Moments(tmp_path, "student", 100).kept] == [s for s in steps if s <= 100]
    assert thinned([Moment(s, ()) for s in (1, 2, 3)]) == [Moment(s, ()) for s in (1, 2, 3)]


def test_roles_and_steps_are_laid_over_each_other(running: Path) -> None:
    kept = {role: moments.read(running, role) for role in ("control", "student")}
    cloud, heard, samples = laid_over(kept)
    names = ["control 20", "student 10", "student 20"]
    assert [view["name"] for view in cloud.content["views"]] == ["labels", *names] and cloud.content["xyz"]
    [item] = heard.content["items"]
    assert list(item["said"]) == list(item["traces"]) == names and item["sound"]
    assert [row["name"] for row in samples.content["rows"]] == ["step 10", "step 20"]
    assert list(samples.content["rows"][0]["cells"]) == ["control", "student"]


# ---------------------------------------------------------------- somebody else's


def test_nothing_of_a_folder_becomes_markup(running: Path) -> None:
    bad = running.rename(running.parent / EVIL.replace("/", ""))
    spoiled = {key: EVIL if isinstance(value, str) else value for key, value in ABOUT.items()}
    run_status.began(bad, spoiled, [(EVIL, 10), ("../../etc", 10), ("student", 40)])
    run_status.ended(bad, "failed", EVIL)
    (bad / ".lock").unlink()
    tell(bad, "student", 20, 40, machine={"device": EVIL, "name": EVIL, "peak": 1, "capacity": 2})
    log = bad / "checkpoints/student/log.jsonl"
    log.write_text(log.read_text().replace("ctc", EVIL.replace('"', '\\"')))
    path = bad / "watch/student.json"
    path.write_text(path.read_text().replace('"note": ""', f'"note": {json.dumps(EVIL)}').replace('"u1"', '"<b>u1"'))
    text = text_of(bad)
    assert "alert(1)" in text and "<img src=x" not in text and "<b>u1" not in text and "style=" not in text
    assert set(re.findall(r"<script[^>]*>", text)) == {'<script type="application/json">'}


@pytest.mark.parametrize("junk", ["", "[]", "\xff", '{"roles": [1], "moments": [1]}'])
def test_a_damaged_file_costs_its_own_part_at_most(junk: str, running: Path) -> None:
    run_folder(running.parent / "done")
    for folder in (running, running.parent / "done"):
        for path in sorted(one for one in folder.rglob("*") if one.suffix in (".json", ".jsonl", ".yaml")):
            was = path.read_bytes()
            path.write_bytes(junk.encode("latin-1"))
            assert "<h1>" in parts(folder, 0)["run-0-now"], path
            path.write_bytes(was)


def test_files_outside_the_folder_are_not_read(running: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.jsonl").write_text('{"step": 1, "secret": 5}\n')
    log = running / "checkpoints/student/log.jsonl"
    log.unlink()
    log.symlink_to(tmp_path / "secret.jsonl")
    assert "secret" not in text_of(running)
    log.unlink()
    os.mkfifo(log)  # which would block whoever opens it
    assert look(running).trainings["student"].log == []


# ---------------------------------------------------------------- the command and the server


def test_the_page_is_made_without_torch(running: Path, tmp_path: Path) -> None:
    code = (
        "import sys, resource; from xmodal_kd.cli.main import call;"
        f"assert call(['watch', {str(running)!r}, '--once', {str(tmp_path / 'x.html')!r}]) == 0;"
        "used = resource.getrusage(resource.RUSAGE_SELF); print(used.ru_utime + used.ru_stime, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, torch_ = done.stdout.split()[-2:]
    assert torch_ == "False" and float(seconds) < 4  # two on an idle machine
    text = (tmp_path / "x.html").read_text()
    assert "connect-src 'none'" in text and "fetch(" not in text


@contextmanager
def serving(*folders: Path) -> Iterator[str]:
    with Server(folders) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server.address
        finally:
            server.shutdown()
            thread.join()


def asked(address: str, **headers: str) -> str:
    with urlopen(Request(address, headers=headers), timeout=20) as answer:
        return str(answer.read().decode())


def test_only_what_is_new_is_sent(running: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xmodal_kd.watch.server.BETWEEN", 0.0)
    monkeypatch.setattr("xmodal_kd.watch.server.SHARE", 1e9)
    with serving(running) as address:
        page = asked(address)
        assert "connect-src 'self'" in page and "fetch(" in page
        known = "&".join(f"{key}={value}" for key, value in re.findall(r'id="([\w-]+)" data-digest="(\w+)"', page))
        assert json.loads(asked(f"{address}now?{known}"))["html"] == {}
        before = signature(running)
        tell(running, "student", 30, 40)
        assert signature(running) != before
        news = json.loads(asked(f"{address}now?{known}"))
        assert set(news["html"]) == {"run-0-now", "run-0-roles", "run-0-learning"}
        assert "step 30 of 40" in news["html"]["run-0-now"]
        for wrong, status in (({"Host": "evil.example"}, 403), ({}, 404)):
            with pytest.raises(HTTPError, match=str(status)) as refused:
                asked(f"{address}{'' if wrong else 'recipe.yaml'}", **wrong)
            refused.value.close()


def test_a_port_that_is_taken_is_named(running: Path, capfd: Capture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"--port {port}" in fails(capfd, 2, "watch", str(running), "--port", port)


def test_a_folder_of_runs_is_one_page_of_them_all(running: Path, tmp_path: Path) -> None:
    run_folder(running.parent / "done")
    assert call(["watch", str(running.parent), "--once", str(tmp_path / "x.html")]) == 0
    text = (tmp_path / "x.html").read_text()
    assert "<h1>done</h1>" in text and "<h1>now</h1>" in text and 'id="run-1-learning"' in text


#: Waits until the page says what it has been told meanwhile, and tells what a reader would see.
PROBE = """
(async () => {
  window.mine = "still here";
  document.querySelector("[data-mode=errors]").click();
  const said = () => document.querySelector("#run-0-now").textContent;
  for (let i = 0; i < 400 && !said().includes("step 30"); i++) await new Promise((go) => setTimeout(go, 50));
  await new Promise((go) => requestAnimationFrame(() => requestAnimationFrame(go)));
  return {
    said: said(), mine: window.mine, gone: document.querySelector(".gone").hidden,
    mode: document.querySelector("[data-mode=errors]").getAttribute("aria-pressed"),
    readings: document.querySelectorAll("#run-0-learning .reading").length,
    plots: [...document.querySelectorAll("svg.plot")].filter((s) => s.getBoundingClientRect().height > 100).length,
    views: document.querySelectorAll("canvas").length, wide: document.documentElement.scrollWidth - innerWidth,
  };
})()
"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")
def test_a_browser_shows_the_page_growing_at_phone_and_desktop_width(running: Path, tmp_path: Path) -> None:
    with serving(running) as address, Browser(tmp_path / "browser") as browser:
        for width in (1280, 390):
            tell(running, "student", 20, 40)
            browser.open(address, width=width)
            tell(running, "student", 30, 40)
            found = browser.evaluate(PROBE)
            assert [one for one in browser.complaints() if "willReadFrequently" not in one] == []
            assert "step 30 of 40" in found["said"] and found["mine"] == "still here" and found["gone"]
            assert found["mode"] == "true" and found["views"] == 4 and found["wide"] <= 0
            assert found["plots"] >= 2 and found["readings"] == 3  # what is put in anew is enlivened
