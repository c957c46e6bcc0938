"""A saved model: ``card.json``, all that is needed beside the weights to build it again, and what its card tells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..runtime.checkpoint import read_json
from ..runtime.errors import UserError

CARD, WEIGHTS = "card.json", "model.safetensors"
ONNX = ".onnx"


class Card(BaseModel):
    """What every ``card.json`` says; a modality adds what its models need. Further keys are kept."""

    model_config = ConfigDict(extra="allow", frozen=True)

    format: int = Field(1, ge=1, le=1)
    modality: str
    model: str
    """Registered name."""
    params: dict[str, Any]


def folder_of(path: Path) -> Path:
    """The folder of a saved model's path, with its card: of an ONNX file, there or not, the one that it lies in."""
    return path.parent if path.suffix == ONNX else path


def model_inside(folder: Path) -> Path | None:
    """Where the models of a folder lie that holds none itself: the newest of the Hub's cache, or of a training's
    ``checkpoint-N``; None for any other folder."""
    if not folder.is_dir():
        return None
    kept = [path for path in folder.glob("snapshots/*") if path.is_dir()]
    if kept:
        return max(kept, key=lambda path: path.stat().st_mtime)
    numbered = [path for path in folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdecimal()]
    return max(numbered, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


@dataclass(frozen=True)
class About:
    """What a modality says of a saved model, for the card that people read (`cards`).

    Attributes:
        title: the card's heading.
        what: a paragraph: what it takes, what it gives.
        use: how it is run, in Markdown.
        front: further keys of the front matter: ``library_name``, ``pipeline_tag``, ``tags``.
    """

    title: str
    what: str = ""
    use: str = ""
    front: Mapping[str, Any] = field(default_factory=dict)


C = TypeVar("C", bound=Card)


def read_card(folder: Path, kind: type[C], what: str) -> C:
    """The card of a saved model, as `kind` reads it.

    Args:
        what: a saved model of this modality in words, for messages: ``"recogniser"``.

    Raises:
        UserError: it names what is missing or wrong.
    """
    path = folder / CARD
    if not folder.is_dir():
        kind_of = "a file" if folder.is_file() else "no such folder"
        raise UserError(f"{folder}: {kind_of}: a saved {what} is a folder with {CARD}: give the student/ of a run")
    if not path.is_file():
        if (student := student_of(folder)) is not None:
            raise UserError(f"{folder}: a run, and no saved {what}: give its student: {student}")
        held = ", ".join(sorted(file.name for file in folder.iterdir())[:5]) or "nothing"
        raise UserError(
            f"{folder}: not a saved {what}: it has no {CARD}, it holds {held}: give the folder of a model that a run "
            "saved (student/ or teacher/ of a run's folder)"
        )
    content = read_json(path)
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        if error.errors()[0]["loc"] == ("modality",) and isinstance(content, dict):
            raise UserError(
                f"{path}: no {what}, but a model of {content.get('modality')!r}: give another folder"
            ) from None
        raise UserError(f"{path}: {explain(error)}") from error


def student_of(folder: Path) -> Path | None:
    """The student that a run left in its folder; None where the folder is no run's, or has no student yet."""
    student = folder / "student"
    return student if (folder / "state.json").is_file() and student.is_dir() else None


def explain(error: ValidationError, *within: str) -> str:
    """The first complaint of pydantic as ``key: what is wrong``; what is wrong alone where it is of no key.

    Args:
        within: keys above the section that was checked.
    """
    first = error.errors(include_url=False)[0]
    key = ".".join(map(str, (*within, *first["loc"])))
    return ": ".join(filter(None, [key, first["msg"].removeprefix("Value error, ")]))


__all__ = ["CARD", "ONNX", "WEIGHTS", "About", "Card", "explain", "folder_of", "read_card", "student_of"]
