"""``python tools/docs_site.py`` builds the site of the documentation in ``build/site``; any warning is an error.

Pages stand in the site where they stand in the repository, so that a link that works there works here, and what they
link to (pictures, sources, recipes) comes along. The reference has a page a package, made of its docstrings without
importing anything. ``mkdocs.yml`` has the look and the order. Exit status 1 where a page, a link or an anchor is
missing.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "build/pages"
#: Where pages are written; decisions and saved models' cards among them.
FOLDERS = ("docs", "modalities", "recipes", "assets")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)")
#: Packages that others build on; the rest is the program's own.
REFERENCE = (
    "xmodal_kd", "xmodal_kd.signals", "xmodal_kd.adapter", "xmodal_kd.losses", "xmodal_kd.models", "xmodal_kd.recipe",
    "xmodal_kd.objective", "xmodal_kd.training", "xmodal_kd.teacher_cache", "xmodal_kd.schemes", "xmodal_kd.compress",
    "xmodal_kd.report", "xmodal_kd.runtime",
)  # fmt: skip


def pages() -> Iterator[Path]:
    yield from sorted(ROOT.glob("*.md"))
    for folder in FOLDERS:
        yield from sorted((ROOT / folder).rglob("*.md"))


def linked(page: Path) -> Iterator[Path]:
    """Files of the repository that a page links to, other pages left out; what is missing, mkdocs will name."""
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in LINK.findall(prose):
        path = (page.parent / target).resolve()
        if "://" not in target and path.suffix != ".md" and path.is_file() and path.is_relative_to(ROOT):
            yield path


def modules(package: str) -> list[str]:
    """The public modules of a package, itself first; of the whole project, the package alone."""
    folder = ROOT / package.replace(".", "/")
    if "." not in package:
        return [package]
    return [package, *(f"{package}.{path.stem}" for path in sorted(folder.glob("*.py")) if path.stem[0] != "_")]


def fenced(text: str) -> str:
    """`text` with each run of doctest lines, up to the next empty line, as a block of code.

    >>> fenced("Twice:\\n>>> 2 * 2\\n4").splitlines()
    ['Twice:', '', '```pycon', '>>> 2 * 2', '4', '```']
    """
    lines: list[str] = []
    inside = False
    for line in [*text.splitlines(), ""]:
        if not inside and line.lstrip().startswith(">>> "):
            lines += ([""] if lines and lines[-1] else []) + ["```pycon"]
            inside = True
        elif inside and not line.strip():
            lines.append("```")
            inside = False
        lines.append(line)
    return "\n".join(lines[:-1])


def lay_out() -> None:
    """Everything that the site is made of, under `PAGES`."""
    shutil.rmtree(PAGES, ignore_errors=True)
    for page in pages():
        for path in (page, *linked(page)):
            copy = PAGES / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    reference = PAGES / "reference"
    reference.mkdir()
    for package in REFERENCE:
        # the project's own page has what it exports; a package's the modules as they stand
        text = "\n\n".join(f"::: {module}" for module in modules(package))
        (reference / f"{package}.md").write_text(f"# {package}\n\n{text}\n")
    listed = "\n".join(f"- [`{package}`]({package}.md)" for package in REFERENCE)
    (reference / "index.md").write_text(f"# Reference\n\nWhat others build on, by package.\n\n{listed}\n")


def main() -> int:
    lay_out()
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--clean"]
    # for the extension, and against an advertisement of the theme's authors
    more = {"PYTHONPATH": str(Path(__file__).parent), "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=ROOT, check=False, env=os.environ | more).returncode


if __name__ == "__main__":
    sys.exit(main())
