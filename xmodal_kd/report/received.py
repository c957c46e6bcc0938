"""A ``report.json`` that may come from others: what it must hold, and one line where it does not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..adapter.panel_schema import check_png
from ..adapter.roles import is_teacher
from ..runtime.bounded_files import inside, read_bytes
from ..runtime.errors import UserError
from ..runtime.whole_files import read_json

#: Bytes of a picture that a page takes in.
MOST_PICTURE = 1 << 25
#: What code that draws numbers does with what is no number.
WRONG = (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError, RecursionError)

Text = Annotated[str, Field(max_length=4000)]
Number = Annotated[float, Field(allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow")


class Metric(_Part):
    name: Text
    lower_is_better: bool


class Role(_Part):
    parameters: int = Field(ge=0, lt=1 << 62)
    flops_per_sample: Number
    metrics: dict[str, Any]
    dev_metrics: dict[str, Any]
    examples: list[dict[str, Any]] = []


class Gain(_Part):
    difference: Number
    interval: tuple[Number, Number] | None


class Point(_Part):
    role: Text
    metrics: dict[str, Any]


class Report(_Part):
    """The parts of a report that pages and tables stand on."""

    recipe: Text
    modality: Text
    method: Text
    seed: int
    overrides: dict[str, Any]
    versions: dict[str, Text]
    metric: Metric
    roles: dict[Text, Role]
    curve: list[Point] = []
    facts: dict[str, Any] = {}
    pictures: dict[Text, Text] = {}
    gap_closed: Number | None
    reason: Text | None
    gain: Gain | None = None
    data: dict[str, Any]
    cost: dict[str, Any]
    export: dict[str, Any]

    @model_validator(mode="after")
    def _measured(self) -> Report:
        if "student" not in self.roles:
            raise ValueError("there is no student among its roles")
        for role, entry in self.roles.items():
            for metrics in (entry.metrics, entry.dev_metrics):
                value = metrics.get(self.metric.name)
                if value is None and self.metric.name in metrics and is_teacher(role):
                    continue  # it answers nothing: only its layers are compared
                if isinstance(value, bool) or not isinstance(value, int | float):
                    raise ValueError(f"{role} has no number {self.metric.name!r:.60}")
        return self


def read(folder: Path) -> dict[str, Any]:
    """The report of a run. Raises `UserError` where there is none, or where it is not what a run writes."""
    path = folder / "report.json"
    if not path.exists():
        raise UserError(f"{folder} has no report.json: is it a finished run?")
    found = read_json(path)
    try:
        Report.model_validate(found)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{path} is not a run's report: {where + ': ' if where else ''}{first['msg']}") from None
    return found  # type: ignore[no-any-return]


@contextmanager
def shown(folder: Path) -> Iterator[None]:
    """What cannot be drawn of a run's files is one line that names the run."""
    try:
        yield
    except WRONG as error:
        told = " ".join(str(error).split())[:200]
        raise UserError(f"{folder} cannot be shown: its report or panels are not what a run writes ({told})") from error


def picture(folder: Path, name: str) -> bytes | None:
    """A PNG of a run folder; None where it is none, lies elsewhere, or is larger than a page should take in."""
    path = inside(folder, name)
    if path is None or path.suffix != ".png":
        return None
    try:
        data = read_bytes(path, MOST_PICTURE)
        check_png(data)
    except (UserError, ValueError):
        return None
    return data


def relative(path: str) -> bool:
    """Whether a path that a report names stays below its folder, whatever shows it."""
    return ":" not in path and not path.startswith(("/", "\\")) and ".." not in PurePosixPath(path).parts


__all__ = ["picture", "read", "relative", "shown"]
