"""``python tools/versions.py lowest|latest`` tests an end of pyproject.toml's ranges and notes it in docs/versions.md.

uv resolves (``lowest-direct``: the lowest release of everything that pyproject.toml names; ``latest``: the newest of
everything) and installs into ``.venv-lowest`` or ``.venv-latest``; the doctor calls a kernel of each compiled package
there, and pytest runs the tests, all or those that ``TESTS`` names (pytest's arguments). Exit status 1 where something
broke, 2 where nothing could be tried.
"""

from __future__ import annotations

import datetime
import os
import platform
import re
import shlex
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/versions.md"
RESOLUTION = {"lowest": "lowest-direct", "latest": "highest"}
SHOWN = (
    *("torch", "torchvision", "torchaudio", "numpy", "scipy", "open3d", "onnx", "onnxruntime", "onnxscript"),
    *("diffusers", "transformers", "lightning", "accelerate", "pydantic", "typer", "tensorboard", "lmdb"),
    *("flashlight-text", "pytest"),
)
LISTED = 30  # failing tests that a section names


class BrokenError(Exception):
    """What did not work before a test could run, in a line."""


def telling_line(text: str) -> str:
    """The last line that names an error, or the last one that is no hint."""
    lines = [line.strip(" ×╰─▶│") for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("hint:")]
    errors = [line for line in lines if re.match(r"(\w*Error|error|ERROR|Because|No solution)\b", line)]
    return (errors or lines or ["nothing was printed"])[-1]


def step(command: list[str], **environment: str) -> str:
    """What ``command`` printed; BrokenError with the line that tells where it fails."""
    done = subprocess.run(
        command, cwd=ROOT, check=False, capture_output=True, text=True, env={**os.environ, **environment}
    )
    if done.returncode:
        raise BrokenError(f"`{shlex.join(command[:3])} …`: {telling_line(done.stdout + done.stderr)[:300]}")
    return done.stdout


def build(end: str, venv: Path) -> dict[str, str]:
    """Resolve and install; the versions by name."""
    uv = str(Path(sys.executable).with_name("uv"))
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    lock = venv.with_name(venv.name + ".txt")
    wanted = ["pyproject.toml", "--extra", "all", "--extra", "dev", "--resolution", RESOLUTION[end]]
    # a release that has no wheel for this Python is a bound that is too low, and not one to compile
    step([uv, "pip", "compile", *wanted, "--python-version", python, "--only-binary", ":all:", "-o", str(lock)])
    step([uv, "venv", "--seed", "--clear", "--python", sys.executable, str(venv)])
    into = [uv, "pip", "install", "--python", str(venv / "bin/python")]
    step([*into, "--requirements", str(lock)])
    step([*into, "--no-deps", "--no-build-isolation", "--editable", "."])
    pins = (line.split(" ;")[0].strip().split("==") for line in lock.read_text().splitlines() if "==" in line)
    return {pin[0]: pin[1] for pin in pins if not pin[0].startswith("#")}


def run_tests(venv: Path, tests: list[str]) -> tuple[str, list[str]]:
    """The counts, and what failed."""
    results = venv / "tests.xml"
    command = [str(venv / "bin/python"), "-m", "pytest", "-q", f"--junitxml={results}", *tests]
    # what is imported is compiled once, whatever this machine's habit: the tests start hundreds of processes
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    status = subprocess.run(command, cwd=ROOT, check=False, env={**kept, "OMP_NUM_THREADS": "1"}).returncode
    if not results.exists():
        raise BrokenError(f"pytest ended with status {status} before it ran a test")
    return counted(ElementTree.parse(results).getroot())


def counted(root: ElementTree.Element) -> tuple[str, list[str]]:
    """Counts and failures of pytest's ``--junitxml``."""
    cases = list(root.iter("testcase"))
    skipped = sum(case.find("skipped") is not None for case in cases)
    failed = []
    for case in cases:
        fault = case.find("failure") if case.find("failure") is not None else case.find("error")
        if fault is not None:
            said = (fault.get("message") or "").strip().splitlines()
            failed.append(f"`{case.get('classname')}::{case.get('name')}`: {said[0][:200] if said else 'no message'}")
    passed = len(cases) - skipped - len(failed)
    return f"{passed} passed, {len(failed)} failed, {skipped} skipped", failed


def section(end: str, versions: dict[str, str], tests: list[str], result: str, failed: list[str]) -> str:
    python = platform.python_version()
    shown = ", ".join(f"{name} {versions[name]}" for name in SHOWN if name in versions)
    lines = [
        f"## {end}, Python {'.'.join(python.split('.')[:2])}",
        "",
        f"- {datetime.datetime.now(datetime.UTC):%Y-%m-%d}, Python {python}, {platform.system()} {platform.machine()}",
        f"- {shown or 'no versions: nothing was installed'}",
        f"- tests: {'`' + shlex.join(tests) + '`' if tests else 'all that `make test` runs'}",
        f"- **{result}**",
        *(f"  - {line}" for line in failed[:LISTED]),
        *([f"  - and {len(failed) - LISTED} more"] if len(failed) > LISTED else []),
    ]
    return "\n".join(lines) + "\n"


def noted(page: str, text: str) -> str:
    """``page`` with the section of the same heading replaced, or with a new one at its end."""
    head, *sections = page.split("\n## ")
    heading = text.splitlines()[0].removeprefix("## ")
    kept = [part for part in sections if part.splitlines()[0] != heading]
    return "\n## ".join(part.rstrip() + "\n" for part in [head, *kept]) + "\n" + text


def main(arguments: list[str]) -> int:
    end = arguments[0] if arguments else ""
    if end not in RESOLUTION:
        print(f"versions: {end or 'nothing'} is not an end of the ranges: lowest or latest", file=sys.stderr)
        return 2
    venv, tests = ROOT / f".venv-{end}", shlex.split(os.environ.get("TESTS", ""))
    versions: dict[str, str] = {}
    try:
        versions = build(end, venv)
        print(step([str(venv / "bin/xmodal-kd"), "doctor", "--kernels"]), end="", flush=True)
        result, failed = run_tests(venv, tests)
    except BrokenError as error:
        if re.search(r"dns error|error sending request|Failed to fetch|No space left", str(error)):
            print(f"versions: nothing was tried: {error}", file=sys.stderr)
            return 2
        result, failed = f"broken before the tests: {error}", []
    text = section(end, versions, tests, result, failed)
    PAGE.write_text(noted(PAGE.read_text(), text))
    print(text)
    return int(bool(failed) or result.startswith("broken"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
