"""Tells whoever the recipe names under ``on`` what becomes of a run. A hook that fails is a line; it stops nothing."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import suppress
from threading import Thread
from time import monotonic
from typing import Any
from urllib.request import HTTPRedirectHandler, Request, build_opener

from ..recipe.alerts_spec import Alerts, Hook
from ..runtime.errors import UserError
from ..runtime.progress import console

#: Hosts of webhooks, and commands, that a recipe may name (the CLI's ``--allow-hook``).
allowed_hooks: set[str] = set()


def check(alerts: Alerts) -> None:
    """A recipe is data: what it would have called must have been allowed. Raises `UserError` where it was not."""
    for event, hook in _all(alerts):
        if hook.name not in allowed_hooks:
            what = "tell the host" if hook.webhook is not None else "start the command"
            raise UserError(
                f"on.{event} would {what} {hook.name!r}: allow it with --allow-hook {shlex.quote(hook.name)}"
            )


class Teller:
    """Sends the events of one run, each in a thread of its own, so that training does not wait."""

    def __init__(self, alerts: Alerts, about: Mapping[str, Any]) -> None:
        self.alerts, self.about = alerts, about
        self.sending: list[tuple[Thread, float]] = []

    def tell(self, event: str, **facts: Any) -> None:
        """`event` to all of its hooks: ``done``, ``failed`` or ``nan``."""
        for hook in getattr(self.alerts, event):
            self._send(event, hook, facts)

    def evaluated(self, role: str, bad: int, **facts: Any) -> None:
        """A role has brought nothing better for `bad` evaluations."""
        for hook in self.alerts.plateau:
            if bad == hook.evaluations:
                self._send("plateau", hook, {"role": role, "evaluations": bad, **facts})

    def wait(self) -> None:
        """Until all is sent or given up."""
        for thread, until in self.sending:
            thread.join(max(0.0, until - monotonic()) + 1)

    def _send(self, event: str, hook: Hook, facts: Mapping[str, Any]) -> None:
        content = json.dumps({"event": event, **self.about, **facts}, default=str).encode()
        thread = Thread(target=_sent, args=(event, hook, content), daemon=True)
        thread.start()
        self.sending.append((thread, monotonic() + hook.timeout))


def _sent(event: str, hook: Hook, content: bytes) -> None:
    try:
        if hook.webhook is not None:
            _post(hook.webhook, content, hook.timeout)
        elif hook.command is not None:
            _started(hook.command, content, hook.timeout)
    except Exception as error:  # of a network, of a stranger's program: no run ends for it
        told = " ".join(str(getattr(error, "reason", None) or error).split())[:200] or type(error).__name__
        console.print(f"on.{event}: {hook.name} was not told: {told}", highlight=False, markup=False, soft_wrap=True)


class _Stays(HTTPRedirectHandler):
    """Who was allowed is told, and nobody to whom that one points."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _post(address: str, content: bytes, timeout: float) -> None:
    headers = {"Content-Type": "application/json", "User-Agent": "xmodal-kd"}
    with build_opener(_Stays).open(Request(address, content, headers, method="POST"), timeout=timeout) as answer:
        answer.read(1 << 16)


def _started(command: tuple[str, ...], content: bytes, timeout: float) -> None:
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        process.communicate(content, timeout)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what it has started too
        process.communicate()
        raise RuntimeError(f"no end within {timeout:g} s") from None
    if process.returncode:
        raise RuntimeError(f"exit status {process.returncode}")


def _all(alerts: Alerts) -> Iterator[tuple[str, Hook]]:
    for event in type(alerts).model_fields:
        yield from ((event, hook) for hook in getattr(alerts, event))


__all__ = ["Teller", "allowed_hooks", "check"]
