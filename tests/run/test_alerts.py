"""Who is told what becomes of a run; that nobody is told whom the command line does not allow; that no run minds."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from made_up_report import run_folder
from pydantic import ValidationError
from refusals import Capture, fails
from toy import RECIPE

from xmodal_kd.recipe.alerts_spec import Alerts
from xmodal_kd.recipe.recipe import load
from xmodal_kd.run import alerts as module
from xmodal_kd.run.alerts import Teller, check
from xmodal_kd.run.watched import Watched
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.interrupt import Interrupted
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.runtime.run_status import condition
from xmodal_kd.training.finite_check import NotFiniteError


class Inbox(HTTPServer):
    """Keeps what it is told; ``/away`` sends elsewhere, ``/slow`` waits until all is over."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.got: list[tuple[str, Any]] = []
        self.over = Event()

    def at(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"


class _Handler(BaseHTTPRequestHandler):
    server: Inbox

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append((self.path, json.loads(content)))
        if self.path == "/slow":
            self.server.over.wait(20)
        self.send_response(302 if self.path == "/away" else 200)
        self.send_header("Location", self.server.at("/elsewhere"))
        self.end_headers()

    do_GET = do_POST

    def log_message(self, format: str, *args: Any) -> None: ...


@pytest.fixture
def inbox() -> Iterator[Inbox]:
    with Inbox() as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.over.set()
        server.shutdown()
        thread.join()


def teller(**hooks: Any) -> Teller:
    return Teller(Alerts.model_validate(hooks), {"run": "here"})


def test_an_event_is_posted_as_json(inbox: Inbox) -> None:
    made = teller(done=[{"webhook": inbox.at("/a")}, {"webhook": inbox.at("/b")}], failed={"webhook": inbox.at("/c")})
    made.tell("done", values={"student": 0.5})
    made.wait()
    expected = {"event": "done", "run": "here", "values": {"student": 0.5}}
    assert sorted(inbox.got, key=lambda one: one[0]) == [("/a", expected), ("/b", expected)]


def test_a_command_gets_it_on_its_input(tmp_path: Path) -> None:
    made = teller(failed={"command": ["cp", "/dev/stdin", str(tmp_path / "$HOME; told")]})
    made.tell("failed", why="no more disk")
    made.wait()
    told = json.loads((tmp_path / "$HOME; told").read_text())  # no shell has seen it
    assert told == {"event": "failed", "run": "here", "why": "no more disk"}


@pytest.mark.parametrize("how", ["nobody there", "elsewhere", "too slow", "no such program", "status", "no end"])
def test_a_hook_that_fails_is_a_line(how: str, inbox: Inbox, tmp_path: Path, capfd: Capture) -> None:
    child = f"import subprocess; subprocess.Popen(['sh', '-c', 'sleep 0.6; touch {tmp_path}/late']).wait()"
    hook, said = {
        "nobody there": ({"webhook": "http://127.0.0.1:1/x"}, "refused"),
        "elsewhere": ({"webhook": inbox.at("/away")}, "302|Found"),
        "too slow": ({"webhook": inbox.at("/slow"), "timeout": 0.1}, "timed out"),
        "no such program": ({"command": ["no-such-program"]}, "No such file"),
        "status": ({"command": ["false"]}, "exit status 1"),
        "no end": ({"command": [sys.executable, "-c", child], "timeout": 0.3}, "no end within 0.3 s"),
    }[how]
    made = teller(nan=hook)
    made.tell("nan")
    made.wait()
    line = capfd.readouterr().err
    assert line.startswith("on.nan: ") and line.count("\n") == 1 and any(one in line for one in said.split("|"))
    assert "/elsewhere" not in [path for path, _ in inbox.got]
    inbox.over.wait(0.5 if how == "no end" else 0)
    assert not (tmp_path / "late").exists(), "what it had started lives on"


def test_a_plateau_is_told_when_it_is_that_long(inbox: Inbox) -> None:
    made = teller(plateau={"evaluations": 2, "webhook": inbox.at("/p")})
    for bad in (0, 1, 2, 3, 0, 1, 2):
        made.evaluated("student", bad, step=7)
    made.wait()
    expected = {"event": "plateau", "run": "here", "role": "student", "evaluations": 2, "step": 7}
    assert inbox.got == [("/p", expected)] * 2


def test_what_a_run_tells_at_its_end(inbox: Inbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "allowed_hooks", {"127.0.0.1"})
    (tmp_path / "toy.yaml").write_text(RECIPE)
    hooks = {event: {"webhook": inbox.at(f"/{event}")} for event in ("done", "failed", "nan")}
    loaded = load(str(tmp_path / "toy.yaml"), [f"on={json.dumps(hooks)}"])
    ends: list[tuple[BaseException | None, str, list[str]]] = [
        (None, "finished", ["/done"]), (Interrupted(3, 9, "interrupted"), "stopped", []),
        (UserError("the disk is full"), "failed", ["/failed"]), (NotFiniteError("inf"), "failed", ["/failed", "/nan"]),
    ]  # fmt: skip
    for i, (error, state, told) in enumerate(ends):
        out = run_folder(tmp_path / str(i))
        watched = Watched(out, loaded, ("wer", True), Streams(1))
        try:
            with watched.telling((), whole=True):
                if error is not None:
                    raise error
        except BaseException as raised:
            assert raised is error
        assert condition(out)[0] == state and sorted(path for path, _ in inbox.got) == told
        if error is None:
            assert inbox.got[0][1]["values"] == {"teacher": 0.1, "control": 0.4, "student": 0.2}
        inbox.got.clear()


@pytest.mark.parametrize(
    ("hook", "allow"),
    [({"webhook": "https://chat.example/secret"}, "chat.example"), ({"command": ["sh", "-c", "x"]}, "'sh -c x'")],
)
def test_a_recipe_of_somebody_else_tells_nobody(
    hook: dict[str, Any], allow: str, tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "allowed_hooks", {"sh", "chat.example.org"})
    (tmp_path / "toy.yaml").write_text(RECIPE)
    run = ["run", str(tmp_path / "toy.yaml"), "--out", str(tmp_path / "run"), "--allow-import", "toy"]
    line = fails(capfd, 2, *run, "--set", f"on.failed={json.dumps(hook)}")
    assert f"allow it with --allow-hook {allow}" in line and "secret" not in line and not (tmp_path / "run").exists()
    monkeypatch.setattr(module, "allowed_hooks", {allow.strip("'")})
    check(Alerts.model_validate({"failed": hook}))


@pytest.mark.parametrize(
    "wrong",
    [
        {"done": {}}, {"done": {"webhook": "ftp://x"}}, {"done": {"webhook": "https://x", "command": ["y"]}},
        {"done": {"command": "rm -rf /"}}, {"done": {"command": []}}, {"plateau": {"command": ["y"]}},
        {"done": {"webhook": "file:///etc/passwd"}}, {"done": {"webhook": "https://x\r\nX: y"}}, {"end": {}},
        {"done": {"webhook": "http://x:99999999/"}},
    ],
)  # fmt: skip
def test_hooks_that_are_none_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Alerts.model_validate(wrong)


def test_alerts_decide_nothing_of_a_result(tmp_path: Path) -> None:
    (tmp_path / "toy.yaml").write_text(RECIPE)
    plain, told = (load(str(tmp_path / "toy.yaml"), sets) for sets in ([], ['on.done={"command": ["x"]}']))
    assert plain.recipe.fingerprint() == told.recipe.fingerprint() and told.recipe.on.done[0].command == ("x",)


def test_editors_take_one_hook_and_several() -> None:
    done = Alerts.model_json_schema()["properties"]["done"]["anyOf"]
    assert {one.get("type", "one") for one in done} == {"one", "array"}
