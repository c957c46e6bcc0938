"""A recipe for utterances with a class each: who hears them, who reads them, of which classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xmodal_kd.adapter.saved_model import CARD
from xmodal_kd.adapter.sketch import Given, Looking, Noted
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.signals.class_mapping import columns

from ..data.found import Recordings
from ..data.symbols import listed
from ..export.saved_folder import kind_in, load_card
from ..models import MODELS
from ..models.pretrained import is_pretrained
from ..models.utterances import classes_in, reads_text

ENOUGH, BATCH = 16_000, 16
#: Students from small to large, and the teachers that are trained for them where there is none.
STUDENTS: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("conv_classifier", {"width": 24, "lookahead": 4}),
    ("conv_classifier", {"width": 64, "lookahead": 4}),
    ("conformer_classifier", {"width": 96, "layers": 4}),
)
TEACHERS: tuple[Mapping[str, Any], ...] = (
    {"width": 96, "layers": 4, "dropout": 0.15},
    {"width": 144, "layers": 6, "dropout": 0.15},
    {"width": 192, "layers": 8, "dropout": 0.15},
)


@dataclass(frozen=True)
class Namer:
    """A teacher of classes by its files.

    Attributes:
        classes: those that it names, in order; None of a text encoder without a head.
        reads: whether it reads what is said, and does not hear it.
    """

    folder: Path
    classes: tuple[str, ...] | None
    reads: bool

    @property
    def needed(self) -> str:
        """What data it wants."""
        with_text = ", each with its text" if self.reads else ""
        named = "" if self.classes is None else f" ({listed(self.classes)})"
        return f"a folder of utterances of a class each{named}{with_text}"


def classifier_in(folder: Path) -> Namer | None:
    """What a folder holds, if that names classes of utterances or reads what is said in them."""
    if getattr(kind_in(folder), "task", "ctc") == "intents":
        return Namer(folder, tuple(load_card(folder, "intents").tokens["symbols"]), reads=False)
    if (folder / CARD).is_file() or not is_pretrained(folder):
        return None
    classes, reads = classes_in(folder), reads_text(folder)
    return Namer(folder, classes, reads) if reads or classes is not None else None


def intents_sections(given: Given, teacher: Namer | None, found: Recordings, looking: Looking) -> dict[str, Any]:
    """The parts of a recipe. Raises `UserError` where the teacher's classes are not the data's, or it has no texts."""
    samples = len(found.parts["train"])
    batch = min(BATCH, samples)
    model, params = STUDENTS[given.size.at]
    student: dict[str, Any] = {"model": Noted(model, f"--{given.size.name}"), "params": dict(params)}
    if given.like is not None:
        if getattr(MODELS[given.like.model], "task", "ctc") != "intents":
            raise UserError(
                f"--like: {given.like.model!r} names no classes, which the data have: take conv_classifier or "
                "conformer_classifier"
            )
        student = {"model": Noted(given.like.model, given.like.why), "params": dict(given.like.params)}
    rates = f"{', '.join(f'{rate:,}' for rate in found.rates)} Hz in the recordings' headers"
    steps = Noted(given.size.steps(samples, batch), given.size.why(samples, batch))
    return {
        "data": {
            "task": Noted("intents", f"{len(found.intents)} classes: {listed(found.intents)}"),
            **found.section,
            "features": Noted({"sample_rate": min(found.rate, ENOUGH), "mels": 40, "normalise": "utterance"}, rates),
            "augment": Noted({"speed": [0.9, 1.1], "freq_masks": 2, "time_masks": 2}, "masks are heard by what learns"),
        },
        "teacher": _taught(given, teacher, found, steps, batch, looking),
        "student": student,
        **_learns(teacher),
        "train": {
            "steps": steps,
            "batch_size": Noted(batch, "what an optimizer step sees; accumulate: 2 computes it in halves"),
            "optimizer": {"lr": 3e-3, "weight_decay": 0.01},
            "schedule": {"kind": "cosine", "warmup": 0.05},
        },
    }


def _taught(
    given: Given, teacher: Namer | None, found: Recordings, steps: Noted, batch: int, looking: Looking
) -> dict[str, Any]:
    if teacher is None:
        return {
            "model": Noted("conformer_classifier", "no --teacher was given: one is trained here first"),
            "params": TEACHERS[given.size.at],
            "train": {
                "steps": steps, "batch_size": batch, "optimizer": {"lr": 1.5e-3, "weight_decay": 0.01},
                "schedule": {"kind": "cosine", "warmup": 0.1},
            },
        }  # fmt: skip
    if teacher.classes is not None:
        known = columns(found.intents, teacher.classes, f"{teacher.folder}: its teacher")
        if lacking := [name for name, at in zip(found.intents, known, strict=True) if at < 0]:
            looking.notes.append(
                f"the teacher does not know {listed(lacking)}: of these the student learns by its labels alone"
            )
    if teacher.reads:
        silent = sum(one.text is None for one in found.parts["train"])
        if silent == len(found.parts["train"]):
            raise UserError(
                f"{teacher.folder}: its teacher reads what is said, and no training utterance has a text: give "
                "transcripts, or a teacher that hears"
            )
        if silent:
            looking.notes.append(f"{silent} training utterances have no text: of these the teacher says nothing")
    how = "reads the transcripts" if teacher.reads else "hears"
    return {"path": Noted(str(teacher.folder), f"as given by --teacher: {how}")}


def _learns(teacher: Namer | None) -> dict[str, Any]:
    """Terms and scheme: by class scores, or of a text encoder in the two stages of Kim et al. (2021)."""
    labels = Noted({"loss": "ce"}, "the intents; also trains the control")
    if teacher is None or not teacher.reads:
        told = "the teacher's class scores; choose the weight on dev, never on test"
        return {"objective": [labels, Noted({"loss": "kd", "params": {"temperature": 4.0}}, told)]}
    vector = Noted({"loss": "textual_kd", "name": "utterance", "on": "utterance"}, "the vector of what is said")
    scores = Noted({"loss": "textual_kd", "params": {"summed": True}}, "the class scores of what is said")
    stages = {"name": "two_stage", "params": {"first": ["utterance"]}}
    return {
        "scheme": Noted(stages, "the vector first, then the classes"),
        "objective": [vector, labels, *([] if teacher.classes is None else [scores])],
    }


__all__ = ["Namer", "classifier_in", "intents_sections"]
