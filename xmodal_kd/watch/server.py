"""The page of runs on this machine alone, and what is new on it every two seconds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from threading import Lock
from time import monotonic
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from ..runtime.errors import UserError
from ..runtime.run_status import condition
from .look import signature
from .page import digest, parts, whole

#: Seconds between two looks at files, and of a look the share of the time that drawing may take.
BETWEEN, SHARE = 1.0, 0.2
HEADERS = {
    "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer", "Cross-Origin-Resource-Policy": "same-origin",
}  # fmt: skip


class Shown:
    """The parts of all runs, drawn anew where a file of theirs has changed."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders, self.lock = folders, Lock()
        self._drawn: dict[Path, tuple[Any, dict[str, str]]] = {}
        self._next: dict[Path, float] = {}

    def parts(self) -> dict[str, str]:
        with self.lock:
            return {key: html for i, folder in enumerate(self.folders) for key, html in self._of(folder, i).items()}

    def _of(self, folder: Path, number: int) -> dict[str, str]:
        now = monotonic()
        if folder in self._drawn and now < self._next[folder]:
            return self._drawn[folder][1]
        seen = (signature(folder), condition(folder))
        if folder not in self._drawn or self._drawn[folder][0] != seen:
            self._drawn[folder] = (seen, parts(folder, number))
        self._next[folder] = now + max(BETWEEN, (monotonic() - now) / SHARE)
        return self._drawn[folder][1]

    def page(self) -> str:
        found = self.parts()
        script = (files("xmodal_kd.watch") / "watch.js").read_text(encoding="utf-8")
        return whole(self.folders, found, script)

    def news(self, known: Mapping[str, str]) -> dict[str, Any]:
        """Id and digest of every part in order, and those that a page with the digests `known` has not."""
        found = self.parts()
        order = [(key, digest(html)) for key, html in found.items()]
        return {"order": order, "html": {key: found[key] for key, said in order if known.get(key) != said}}


class _Handler(BaseHTTPRequestHandler):
    """Answers who asks for this machine by name: a page from elsewhere, whose name leads here, does not."""

    server: Server
    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds for which a connection that says nothing is kept

    def do_GET(self) -> None:
        asked = urlsplit(self.path)
        if self.headers.get("Host", "") not in self.server.names:
            self._answer(403, "text/plain", "asked for by another name than 127.0.0.1\n")
        elif asked.path == "/":
            self._answer(200, "text/html", self.server.shown.page())
        elif asked.path == "/now":
            self._answer(200, "application/json", json.dumps(self.server.shown.news(dict(parse_qsl(asked.query)))))
        else:
            self._answer(404, "text/plain", "there is one page here: /\n")

    def _answer(self, status: int, kind: str, text: str) -> None:
        content = text.encode("utf-8", "backslashreplace")
        self.send_response(status)
        for name, value in {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(content)),
            **HEADERS,
        }.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            self.wfile.write(content)
        except (BrokenPipeError, ConnectionResetError):
            return

    def log_message(self, format: str, *args: Any) -> None:
        """A terminal is no place for a line every two seconds."""


class Server(ThreadingHTTPServer):
    """At 127.0.0.1; a free port where `port` is 0. Raises `UserError` for one that is taken."""

    daemon_threads = True

    def __init__(self, folders: Sequence[Path], port: int = 0) -> None:
        self.shown = Shown(folders)
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except (OSError, OverflowError) as error:
            told = getattr(error, "strerror", None) or str(error)
            raise UserError(f"--port {port}: {told}: leave it out for a free one") from None
        self.names = {f"{name}:{self.server_port}" for name in ("127.0.0.1", "localhost")}

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that leaves in the middle of an answer is no error of ours."""


__all__ = ["Server", "Shown"]
