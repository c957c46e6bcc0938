"""``python tools/install.py VENV LOCK WHAT`` makes an environment exactly as a lock says, or says in one line why not.

Standard library only, for it runs before anything is installed. What pip prints goes to ``VENV.log``. An environment
that was left half-made is gone on with, or made anew where its Python or pip does not run.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

OLDEST, NEWEST = (3, 11), (3, 13)
PIP = ["--disable-pip-version-check", "--no-input"]
# files are compiled when they are first imported: compiling all of them doubles the time, and most are never imported
INSTALL = ["install", "--no-compile", "--progress-bar=off", "--no-warn-script-location", "--root-user-action=ignore"]
#: What pip's output holds when the cause is known, the more telling first.
FULL = re.compile(r"No space left on device|Errno 28|Disk quota exceeded|Errno 122")
OFFLINE = re.compile(
    r"Temporary failure in name resolution|Name or service not known|nodename nor servname|Network is unreachable"
    r"|NewConnectionError|NameResolutionError|ConnectTimeout|ReadTimeout|ProxyError|Max retries exceeded|SSLError"
    r"|connection broken|Connection refused|Connection reset"
)
MISSING = re.compile(r"No matching distribution found for (\S+)")


class InstallError(Exception):
    """Why there is no environment, in one line with what to do next."""


def supported(version: tuple[int, int]) -> bool:
    return OLDEST <= version <= NEWEST


def free_gb(folder: Path) -> float:
    """Free space where ``folder`` is or would be, in GB."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free / 1e9


def why(output: str, venv: Path) -> str:
    """The line for what a failed step printed."""
    temporary = Path(tempfile.gettempdir())
    room = {folder: free_gb(folder) for folder in (venv.absolute(), temporary)}
    if FULL.search(output) or min(room.values()) < 0.05:
        left = " and ".join(f"{free:.1f} GB are free at {folder}" for folder, free in room.items())
        return f"no space left: {left}, where some 7 GB and 4 GB are needed; make room and call make again: it goes on"
    if OFFLINE.search(output):
        return "the package index cannot be reached: check the network, or pip's proxy, and call make again: it goes on"
    missing = MISSING.search(output)
    if missing:
        python = "{}.{}".format(*sys.version_info)
        return f"the package index has no {missing[1]} for Python {python} on this platform; all of it: {log_of(venv)}"
    errors = [line for line in output.splitlines() if re.match(r"\s*(ERROR|\w*Error)\b", line)]
    said = (errors or output.strip().splitlines() or ["nothing was printed"])[-1].strip()
    return f"{said[:200]}; all of it: {log_of(venv)}"


def log_of(venv: Path) -> Path:
    return venv.with_name(venv.name + ".log")


def call(venv: Path, command: list[str]) -> None:
    """Run ``command`` into the log; InstallError where it fails."""
    with log_of(venv).open("a+", errors="replace") as log:
        log.write(f"$ {' '.join(command)}\n")
        log.flush()
        start = log.tell()
        status = subprocess.run(command, check=False, stdout=log, stderr=subprocess.STDOUT).returncode
        log.seek(start)
        output = log.read()
    if status < 0:
        raise InstallError(f"pip was ended by signal {-status}; call make again: it goes on")
    if status:
        raise InstallError(why(output, venv))


def runs(python: Path) -> bool:
    """Whether the environment's own Python is a supported one and has its pip."""
    try:
        test = "import sys, pip; print(*sys.version_info[:2])"
        done = subprocess.run([python, "-c", test], check=False, capture_output=True, text=True)
    except OSError:
        return False
    if done.returncode:
        return False
    major, minor = map(int, done.stdout.split())
    return supported((major, minor))


def drop_torn(venv: Path) -> list[str]:
    """Forget packages whose installation was cut off: pip writes RECORD last, and takes the rest for whole."""
    torn = [folder for folder in venv.glob("lib/python*/site-packages/*.dist-info") if not (folder / "RECORD").exists()]
    for folder in torn:
        shutil.rmtree(folder)
    return [folder.name for folder in torn]


def make(venv: Path, lock: Path, what: str) -> None:
    python = venv / "bin/python"
    log_of(venv).unlink(missing_ok=True)
    if not runs(python):
        if venv.exists():
            print(f"{venv} does not run: it is made anew")
        call(venv, [sys.executable, "-m", "venv", "--clear", str(venv)])
    for name in drop_torn(venv):
        print(f"{name} was cut off: it is installed anew")
    pip = [str(python), "-m", "pip", *PIP]
    print(f"installing into {venv}: some 7 GB, minutes; pip's own words: {log_of(venv)}", flush=True)
    # without isolation the build, too, has the setuptools of the lock and not the newest
    call(venv, [*pip, *INSTALL, "--constraint", str(lock), "setuptools"])
    call(venv, [*pip, *INSTALL, "--constraint", str(lock), "--no-build-isolation", "--editable", what])


def main(arguments: list[str]) -> int:
    venv, lock, what = Path(arguments[0]), Path(arguments[1]), arguments[2]
    try:
        if not supported(sys.version_info[:2]):
            raise InstallError(f"Python {'{}.{}'.format(*sys.version_info)} is not supported: needs 3.11, 3.12 or 3.13")
        make(venv, lock, what)
    except InstallError as error:
        print(f"make install: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"make install: {why(str(error), venv)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("make install: stopped; the next call goes on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
