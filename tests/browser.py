"""Headless Chromium for tests, spoken to through a pipe (the DevTools protocol): no port, no driver, no package.

with Browser(scratch) as browser:
    browser.open(page, width=390)
    browser.evaluate("document.title")
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--mute-audio",
    "--disable-extensions", "--disable-background-networking", "--hide-scrollbars", "--remote-debugging-pipe",
)  # fmt: skip
#: Puts the two pipes where the protocol expects them, at descriptors 3 and 4, and becomes the browser.
START = """
import fcntl, os, sys
pipes = [fcntl.fcntl(int(pipe), fcntl.F_DUPFD, 10) for pipe in sys.argv[1:3]]
for pipe, place in zip(pipes, (3, 4)):
    os.dup2(pipe, place)
os.execv(sys.argv[3], sys.argv[3:])
"""
#: Seconds that a start or an answer may take on a machine whose cores others use.
PATIENCE = 90.0


class Browser:
    """One tab of a browser that lives as long as the ``with`` block.

    Raises:
        TimeoutError: no answer within `patience` seconds.
        RuntimeError: the page raised an error in `evaluate`, or the browser went away.
    """

    def __init__(self, scratch: Path, patience: float = PATIENCE) -> None:
        assert CHROMIUM is not None
        self.patience, self.events, self.asked, self.buffer = patience, list[dict[str, Any]](), 0, b""
        (theirs, self.write), (self.read, answers) = os.pipe(), os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-c", START, str(theirs), str(answers), CHROMIUM, *FLAGS,
             f"--user-data-dir={scratch / 'profile'}", "about:blank"],
            pass_fds=(theirs, answers), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": str(scratch)},
        )  # fmt: skip
        os.close(theirs)
        os.close(answers)
        self.session: str | None = None
        try:
            target = self.ask("Target.createTarget", url="about:blank")["targetId"]
            self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Log"):
                self.ask(f"{domain}.enable")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.read)
        os.close(self.write)

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """The answer to one call of the protocol; events that come before it are kept."""
        self.asked += 1
        message = {"id": self.asked, "method": method, "params": params}
        if self.session is not None:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + self.patience
        while (found := self._next(until)).get("id") != self.asked:
            self.events.append(found)
        if "error" in found:
            raise RuntimeError(f"{method}: {found['error']['message']}")
        answer: dict[str, Any] = found["result"]
        return answer

    def _next(self, until: float) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            if not select.select([self.read], [], [], max(0.0, until - time.monotonic()))[0]:
                raise TimeoutError(f"the browser gave no answer within {self.patience:.0f} s")
            part = os.read(self.read, 1 << 16)
            if not part:
                raise RuntimeError("the browser went away")
            self.buffer += part
        first, _, self.buffer = self.buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(first)
        return message

    def open(self, page: Path | str, *, width: int, height: int = 900, dark: bool = False) -> None:
        """Load a file, or an address, as a screen of `width` CSS pixels shows it, and wait until it is loaded."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.events.clear()
        self.ask("Page.navigate", url=page if isinstance(page, str) else page.resolve().as_uri())
        until = time.monotonic() + self.patience
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next(until))

    def evaluate(self, script: str) -> Any:
        """The value of an expression in the page, awaited where it is a promise."""
        found = self.ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(json.dumps(found["exceptionDetails"]))
        return found["result"].get("value")

    def complaints(self) -> list[str]:
        """What the page raised, and what its console and the browser's log said, since it was opened."""
        told = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
        return [json.dumps(event["params"]) for event in self.events if event.get("method") in told]

    def picture(self, path: Path, *, whole: bool = False) -> None:
        """A PNG of the window, or of the whole page."""
        if whole:
            size = self.ask("Page.getLayoutMetrics")["cssContentSize"]
            clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
            data = self.ask("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)["data"]
        else:
            data = self.ask("Page.captureScreenshot")["data"]
        path.write_bytes(base64.b64decode(data))
