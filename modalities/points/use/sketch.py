"""A recipe for a segmenter's folder and a folder of scans: who sees what, of which sensor, with which labels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xmodal_kd.adapter.saved_model import CARD, folder_of
from xmodal_kd.adapter.sketch import Given, Looking, Noted, Sketch
from xmodal_kd.models.onnx_teacher import is_onnx
from xmodal_kd.runtime.errors import UserError, with_page
from xmodal_kd.teacher_cache.folder import is_signals

from ..data.classes import SHIPPED, read_classes
from ..data.config import Scenes
from ..data.found import HELP, Scans, scans
from ..data.frame import CLASSES
from ..data.measured_sensor import alike
from ..data.simulator.sensors import SensorSpec, sensor
from ..export.onnx_teacher import is_ours
from ..export.saved_folder import Card, check_classes, load_card
from ..models import MODELS
from .stored_teacher import Stored, stored

BATCH, TEACHER_BATCH = 8, 4
#: Widths of students, of the teachers that are trained for them, and simulated scenes, by size.
STUDENTS, TEACHERS = (6, 12, 16), (12, 16, 24)
SCENES = (
    {"train": 80, "dev": 16, "test": 48},
    {"train": 160, "dev": 48, "test": 96},
    {"train": 320, "dev": 96, "test": 192},
)
#: One of so many beams is the student's.
FEWER = 4
COLUMNS = Noted(256, "of the range image, over the full turn")
TRAIN = {"optimizer": {"lr": 1e-2, "weight_decay": 0.01}, "schedule": {"kind": "cosine", "warmup": 0.3}}


def sketch(given: Given) -> Sketch:
    """The parts of a recipe, or what stands in its way."""
    looking, card, found, answers = Looking(), None, None, None
    elsewhere = given.teacher is not None and is_signals(given.teacher) and not (given.teacher / CARD).is_file()
    if given.teacher is not None and not elsewhere:
        with looking.on():
            card = _card(given.teacher)
            _classes(given.teacher, card)
    with looking.on():
        if given.data is None:
            raise UserError(_needed(card))
        found = scans(given.data)
        if given.teacher is not None and elsewhere:
            answers = stored(given.teacher, found.keys)
    if card is not None and found is not None and given.teacher is not None:
        looking.problems += _clashes(given.teacher, card, found)
    if looking.problems or found is None:
        return Sketch(problems=tuple(looking.problems))
    looking.notes += found.notes
    try:
        sections = _sections(given, card, answers, found, looking)
    except UserError as error:
        return Sketch(problems=(with_page(error),))
    said = "a teacher that it trains itself" if given.teacher is None else str(given.teacher)
    return Sketch(f"A segmenter of fewer beams for {given.data}, taught by {said}.", sections, tuple(looking.notes))


def _card(teacher: Path) -> Card:
    """Of a teacher that was saved, or exported, here."""
    if is_onnx(teacher) and not is_ours(teacher):
        raise UserError(
            f"{teacher}: an ONNX file without the {CARD} of its export does not say what it sees: leave --teacher out, "
            "and write teacher.path and data.teacher into the recipe (docs/own_models.md)"
        )
    return load_card(folder_of(teacher))


def _classes(folder: Path, card: Card) -> str | None:
    """The shipped map whose classes the teacher tells apart; None where they are among the eight."""
    if set(card.classes) <= set(CLASSES):
        return None
    for name, path in SHIPPED.items():
        if read_classes(path).names == tuple(card.classes):
            return name
    check_classes(folder, card, CLASSES)  # names the first that is not ours
    return None


def _needed(card: Card | None) -> str:
    sees = "" if card is None else f" (the teacher sees {card.view.sees}, of {card.sensor})"
    return (
        f"--data is missing: a folder of scans{sees} as in {HELP}, or simulator for streets made on the fly "
        "(xmodal-kd simulate FOLDER writes some)"
    )


def _clashes(folder: Path, card: Card, found: Scans) -> list[str]:
    """Where the scans are not what the teacher sees, a line each."""
    lines = []
    ours = None if found.sensor is None else sensor(found.sensor)
    if card.view.sees != "image" and ours is not None and not alike(ours, card.lidar):
        lines.append(
            f"{folder} was trained on {card.lidar.name} of {card.lidar.beams} beams, the scans of {found.path} are of "
            f"{ours.beams} beams ({ours.name}): leave --teacher out, and one is trained on simulated scans of theirs"
        )
    if card.view.sees == "image" and not found.pictures:
        lines.append(f"{folder} sees photographs, {found.path} has none: bring them with their calibration ({HELP})")
    return lines


def _sections(
    given: Given, card: Card | None, answers: Stored | None, found: Scans, looking: Looking
) -> dict[str, Any]:  # fmt: skip
    seen_by = found.sensor or ("hdl64e" if card is None else card.sensor)
    if card is not None and card.view.sees != "image":
        seen_by = card.sensor  # alike, or it would have been refused; its own image of the beams is what it knows
    data, samples = _frames(given, found, seen_by, looking)
    teacher, student = _views(given, card, sensor(seen_by).beams)
    if given.teacher is not None and card is not None and (classes := _classes(given.teacher, card)) is not None:
        data["classes"] = Noted(classes, f"{given.teacher}: what its teacher tells apart")
    if answers is not None and answers.classes is not None:
        data["classes"] = Noted(answers.classes, answers.why)
    data |= {"student": student} if answers is not None else {"teacher": teacher, "student": student}
    if "image" in (_plain(teacher)["sees"], _plain(student)["sees"]):
        size = (96, 320) if card is None else card.image
        data["image"] = Noted(list(size), "height and width that photographs are brought to")
    elif (lidar := sensor(seen_by)).turns:
        data["augment"] = {"rotate": True, "flip": True}
    elif sum(lidar.azimuth) == 0:
        data["augment"] = {"flip": True}
    roles = _roles(given, card, samples)
    if answers is not None:
        roles["teacher"] = _answering(given, answers, found, looking)
    return {"data": data, **roles, **_training(given, samples)}


def _answering(given: Given, answers: Stored, found: Scans, looking: Looking) -> dict[str, Any]:
    """The teacher's section where it ran elsewhere, and what its folder lacks."""
    lacking = len(answers.lacking)
    section: dict[str, Any] = {"signals": Noted(str(given.teacher), "as given by --teacher: logits of each point")}
    if lacking:
        looking.notes.append(
            f"{given.teacher}: no logits of {lacking:,} of {found.frames:,} scans, as {answers.lacking[0]!r}: they "
            "teach by their labels alone where they have some"
        )
    if found.splits is None:
        section["on_missing"] = Noted("skip", "simulated scans have no logits, and teach by their labels")
    elif lacking:
        section["on_missing"] = Noted("skip", f"{lacking:,} of the scans have none")
    return section


def _plain(view: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value.value if isinstance(value, Noted) else value for key, value in view.items()}


def _frames(given: Given, found: Scans, seen_by: str | SensorSpec, looking: Looking) -> tuple[dict[str, Any], int]:
    """What is learned from and measured on, and the number of training samples."""
    said = seen_by if isinstance(seen_by, str) else seen_by.model_dump(mode="json", exclude_defaults=True)
    of = Noted(said, found.why if found.sensor else "of the simulator")
    data: dict[str, Any]
    if found.splits is not None:
        data = {
            "sources": Noted(found.sources, "labels by point were found"),
            "path": Noted(str(found.path), "relative to where the command is called"),
            "sensor": of,
            **found.splits,
        }
        if found.others is not None:
            data["unlabelled"] = Noted(
                {"sources": found.sources, "path": str(found.path), "frames": found.others},
                "sequences without labels: the teacher answers for them",
            )
        return data, found.train
    scenes = Scenes(**SCENES[given.size.at])
    data = {"sources": Noted("simulator", "labels by point come from simulated streets"), "sensor": of,
            "scenes": Noted(scenes.model_dump(), "simulated moments, a street of its own each")}  # fmt: skip
    if found.path is None:
        return data, scenes.train
    looking.notes.append(
        f"{found.path} has no labels by point: simulated streets have, and the teacher answers for the recorded scans; "
        "teacher and student are measured on simulated streets, and on the recorded ones by their agreement"
    )
    learned = max(1, found.frames * 2 // 3)
    repeat = max(1, scenes.train // learned)
    folder = {"sources": found.sources, "path": str(found.path)}
    data["unlabelled"] = Noted(
        {**folder, "frames": {"first": 0, "last": learned}, "repeat": repeat},
        f"{learned} of {found.frames} recorded scans, so often that they are as many as the simulated ones",
    )
    if learned < found.frames:
        measured = {**folder, "frames": {"first": learned, "last": found.frames}}
        data["real"] = [Noted(measured, "the other recorded scans: all roles are measured on them")]
    else:
        looking.notes.append(
            f"{found.path} has one scan: it is learned from, and none is left to measure on: bring more"
        )
    return data, scenes.train + learned * repeat


def _views(given: Given, card: Card | None, beams: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the two see of a moment."""
    if card is None:
        teacher: dict[str, Any] = {"sees": Noted("range", f"all {beams} beams, as a range image"), "columns": COLUMNS}
    else:
        told = card.view.model_dump(mode="json", exclude_defaults=True) | {"sees": card.view.sees}
        if card.view.sees == "range":
            told["columns"] = card.view.columns
        if tuple(card.classes) != CLASSES:
            told["classes"] = list(card.classes)
        teacher = {key: Noted(value, "as the teacher's card says") for key, value in told.items()}
    sees = MODELS[given.like.model].view if given.like is not None else "range"
    if sees == "image":
        return teacher, {"sees": Noted("image", "as the student's model does")}
    seen = min(beams, (card.view.beams if card is not None and card.view.beams else beams))
    fewer = next(count for count in range(max(1, seen // FEWER), 0, -1) if beams % count == 0)
    student = {
        "sees": sees,
        "beams": Noted(fewer, f"a quarter of the {seen} that the teacher sees; any divisor of {beams}"),
    }
    if sees == "range":
        student["columns"] = teacher.get("columns", COLUMNS)
    return teacher, student


def _roles(given: Given, card: Card | None, samples: int) -> dict[str, Any]:
    at, batch = given.size.at, min(TEACHER_BATCH, samples)
    if card is not None:
        taught: Any = {
            "path": Noted(str(given.teacher), f"as given by --teacher: {card.model}, {len(card.classes)} classes")
        }
    else:
        taught = {
            "model": Noted("range_unet", "no --teacher was given: one is trained here first"),
            "params": {"width": TEACHERS[at]},
            "train": Noted(
                {"steps": given.size.steps(samples, batch), "batch_size": batch, **TRAIN},
                given.size.why(samples, batch),
            ),
        }
    student: dict[str, Any] = {"model": Noted("range_unet", f"--{given.size.name}"), "params": {"width": STUDENTS[at]}}
    if given.like is not None:
        student = {"model": Noted(given.like.model, given.like.why), "params": dict(given.like.params)}
    return {"teacher": taught, "student": student}


def _training(given: Given, samples: int) -> dict[str, Any]:
    batch = min(BATCH, samples)
    return {
        "objective": [
            Noted({"loss": "ce", "weights": "class_weight"}, "the labels; also trains control and teacher"),
            Noted(
                {"loss": "kd", "weights": "class_weight", "params": {"temperature": 2.0}},
                "the teacher's answers; choose weights on dev, never on test",
            ),
        ],
        "train": {
            "steps": Noted(given.size.steps(samples, batch), given.size.why(samples, batch)),
            "batch_size": Noted(batch, "what an optimizer step sees; accumulate: 2 computes it in halves"),
            **TRAIN,
        },
    }


__all__ = ["sketch"]
