"""How the packages hang together: rooms, levels, arrows, circles, from the imports as they are written.

    python tools/rooms.py [FOLDER] [--arrows]

A room is a package or module directly below ``xmodal_kd``, or a modality; an arrow means that some file of one room
imports something of another, wherever in the file. Circles are the fewest arrows without which none would be left,
levels the longest way down without them. `make lint` forbids circles; this is for measuring a plan, or an older commit:

    git archive COMMIT | tar x -C /tmp/before && python tools/rooms.py /tmp/before
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

Arrows = dict[str, set[str]]


def arrows(root: Path) -> Arrows:
    """By room, the rooms that it imports."""
    found: Arrows = {}
    for folder, package in ((root / "xmodal_kd", []), (root / "modalities", ["modalities"])):
        for path in sorted(folder.rglob("*.py")):
            parts = [*package, *path.relative_to(folder).with_suffix("").parts]
            room = _room(root, parts)
            targets = {_room(root, name) for name in _imports(path, parts[:-1])}
            found.setdefault(room, set()).update(targets - {room})
    return {room: {target for target in targets if target in found} for room, targets in found.items()}


def _room(root: Path, parts: list[str]) -> str:
    """The room of a dotted name below ``xmodal_kd``; what stands at the top itself is ``__init__``."""
    if parts[:1] == ["modalities"]:
        return ".".join(parts[:2]) if len(parts) > 1 and (root / "modalities" / parts[1]).is_dir() else "modalities"
    known = parts and ((root / "xmodal_kd" / parts[0]).is_dir() or (root / "xmodal_kd" / f"{parts[0]}.py").is_file())
    return parts[0] if known else "__init__"


def _imports(path: Path, package: list[str]) -> Iterator[list[str]]:
    """Dotted names below ``xmodal_kd`` that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            module = node.module.split(".") if node.module else []
            if node.level:
                base = package[: len(package) - node.level + 1] + module
            elif module[:1] == ["xmodal_kd"]:
                base = module[1:]
            else:
                continue
            yield from ([*base, alias.name] for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (name[1:] for alias in node.names if (name := alias.name.split("."))[0] == "xmodal_kd")


def _circle(graph: Arrows) -> list[str]:
    """Rooms of some circle, the first one again at its end; empty where there is none."""
    state: dict[str, bool] = {}  # True while a room is on the way down

    def down(room: str, way: list[str]) -> list[str]:
        state[room] = True
        for target in sorted(graph[room]):
            if state.get(target):
                return [*way[way.index(target) :], target]
            if target not in state and (found := down(target, [*way, target])):
                return found
        state[room] = False
        return []

    return next((found for room in sorted(graph) if room not in state and (found := down(room, [room]))), [])


def circles(graph: Arrows) -> set[tuple[str, str]]:
    """The fewest arrows without which no circle is left, found by trying more and more of them."""

    def without(count: int, gone: frozenset[tuple[str, str]]) -> frozenset[tuple[str, str]] | None:
        rest = {room: {t for t in targets if (room, t) not in gone} for room, targets in graph.items()}
        circle = _circle(rest)
        if not circle:
            return gone
        ways = (without(count - 1, gone | {arrow}) for arrow in pairwise(circle)) if count else ()
        return next((way for way in ways if way is not None), None)

    count = 0
    while (found := without(count, frozenset())) is None:
        count += 1
    return set(found)


def levels(graph: Arrows) -> dict[str, int]:
    """By room, the longest way down to the ground, 0; the graph must have no circle."""

    @cache
    def level(room: str) -> int:
        return max((1 + level(target) for target in graph[room]), default=0)

    return {room: level(room) for room in graph}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parents[1])
    parser.add_argument("--arrows", action="store_true", help="say what each room imports")
    options = parser.parse_args()
    graph = arrows(options.folder)
    back = circles(graph)
    order = levels({room: {t for t in targets if (room, t) not in back} for room, targets in graph.items()})
    count = sum(map(len, graph.values()))
    print(f"{len(graph)} rooms, {max(order.values()) + 1} levels, {count} arrows, {len(back)} circles")
    for room, target in sorted(back):
        print(f"circle: {room} imports {target}")
    for room in sorted(order, key=lambda name: (order[name], name)) if options.arrows else ():
        print(f"{order[room]:2} {room}: {', '.join(sorted(graph[room]))}")


if __name__ == "__main__":
    main()
