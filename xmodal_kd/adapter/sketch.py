"""What a modality makes of a teacher's folder and a folder of data: the parts of a recipe, each with where it is from.

A modality names a module in ``SKETCH`` of its package, as it does its verbs in ``COMMANDS``; the module has
``sketch(given: Given) -> Sketch``, and where saved students lie without a ``card.json``, ``like(folder: Path) -> Like |
None``, which describes one. The core's `draft` writes the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..runtime.errors import UserError, with_page


@dataclass(frozen=True)
class Size:
    """How much one is ready to spend.

    Attributes:
        at: its place in a modality's own ladder of students, 0 the smallest.
        passes: over the training samples.
        least: optimizer steps, whatever the passes come to.
        most: optimizer steps, likewise.
    """

    name: str
    at: int
    passes: int
    least: int
    most: int

    def steps(self, samples: int, batch_size: int) -> int:
        """Optimizer steps of a training on so many samples, to two digits.

        >>> SIZES["small"].steps(samples=848, batch_size=16)
        1100
        """
        wanted = min(self.most, max(self.least, self.passes * samples // batch_size))
        return int(float(f"{wanted:.2g}"))

    def why(self, samples: int, batch_size: int) -> str:
        """What the steps come to, for their comment."""
        passes = self.steps(samples, batch_size) * batch_size / max(samples, 1)
        return f"{self.name}: {passes:.3g} passes over {samples:,} training samples"


SIZES: Mapping[str, Size] = {
    size.name: size
    for size in (
        Size("small", 0, passes=20, least=200, most=2_000),
        Size("medium", 1, passes=60, least=500, most=10_000),
        Size("large", 2, passes=120, least=1_000, most=50_000),
    )
}


@dataclass(frozen=True)
class Like:
    """A student that was asked for by name: a registered model, with parameters where a saved one gave them."""

    model: str
    params: Mapping[str, Any]
    why: str


@dataclass(frozen=True)
class Given:
    """What somebody has who wants a recipe.

    Attributes:
        data: a folder or a file; or the name of a data set that needs neither.
    """

    teacher: Path | None
    data: Path | None
    size: Size
    like: Like | None = None


@dataclass(frozen=True)
class Noted:
    """A value of the recipe and the comment beside it: what it was read from, or why it is so."""

    value: Any
    why: str


@dataclass(frozen=True)
class Sketch:
    """The parts of a recipe.

    Attributes:
        headline: one line on who teaches whom.
        sections: by the recipe's keys, in order; values anywhere inside may be `Noted`.
        notes: what is odd but goes, a line each, with what to do.
        problems: what stands in the way of any recipe, a line each, with what to do; then there are no sections.
    """

    headline: str = ""
    sections: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


class Looking:
    """Gathers what is found, so that one look tells all that is wrong.

    >>> looking = Looking()
    >>> with looking.on():
    ...     raise UserError("data: nothing there")
    >>> looking.problems[0].startswith("data: nothing there")
    True
    """

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.notes: list[str] = []

    @contextmanager
    def on(self) -> Iterator[None]:
        """A part whose `UserError` is a problem among others."""
        try:
            yield
        except UserError as error:
            self.problems.append(with_page(error))


__all__ = ["SIZES", "Given", "Like", "Looking", "Noted", "Size", "Sketch"]
