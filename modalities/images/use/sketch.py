"""A recipe for a classifier's folder and labelled images: who sees what, of which classes; other tasks beside."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from xmodal_kd.adapter.images.found import Found, found, found_zip, shown
from xmodal_kd.adapter.sketch import Given, Looking, Noted, Sketch
from xmodal_kd.runtime.errors import UserError

from ..export.saved_folder import Card, load_card
from . import keypoints_sketch, restoration_sketch

HELP = "docs/own_data.md#images-pictures-of-a-class-each"
WHO = "a classifier"
BATCH = 64
#: Pixels of the shorter side from which on networks are residual ones of three stages.
RESIDUAL = 24
#: Students from small to large, and the teachers that are trained for them where there is none, of images below that.
STUDENTS: tuple[Mapping[str, Any], ...] = ({"width": 8, "convolutions": 1}, {"width": 8}, {"width": 16})
TEACHERS: tuple[Mapping[str, Any], ...] = ({"width": 16}, {"width": 32}, {"width": 64})
#: Widths of the residual ones.
WIDTHS, TAUGHT = (8, 16, 24), (32, 48, 64)
#: Of the shorter side, by how much a training image is moved at most.
SHIFT = 8
TRAIN = {"optimizer": {"lr": 3e-3}, "schedule": {"kind": "cosine", "warmup": 0.05}}


def sketch(given: Given) -> Sketch:
    """The parts of a recipe, or what stands in its way."""
    if keypoints_sketch.fits(given.data):
        return keypoints_sketch.sketch(given)
    if restoration_sketch.fits(given):
        return restoration_sketch.sketch(given)
    looking, card, images = Looking(), None, None
    if given.teacher is not None:
        with looking.on():
            card = load_card(given.teacher)
    with looking.on():
        if given.data is None:
            raise UserError(_needed(card))
        images = _images(given.data)
    if given.teacher is not None and card is not None and images is not None:
        looking.problems += _clashes(given.teacher, card, images)
    if looking.problems or images is None:
        return Sketch(problems=tuple(looking.problems))
    said = "a teacher that it trains itself" if card is None else str(given.teacher)
    return Sketch(
        f"A small classifier of {given.data}, taught by {said}.", _sections(given, card, images), tuple(images.notes)
    )


def _images(path: Path) -> Found:
    readers = {".zip": partial(found_zip, who=WHO)}
    images = found(
        path, readers, who=WHO, what=f"a folder of images, an EDM zip, digits, or COCO's keypoint annotations ({HELP})"
    )
    if images.classes is None:
        raise UserError(f"--data {path}: its images are of one class: give a subfolder for each class ({HELP})")
    return images


def _needed(card: Card | None) -> str:
    sees = "" if card is None else f" of {shown(card.shape)}, as the teacher sees, in {len(card.classes)} classes,"
    return f"--data is missing: a folder of images{sees} or an EDM zip: {HELP} says how it is laid out"


def _clashes(folder: Path, card: Card, images: Found) -> list[str]:
    """Where images are not what the teacher sees, a line each."""
    lines = []
    if card.shape != images.shape:
        lines.append(
            f"{folder} sees images of {shown(card.shape)}, the data's are {shown(images.shape)}: resize or convert "
            "them, or leave --teacher out, and one is trained on these"
        )
    theirs, ours = card.classes, images.classes or ()
    if theirs != ours:
        at = next((i for i, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b), None)
        where = f"it knows {len(theirs)} classes, the data {len(ours)}"
        if at is not None:
            where = f"its class {at} is {theirs[at]!r}, the data's {ours[at]!r}"
        lines.append(
            f"{folder}: {where}: rename the data's, in the same order, or leave --teacher out, and one is trained on "
            "these"
        )
    return lines


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _sections(given: Given, card: Card | None, images: Found) -> dict[str, Any]:
    side = min(images.shape[1:])
    batch = min(BATCH, images.train)
    named = f"{len(images.classes or ())} classes: {_few(images.classes or ())}"
    data = {**images.section, **images.splits}
    data["sources"] = Noted(data["sources"].value, f"{data['sources'].why}; {named}")
    data["flip"] = Noted(False, "true where an image in a mirror is of the same class: photographs, not letters")
    data["shift"] = Noted(side // SHIFT, "training images are moved by up to so many pixels, an eighth of the side")
    steps = Noted(given.size.steps(images.train, batch), given.size.why(images.train, batch))
    return {
        "data": data,
        **_roles(given, card, side >= RESIDUAL, {"steps": steps, "batch_size": batch, **TRAIN}),
        "objective": [
            Noted({"loss": "ce"}, "the labels; also trains control and teacher"),
            Noted(
                {"loss": "kd", "params": {"temperature": 4.0}},
                "the teacher's answers; choose weights on dev, never on test",
            ),
        ],
        "train": {
            "steps": steps,
            "batch_size": Noted(batch, "what an optimizer step sees; accumulate: 2 computes it in halves"),
            **TRAIN,
        },
    }


def _roles(given: Given, card: Card | None, residual: bool, train: Mapping[str, Any]) -> dict[str, Any]:
    at = given.size.at
    kind = "resnet" if residual else "cnn"
    if card is not None:
        taught: Any = {
            "path": Noted(str(given.teacher), f"as given by --teacher: {card.model}, {len(card.classes)} classes")
        }
    else:
        taught = {
            "model": Noted(kind, "no --teacher was given: one is trained here first"),
            "params": {"width": TAUGHT[at]} if residual else TEACHERS[at],
            "train": dict(train),
        }
    student: dict[str, Any] = {
        "model": Noted(kind, f"--{given.size.name}"),
        "params": {"width": WIDTHS[at]} if residual else STUDENTS[at],
    }
    if given.like is not None:
        student = {"model": Noted(given.like.model, given.like.why), "params": dict(given.like.params)}
    return {"teacher": taught, "student": student}


__all__ = ["sketch"]
