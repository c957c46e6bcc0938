"""Texts of the program's refusals and of what ``check`` advises, read from the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from source_files import ADAPTERS, CORE

#: Where a text says what something else holds, which is not read here.
HOLE = "\0"


@dataclass(frozen=True)
class Refusal:
    """A `UserError`, or a finding, as it stands in the source; `HOLE` for what is put into it when it is raised."""

    path: Path
    line: int
    text: str
    holes: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.path.parent.name}/{self.path.name}:{self.line}: {self.text.replace(HOLE, '{}')}"


def refusals() -> Iterator[Refusal]:
    """Every ``UserError(...)``, ``RunError(...)`` and ``Finding(...)`` of core and modalities."""
    for root in (CORE, ADAPTERS):
        for path in sorted(root.rglob("*.py")):
            yield from of_source(path, path.read_text())


def of_source(path: Path, source: str) -> Iterator[Refusal]:
    tree = ast.parse(source)
    named = {function.name: function for function in ast.walk(tree) if isinstance(function, ast.FunctionDef)}
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
            continue
        for argument in {"UserError": node.args[:1], "RunError": node.args[:1], "Finding": node.args[2:]}.get(
            node.func.id, []
        ):
            for text, holes in _texts(argument, named):
                yield Refusal(path, node.lineno, text, tuple(holes))


def _texts(node: ast.expr, named: dict[str, ast.FunctionDef]) -> Iterator[tuple[str, list[str]]]:
    """What an expression may say; a function of the same file by what it returns."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value, []
    elif isinstance(node, ast.IfExp):
        yield from _texts(node.body, named)
        yield from _texts(node.orelse, named)
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        for left, first in _texts(node.left, named):
            for right, second in _texts(node.right, named):
                yield left + right, first + second
    elif isinstance(node, ast.JoinedStr):
        parts = [part.value if isinstance(part, ast.Constant) else HOLE for part in node.values]
        yield "".join(map(str, parts)), [ast.unparse(p.value) for p in node.values if isinstance(p, ast.FormattedValue)]
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in named:
        returned = [n.value for n in ast.walk(named[node.func.id]) if isinstance(n, ast.Return) and n.value]
        for value in returned:
            yield from _texts(value, {})
    else:
        yield HOLE, [ast.unparse(node)]
