"""A student goes to a repository and comes back from it; a stand-in for the Hub speaks what its library does."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
import soundfile
import torch
from huggingface_hub import ModelCard, close_session, constants
from made_up_report import content
from refusals import Capture, fails

from xmodal_kd.adapter import hub
from xmodal_kd.cli.main import call
from xmodal_kd.modalities.speech.adapter import SpeechAdapter
from xmodal_kd.modalities.speech.data.corpora import SpeechData
from xmodal_kd.modalities.speech.export.saved_folder import write_program
from xmodal_kd.modalities.speech.use.transcribe import Recogniser
from xmodal_kd.report import model_cards as cards
from xmodal_kd.runtime.checkpoint import read_json
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams

SHA = "0123456789abcdef0123456789abcdef01234567"


class Standin(ThreadingHTTPServer):
    """Keeps repositories in memory; whoever has the token may write."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.made: list[dict[str, Any]] = []
        self.commits = 0


class _Handler(BaseHTTPRequestHandler):
    server: Standin

    def do_POST(self) -> None:
        path, said = urlsplit(self.path).path, self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Authorization") != "Bearer hf_right":
            return self._answer(401, {"error": "Invalid user token."})
        if path == "/api/validate-yaml":  # of a card's front matter
            return self._answer(200, {"errors": [], "warnings": []})
        if path == "/api/repos/create":
            self.server.made.append(json.loads(said))
            repo = "/".join(json.loads(said)[key] for key in ("organization", "name"))
            self.server.repos.setdefault(repo, {})
            return self._answer(200, {"url": f"http://{self.headers['Host']}/{repo}"})
        _, _, _, owner, name, what, *_ = path.split("/")
        if what == "preupload":
            files = [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                     for one in json.loads(said)["files"]]  # fmt: skip
            return self._answer(200, {"files": files})
        for line in map(json.loads, said.splitlines()):
            if line["key"] == "file":
                value = line["value"]
                self.server.repos[f"{owner}/{name}"][value["path"]] = base64.b64decode(value["content"])
        self.server.commits += 1
        url = f"http://{self.headers['Host']}/{owner}/{name}/commit/{SHA}"
        return self._answer(200, {"commitUrl": url, "commitOid": SHA, "hookOutput": ""})

    def do_GET(self) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        repo = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        files = self.server.repos.get(repo)
        if files is None:
            return self._answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        if parts[0] == "api":
            listed = [{"type": "file", "path": key, "size": len(value), "oid": hashlib.sha1(value).hexdigest()}
                      for key, value in files.items()]  # fmt: skip
            about = {"id": repo, "modelId": repo, "sha": SHA, "siblings": [{"rfilename": key} for key in files]}
            return self._answer(200, listed if "tree" in parts else about)
        found = files["/".join(parts[4:])]
        tag = {"ETag": f'"{hashlib.sha1(found).hexdigest()}"', "X-Repo-Commit": SHA}
        return self._answer(200, found, tag)

    do_HEAD = do_GET

    def _answer(self, status: int, found: Any, headers: dict[str, str] | None = None) -> None:
        body = found if isinstance(found, bytes) else json.dumps(found).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None: ...


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Standin]:
    with Standin() as server:
        address = f"http://127.0.0.1:{server.server_port}"
        constant = {
            "HF_HUB_CACHE": str(tmp_path / "cache"), "ENDPOINT": address,
            "HUGGINGFACE_CO_URL_TEMPLATE": address + "/{repo_id}/resolve/{revision}/{filename}",
        }  # fmt: skip
        for name, value in constant.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("HF_TOKEN", "hf_right")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        close_session()
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()
        close_session()


@pytest.fixture
def student(digits: Path, tmp_path: Path) -> Path:
    """A recogniser of random weights with its card, as a run leaves it."""
    data = SpeechData.model_validate({
        "sources": "fsdd", "path": digits, "features": {"sample_rate": 8000, "mels": 20}, "train_speakers": ["anna"],
        "dev_speakers": ["duncan"], "test_speakers": ["edith"],
        "compose": {"utterances": {"train": 2, "dev": 2, "test": 2}, "clips": [2, 3]},
    })  # fmt: skip
    adapter, folder = SpeechAdapter(data, Streams(1), 4), tmp_path / "student"
    torch.manual_seed(0)
    model = adapter.build("student", "conv", {"width": 8}).eval()
    adapter.save("student", model, folder)
    cards.write(folder, "student", adapter.about("student", model, folder), content(), {"sources": "fsdd"}, [])
    return folder


@pytest.fixture(scope="session")
def digits() -> Path:
    return Path(__file__).parents[2] / "assets/digits"


def test_a_student_carries_what_the_hub_looks_for(student: Path) -> None:
    card = ModelCard.load(student / "README.md").data
    assert card.library_name == "xmodal-kd" and card.pipeline_tag == "automatic-speech-recognition"
    assert card.eval_results is not None
    [result] = card.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_name) == ("wer", 0.2, "fsdd")
    config = read_json(student / "config.json")
    assert config["model_type"] == "xmodal-kd-speech" and config["params"] == read_json(student / "card.json")["params"]
    assert set(hub.files(student)) == {"README.md", "card.json", "config.json", "model.safetensors"}


def test_the_program_of_an_export_goes_with_it(student: Path) -> None:
    """It is no reason to refuse the weights beside it; one of another name is."""
    write_program(student)
    assert "transcribe.py" in hub.files(student)
    (student / "sub").mkdir()
    (student / "sub/transcribe.py").write_text("code")
    with pytest.raises(UserError, match="runs code where it is loaded"):
        hub.files(student)


def test_what_is_pushed_comes_back_and_says_the_same(
    student: Path, there: Standin, tmp_path: Path, capfd: Capture
) -> None:
    (student / ".cache").mkdir()
    (student / ".cache/secret.json").write_text("{}")
    (student / "notes.log").write_text("mine")
    (student / "steps-4/unet").mkdir(parents=True)
    for name in ("model_index.json", "unet/config.json"):  # of an earlier stage, a model of its own
        (student / "steps-4" / name).write_text("{}")
    assert call(["push", str(student), "me/digits", "--dry-run"]) == 0
    assert "4 files" in capfd.readouterr().out and not there.repos
    assert call(["push", str(student), "me/digits", "--private", "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["address"].endswith("/me/digits") and there.commits == 1
    [made] = there.made  # the library says it by one key or the other
    assert made.get("private") is True or made.get("visibility") == "private"
    sent = there.repos["me/digits"]
    assert set(sent) == set(told["files"]) == {"README.md", "card.json", "config.json", "model.safetensors"}
    assert sent["model.safetensors"] == (student / "model.safetensors").read_bytes()
    assert b'from_pretrained("me/digits")' in sent["README.md"] and b'from_pretrained("path/to' not in sent["README.md"]

    tone = 0.1 * np.sin(np.arange(8000) / 5)
    soundfile.write(tmp_path / "a.wav", tone, 8000)
    here, fetched = Recogniser.from_pretrained(student), Recogniser.from_pretrained("me/digits")
    mine, theirs = (torch.cat(list(one.logits(tmp_path / "a.wav"))) for one in (here, fetched))
    assert mine.shape[0] > 10 and torch.equal(mine, theirs)


def test_who_may_not_and_what_is_not_there_is_one_line(
    student: Path, there: Standin, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    with pytest.raises(UserError, match="me/nothing: no such folder, and it cannot be fetched") as refused:
        Recogniser.from_pretrained("me/nothing")
    assert "\n" not in str(refused.value)
    with pytest.raises(UserError, match="not a name that a repository could have"):
        Recogniser.from_pretrained("no/such/folder")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "hf auth login" in fails(capfd, 2, "push", str(student), "me/digits")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "cannot be pushed to" in fails(capfd, 1, "push", str(student), "me/digits")


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        ("README.md", "has no card (README.md)"), ("config.json", "has no configuration"),
        ("model.safetensors", "has no weights"), ("+old.bin", "runs code where it is loaded"),
        ("+sub/model.PT", "runs code where it is loaded"), ("link", "links to a file elsewhere"),
        ("run", "push its student"),
    ],
)  # fmt: skip
def test_what_is_no_student_is_refused(spoil: str, told: str, tmp_path: Path, capfd: Capture) -> None:
    student = tmp_path / "run/student"
    student.mkdir(parents=True)
    for name in ("README.md", "config.json", "model.safetensors"):
        if name != spoil:
            (student / name).write_text("{}")
    if spoil.startswith("+"):
        (student / spoil[1:]).parent.mkdir(exist_ok=True)
        (student / spoil[1:]).write_text("code")
    elif spoil == "link":
        (tmp_path / "secret.json").write_text("{}")
        (student / "x.json").symlink_to(tmp_path / "secret.json")
    elif spoil == "run":
        (student.parent / "state.json").write_text("{}")
    folder = student.parent if spoil == "run" else student
    assert told in fails(capfd, 2, "push", str(folder), "me/digits", "--dry-run")


@pytest.mark.parametrize("name", ["digits", "me/", "../me/digits", "me/a b", "me/digits/x", "me/ä"])
def test_a_name_that_is_none_is_refused(name: str, tmp_path: Path, capfd: Capture) -> None:
    assert "no name of a repository" in fails(capfd, 2, "push", str(tmp_path), name, "--dry-run")
