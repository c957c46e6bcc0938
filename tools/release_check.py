"""``python tools/release_check.py``: may this tree be released? Its sdist and wheel are built and tried by name.

The wheel is made from the sdist; both pass ``twine check``. An empty environment gets the wheel, and its heavy packages
from this environment by a path file, which takes seconds (``make install`` and the tests of both ends of the ranges are
what installs them). There it says its version and runs a smoke recipe, away from the repository. pyproject.toml, the
package, CHANGELOG.md and CITATION.cff have one version. One line a check; exit status 1 at
the first that fails.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]


class ReleaseError(Exception):
    """What stands in the way of a release, in a line."""


def call(command: list[str], folder: Path) -> str:
    done = subprocess.run(
        command, cwd=folder, check=False, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""}
    )
    if done.returncode:
        lines = (done.stdout + done.stderr).strip().splitlines() or ["nothing was printed"]
        raise ReleaseError(f"{' '.join(Path(word).name for word in command[:5])}: {lines[-1]}")
    return done.stdout


def agreed(root: Path) -> str:
    """The version of pyproject.toml, the package, CHANGELOG.md and CITATION.cff; ReleaseError where they do not agree.

    The changelog's newest version is this one; or it has none of this version, and ``Unreleased`` is to become it.
    """
    version = str(tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"])
    for name, pattern in (
        ("xmodal_kd/__init__.py", r'__version__ = "(.+?)"'),
        ("CITATION.cff", r'version: "?([^"\s]+)'),
    ):
        found = re.search(f"^{pattern}", (root / name).read_text(), re.MULTILINE)
        if found is None or found[1] != version:
            raise ReleaseError(f"{name} has version {found[1] if found else 'none'}, pyproject.toml {version}")
    heads = re.findall(r"^## \[?([^\]\s]+)\]?(.*)$", (root / "CHANGELOG.md").read_text(), re.MULTILINE)
    names = [name for name, _ in heads]
    if version in names and names[0] != version:
        raise ReleaseError(f"CHANGELOG.md has changes after {version}: raise the version in pyproject.toml")
    if version not in names and names[:1] != ["Unreleased"]:
        raise ReleaseError(
            f"CHANGELOG.md has nothing of {version}: head what is new '## Unreleased' or '## {version} - DATE'"
        )
    if version in names and not re.search(r"\d{4}-\d{2}-\d{2}", dict(heads)[version]):
        raise ReleaseError(f"CHANGELOG.md has no date for {version}: head it '## {version} - YYYY-MM-DD'")
    return version


def build(out: Path) -> tuple[Path, Path]:
    """An sdist of what git tracks, and the wheel that is made from it."""
    source = out / "source"
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, tracked.split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, source / name)
    call([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out / "dist"), str(source)], out)
    return next((out / "dist").glob("*.tar.gz")), next((out / "dist").glob("*.whl"))


def try_wheel(wheel: Path, version: str, folder: Path) -> None:
    """Install the wheel into an empty environment and run it there, away from the repository."""
    place = folder / "environment"
    venv.create(place)
    python = str(place / "bin/python")
    site = Path(sysconfig.get_path("purelib", vars={"base": str(place), "platbase": str(place)}))
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        str(wheel),
    ]
    call(install, folder)
    # after the wheel's own folder on the path, and without the path files there, which lead to the repository
    (site / "heavy.pth").write_text("\n".join(heavy()) + "\n")
    where = call([python, "-c", "import xmodal_kd; print(xmodal_kd.__file__, xmodal_kd.__version__)"], folder).split()
    if not Path(where[0]).is_relative_to(place) or where[1] != version:
        raise ReleaseError(f"the environment runs {where[0]} {where[1]}, not the wheel of {version}")
    call([str(place / "bin/xmodal-kd"), "run", "smoke/diffusion", "--out", str(folder / "run")], folder)


def heavy() -> list[str]:
    """Folders where this environment has its packages, those of its path files among them."""
    own = Path(sysconfig.get_path("purelib"))
    led = [line.strip() for path in own.glob("*.pth") for line in path.read_text().splitlines() if line.startswith("/")]
    return [str(own), *(line for line in led if Path(line) != ROOT)]


def main() -> int:
    try:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder)
            version = agreed(ROOT)
            print(f"version {version}: pyproject.toml, the package, CHANGELOG.md and CITATION.cff agree", flush=True)
            sdist, wheel = build(out)
            print(f"built {sdist.name} ({sdist.stat().st_size / 1e6:.1f} MB) and, from it, {wheel.name}", flush=True)
            call([sys.executable, "-m", "twine", "check", "--strict", str(sdist), str(wheel)], out)
            print("twine check: passed", flush=True)
            try_wheel(wheel, version, out)
            print("the wheel runs smoke/diffusion in an empty environment (with the heavy packages of this one)")
    except ReleaseError as error:
        print(f"release-check: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
