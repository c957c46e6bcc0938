"""A sketch as YAML, a comment to every choice: beside its line where there is room, else above it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

import yaml

from ..adapter.sketch import Noted, Sketch
from ..recipe.yaml_reader import Loader

#: Characters of a line.
WIDTH = 120
#: Where comments beside short lines begin.
BESIDE = 28


class _Dumper(yaml.SafeDumper):
    """Quotes what the recipes' reader would take for something else, and no more: not the key ``on``."""


_Dumper.yaml_implicit_resolvers = Loader.yaml_implicit_resolvers


def recipe_text(modality: str, path: Path, sketch: Sketch, cost: Sequence[str]) -> str:
    """The whole file.

    Args:
        path: where it will lie, for the commands in its head.
        cost: what was measured, a line each.
    """
    return "\n".join([*_head(path, sketch, cost), *_body(modality, sketch), ""])


def _head(path: Path, sketch: Sketch, cost: Sequence[str]) -> Iterator[str]:
    yield from _comment(sketch.headline)
    yield "# yaml-language-server: $schema=recipe.schema.json"
    yield "# Editors with YAML support complete and explain keys from that file: xmodal-kd schema > recipe.schema.json"
    yield "#"
    yield f"#   xmodal-kd check {path}    what would spoil the run, on real batches"
    yield f"#   xmodal-kd run {path}      control, student and, where it trains one, teacher; report.md"
    yield "# Any key can also be given on the command line: --set train.steps=100"
    for title, lines in (("What it costs", cost), ("Worth knowing", sketch.notes)):
        if lines:
            yield f"# {title}:"
            for line in lines:
                yield from _comment(f"- {line}", hang="  ")


def _body(modality: str, sketch: Sketch) -> Iterator[str]:
    start = {
        "modality": modality,
        "seed": Noted(1, "all randomness is a function of it: three runs with seeds 1, 2, 3 give an interval"),
        "threads": Noted(1, "of torch; small models seldom gain from more, a large teacher does"),
    }
    for key, value in start.items():
        yield from _entry(key, value, 0)
    for key, value in sketch.sections.items():
        yield ""
        yield from _entry(key, value, 0)


def _entry(key: str, value: Any, depth: int) -> Iterator[str]:
    """The lines of ``key: value``; in block style where something inside has a comment or a list holds sections."""
    pad, why = "  " * depth, ""
    if isinstance(value, Noted):
        why, value = value.why, value.value
    if isinstance(value, Mapping) and value and (depth == 0 or _has_notes(value)):
        yield from _beside(f"{pad}{key}:", why, pad)
        for inner, part in value.items():
            yield from _entry(inner, part, depth + 1)
    elif isinstance(value, list | tuple) and any(isinstance(_bare(part), Mapping) for part in value):
        yield from _beside(f"{pad}{key}:", why, pad)
        for part in value:
            reason = part.why if isinstance(part, Noted) else ""
            yield from _beside(f"{pad}  - {_flow(_bare(part))}", reason, f"{pad}  ")
    else:
        yield from _beside(f"{pad}{key}: {_flow(value)}", why, pad)


def _beside(text: str, why: str, pad: str) -> Iterator[str]:
    """A line and its comment; a value that is too long for a line goes on in the next."""
    together = f"{text:<{BESIDE}}{'' if len(text) < BESIDE else '  '}# {why}" if why else text
    if len(together) <= WIDTH:
        yield together
        return
    if why:
        yield from _comment(why, pad)
    if len(text) <= WIDTH:
        yield text
    else:
        yield from wrap(text, WIDTH, subsequent_indent=f"{pad}    ", break_long_words=False, break_on_hyphens=False,
                        drop_whitespace=True, initial_indent="", replace_whitespace=False)  # fmt: skip


def _comment(text: str, pad: str = "", hang: str = "") -> Iterator[str]:
    first, more = f"{pad}# ", f"{pad}# {hang}"
    yield from wrap(text, WIDTH, initial_indent=first, subsequent_indent=more, break_long_words=False,
                    break_on_hyphens=False)  # fmt: skip


def _flow(value: Any) -> str:
    """On one line, as YAML writes it between braces."""
    made = yaml.dump(
        _plain(value), Dumper=_Dumper, default_flow_style=True, sort_keys=False, width=float("inf"), allow_unicode=True
    )
    return str(made).removesuffix("...\n").strip()


def _plain(value: Any) -> Any:
    """Of what YAML has: no paths, no tuples, no comments."""
    value = _bare(value)
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return str(value) if isinstance(value, Path) else value


def _bare(value: Any) -> Any:
    return value.value if isinstance(value, Noted) else value


def _has_notes(value: Any) -> bool:
    """Whether anything inside has a comment."""
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return any(isinstance(part, Noted) or _has_notes(part) for part in parts)


__all__ = ["recipe_text"]
