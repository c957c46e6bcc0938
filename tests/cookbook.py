"""A page of commands as a reader meets it: its recipes, their blocks, and how a block is played."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from source_files import ROOT

from xmodal_kd.cli.main import call
from xmodal_kd.run import alerts
from xmodal_kd.runtime import registry

PAGE = ROOT / "docs/cookbook.md"
FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
#: The first line of a block that is a file of the reader's.
NAMED = re.compile(r"# (\S+\.(?:py|yaml|json))\n")
#: Behind a command that must be refused: what it is answered with.
REFUSED = "# refused: "
NUMBER = re.compile(r"\d[\d.,]*")
#: Commands that train: what makes them short is added to them, and no progress is shown.
TRAINING = {"run", "distil", "compare", "check", "cache"}


@dataclass(frozen=True)
class Block:
    """A fenced block: its language and text."""

    kind: str
    text: str

    @property
    def name(self) -> str | None:
        """The file that it is, if its first line names one."""
        found = NAMED.match(self.text)
        return None if found is None else found[1]


def recipes(page: Path = PAGE) -> dict[str, tuple[Block, ...]]:
    """Blocks by the heading that they stand under, of the headings that have any."""
    parts = re.split(r"^## (.+)\n", page.read_text(), flags=re.MULTILINE)[1:]
    pairs = zip(parts[::2], parts[1::2], strict=True)
    found = {head: tuple(Block(*pair) for pair in FENCED.findall(text)) for head, text in pairs}
    return {head: blocks for head, blocks in found.items() if blocks}


@dataclass(frozen=True)
class Line:
    """A command of a block, and what it must be refused with."""

    words: list[str]
    refused: str | None


def lines(block: Block) -> Iterator[Line]:
    for line in block.text.replace("\\\n", " ").splitlines():
        command, mark, refused = line.partition(REFUSED)
        if words := shlex.split(command, comments=True):
            yield Line(words, refused.strip() if mark else None)


def command(words: Sequence[str], cuts: Sequence[str]) -> list[str] | None:
    """The program's arguments of a command line, cut short; None for another program's."""
    if words[0] != "xmodal-kd":
        return None
    arguments = list(words[1:])
    if arguments[0] in TRAINING:
        # what a command says of a section stays as it is
        said = {key.partition("=")[0] for word, key in pairwise(arguments) if word == "--set"}
        kept = [cut for cut in cuts if not {cut.partition("=")[0], cut.partition(".")[0]} & said]
        arguments += [word for cut in kept for word in ("--set", cut)]
    if arguments[0] in ("run", "distil", "compare"):
        arguments.append("--quiet")
    return arguments


def like(text: str) -> str:
    """A line without what differs from run to run: numbers and spaces."""
    return " ".join(NUMBER.sub("#", text).split())


class Play:
    """Plays the blocks of a recipe in the current folder, one after another.

    Args:
        cuts: keys of the recipe that make a training short; by nothing else does a command differ from the page.
    """

    def __init__(self, capture: object, cuts: Sequence[str]) -> None:
        self.capture, self.cuts, self.printed = capture, cuts, ""
        self.others: list[list[str]] = []
        """Command lines of other programs, which are not called."""

    def __call__(self, block: Block) -> None:
        {"sh": self._sh, "text": self._text, "python": self._python}.get(block.kind, self._file)(block)

    def _file(self, block: Block) -> None:
        if block.name is None:
            assert block.kind == "json" and json.loads(block.text), f"a block that is nothing:\n{block.text}"
        else:
            Path(block.name).write_text(block.text)

    def _python(self, block: Block) -> None:
        if block.name is not None:
            return self._file(block)
        exec(compile(block.text, str(PAGE), "exec"), {"__name__": "__main__"})

    def _sh(self, block: Block) -> None:
        for line in lines(block):
            arguments = command(line.words, self.cuts)
            if arguments is not None:
                self._call(arguments, line)
            elif line.words[0] == "python":
                exec(compile(Path(line.words[1]).read_text(), line.words[1], "exec"), {"__name__": "__main__"})
            else:
                self.others.append(line.words)

    def _call(self, arguments: Sequence[str], line: Line) -> None:
        for allowed in (registry.allowed_imports, alerts.allowed_hooks):  # as in a new process
            allowed.clear()
        status = call(arguments)
        out, err = self.capture.readouterr()  # type: ignore[attr-defined]
        said = f"{out}\n{err}"
        assert status == (0 if line.refused is None else 2), f"{shlex.join(line.words)}: {status}\n{said}"
        assert line.refused is None or like(line.refused) in like(said), said
        self.printed += said

    def _text(self, block: Block) -> None:
        """Every line of what the page says is printed has been so far, but for numbers; ``...`` stands for anything."""
        said = like(self.printed)
        for line in block.text.splitlines():
            parts = [re.escape(like(part)) for part in line.split("...")]
            assert re.search(r".*?".join(parts), said), f"not printed: {line}\n{self.printed}"
