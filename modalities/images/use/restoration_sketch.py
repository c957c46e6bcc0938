"""A recipe of the task restoration: for images of a saved restorer's kind, or the photographs of scikit-learn."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from xmodal_kd.adapter.images.found import found, found_zip
from xmodal_kd.adapter.saved_model import CARD
from xmodal_kd.adapter.sketch import Given, Looking, Noted, Sketch
from xmodal_kd.runtime.checkpoint import read_object
from xmodal_kd.runtime.errors import UserError

from ..data.restoration_section import CROP, PHOTO
from ..export.restoration_folder import RestorationCard, load_card

PHOTOS = "photos"
#: Tiles that the photographs make, and those of them for dev and test.
TILES, DEV, TEST = 120, 20, 40
#: Widths and blocks of students from small to large, and of the teachers that are trained for them.
STUDENTS = ((8, 1), (16, 2), (24, 4))
TEACHERS = ((32, 6), (48, 8), (64, 16))
BATCH = 16
TRAIN = {"optimizer": {"lr": 1e-3}, "schedule": {"kind": "cosine", "warmup": 0.05}}


def fits(given: Given) -> bool:
    """Whether a restorer teaches, or the data are the photographs by their name."""
    if given.teacher is not None and (given.teacher / CARD).is_file():
        return read_object(given.teacher / CARD).get("task") == "restoration"
    return str(given.data) == PHOTOS and not Path(PHOTOS).exists()


def sketch(given: Given) -> Sketch:
    """The parts of a recipe, or what stands in its way."""
    looking, card, read = Looking(), None, None
    if given.teacher is not None:
        with looking.on():
            card = load_card(given.teacher)
    with looking.on():
        read = _images(given.data)
    if card is not None and read is not None and card.shape[0] != read[1][0]:
        looking.problems.append(
            f"{given.teacher} sees images of {card.shape[0]} channels, the data's have {read[1][0]}: convert them, or "
            "leave --teacher out"
        )
    if looking.problems or read is None:
        return Sketch(problems=tuple(looking.problems))
    taught = "a teacher that it trains itself" if card is None else str(given.teacher)
    return Sketch(f"A small restorer of {given.data}, taught by {taught}.", _sections(given, card, *read))


def _images(data: Path | None) -> tuple[dict[str, Any], tuple[int, ...], int]:
    """Keys of the data section, the shape of an image, and samples for training."""
    if data is None:
        raise UserError("--data is missing: a folder of images of any size, an EDM zip, or photos")
    if str(data) == PHOTOS and not data.exists():
        why = f"{TILES} tiles of the two photographs that come with scikit-learn: to try things out"
        return {"sources": Noted(PHOTOS, why), "dev": DEV, "test": TEST}, (3, PHOTO, PHOTO), TILES - DEV - TEST
    readers = {".zip": partial(found_zip, who=None)}
    images = found(data, readers, who=None, what="a folder of images of any size, an EDM zip, or photos")
    section = {**images.section, **images.splits}
    section.pop("size", None)
    if section["sources"].value not in ("folder", "edm", "digits"):
        raise UserError(f"--data {data}: the task restoration reads a folder of images or an EDM zip: unpack it")
    return section, images.shape, images.train


def _sections(
    given: Given, card: RestorationCard | None, data: dict[str, Any], shape: tuple[int, ...], samples: int
) -> dict[str, Any]:
    at, batch = given.size.at, min(BATCH, samples)
    steps = Noted(given.size.steps(samples, batch), given.size.why(samples, batch))
    train = {"steps": steps, "batch_size": batch, **TRAIN}
    teacher: dict[str, Any] = {"path": Noted(str(given.teacher), "as given by --teacher")}
    if card is None:
        (width, blocks), why = TEACHERS[at], "no --teacher was given: one is trained here first"
        teacher = {"model": Noted("edsr", why), "params": {"width": width, "blocks": blocks}, "train": dict(train)}
    width, blocks = STUDENTS[at]
    student: dict[str, Any] = {
        "model": Noted("edsr", f"--{given.size.name}"), "params": {"width": width, "blocks": blocks},
    }  # fmt: skip
    if given.like is not None:
        student = {"model": Noted(given.like.model, given.like.why), "params": dict(given.like.params)}
    taken = {
        "scale": Noted(2, "how much smaller a side of the input is"),
        "noise": Noted(0, "deviation, of 255 levels"),
    }
    if card is not None:
        why = "as the teacher was trained"
        taken = {"scale": Noted(card.scale, why), "noise": Noted(card.noise, why)}
    least, scale = min(CROP, *shape[1:]), 2 if card is None else card.scale
    small = {} if least == CROP else {"crop": Noted(least - least % scale, "images are no larger")}
    return {
        "data": {
            "task": Noted("restoration", "images are made smaller or noisy, and given back"),
            **data,
            "flip": Noted(True, "mirrored training crops"),
            "restoration": {**taken, **small},
        },
        "teacher": teacher,
        "student": student,
        "objective": [
            Noted({"loss": "pixel_l1", "on": "prediction"}, "what is right; also trains control and teacher"),
            Noted(
                {"loss": "logit_mae", "on": "prediction"}, "the teacher's image; choose weights on dev, never on test"
            ),
            Noted({"loss": "wavelet_kd", "on": "prediction", "weight": 0.1}, "its edges and textures"),
        ],
        "train": train,
    }


__all__ = ["fits", "sketch"]
