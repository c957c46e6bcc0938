"""A recipe of the task keypoints: for COCO's annotations of joints, or figures that are drawn here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from xmodal_kd.adapter.sketch import Given, Looking, Noted, Sketch
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.whole_files import read_json

from ..data.keypoints.coco import MOST_ANNOTATIONS, Annotations, annotations_of, candidates, is_keypoints
from ..data.keypoints.skeletons import NAMES
from ..data.keypoints_section import SIZES
from ..export.keypoints_folder import KeypointsCard, load_card

HELP = "docs/own_data.md#images-joints-of-figures"
DRAWN = "skeletons"
#: Images split off where there are enough of them, and else which share of all, but so many of each at least.
DEV, TEST, SHARE, FEWEST = 297, 500, 6, 6
#: Heights that figures are brought to, and halvings within an hourglass that fit them and three quarters of them.
HEIGHTS: Mapping[int, int] = {64: 2, 128: 3, 256: 4}
#: Widths of students from small to large, and of the teachers that are trained for them where there is none.
WIDTHS, TAUGHT, STACKS = (8, 16, 32), (16, 32, 64), 2
BATCH = 32
TRAIN = {"optimizer": {"lr": 3e-3}, "schedule": {"kind": "cosine", "warmup": 0.05}}


@dataclass(frozen=True)
class Figures:
    """What there is to learn from."""

    section: Mapping[str, Any]
    size: tuple[int, int]
    names: tuple[str, ...]
    train: int
    said: str


def fits(data: Path | None) -> bool:
    """Whether data are joints: the name of the drawn figures, or a file or folder of COCO's annotations of joints."""
    if data is None or (str(data) == DRAWN and not data.exists()):
        return data is not None
    place = data.expanduser()
    files = [place] if place.suffix == ".json" and place.is_file() else candidates(place) if place.is_dir() else []
    return any(_has_joints(file) for file in files)


def _has_joints(file: Path) -> bool:
    try:
        return is_keypoints(read_json(file, MOST_ANNOTATIONS))
    except UserError:
        return False


def sketch(given: Given) -> Sketch:
    """The parts of a recipe, or what stands in its way."""
    looking, card, figures = Looking(), None, None
    if given.teacher is not None:
        with looking.on():
            card = load_card(given.teacher)
    with looking.on():
        assert given.data is not None  # `fits` has seen it
        figures = _drawn() if str(given.data) == DRAWN else _of_coco(given.data, card)
    if card is not None and figures is not None and card.joints != figures.names:
        looking.problems.append(
            f"{given.teacher} knows the joints {', '.join(card.joints)}, the data {', '.join(figures.names)}: give "
            "annotations of the teacher's, in the same order, or leave --teacher out, and one is trained on these"
        )
    if looking.problems or figures is None:
        return Sketch(problems=tuple(looking.problems))
    taught = "a teacher that it trains itself" if card is None else str(given.teacher)
    return Sketch(f"A small finder of joints in {figures.said}, taught by {taught}.", _sections(given, card, figures))


def _drawn() -> Figures:
    section = {
        "task": Noted("keypoints", "joints of figures"),
        "sources": Noted(DRAWN, "figures that are drawn here: to try things out"),
        "keypoints": {"figures": 1000},
    }
    return Figures(section | {"dev": 100, "test": 300}, SIZES[DRAWN], NAMES, 1000, "drawn figures")


def _of_coco(data: Path, card: KeypointsCard | None) -> Figures:
    path, test_path = _files(data.expanduser())
    found = annotations_of(path)
    images, test = len({person.image for person in found.persons}), None
    section: dict[str, Any] = {
        "task": Noted("keypoints", f"{len(found.persons):,} persons with joints in {images:,} images: {path.name}"),
        "sources": "coco",
        "path": str(path),
    }
    dev = min(DEV, max(FEWEST, images // SHARE))
    if test_path is not None:
        section["test_path"] = Noted(str(test_path), "found beside it: test images")
    else:
        test = min(TEST, max(FEWEST, images // SHARE))
    left = images - dev - (test or 0)
    if left < FEWEST:
        raise UserError(f"--data {data}: {images} images: at least {3 * FEWEST} are needed, for training, dev and test")
    size, why = _size(found, card)
    stride = 4 if card is None else card.stride
    section |= {"size": Noted(list(size), why), "dev": Noted(dev, f"images split off, of {images:,}")}
    section |= {} if test is None else {"test": test}
    section["keypoints"] = {
        "stride": Noted(stride, "pixels of a position of a heat map"), "rotate": Noted(20, "degrees, in training"),
        "scale": 0.2,
    }  # fmt: skip
    return Figures(section, size, found.skeleton.names, max(1, len(found.persons) * left // images), str(data))


def _files(place: Path) -> tuple[Path, Path | None]:
    """The annotations to train on, and those to test on where names tell them (COCO's own: train2017, val2017)."""
    if place.is_file():
        return place, None
    files = [file for file in candidates(place) if _has_joints(file)]
    train = [file for file in files if "train" in file.stem]
    if len(files) == 2 and len(train) == 1:
        return train[0], next(file for file in files if file not in train)
    if len(files) > 1:
        raise UserError(f"--data {place}: it holds {', '.join(file.name for file in files)}: name one of them")
    return files[0], None


def _size(found: Annotations, card: KeypointsCard | None) -> tuple[tuple[int, int], str]:
    if card is not None:
        return card.shape[1:], "height and width that the teacher sees"
    tall = median(max(person.box[2:]) for person in found.persons)
    upright = median(person.box[2] / person.box[3] for person in found.persons) < 0.9
    height = next((one for one in HEIGHTS if one >= tall), max(HEIGHTS))
    size = height, height * 3 // 4 if upright else height
    return size, f"height and width; the larger side of half of the boxes is below {tall:.0f} pixels"


def _sections(given: Given, card: KeypointsCard | None, figures: Figures) -> dict[str, Any]:
    at, batch = given.size.at, min(BATCH, figures.train)
    depth = next((halvings for height, halvings in HEIGHTS.items() if height >= figures.size[0]), max(HEIGHTS.values()))
    steps = Noted(given.size.steps(figures.train, batch), given.size.why(figures.train, batch))
    train = {"steps": steps, "batch_size": batch, **TRAIN}
    sided = any(name.startswith(("left", "right")) for name in figures.names)
    flip = Noted(sided, "mirrored figures, whose left joints become right ones, by their names")
    teacher: dict[str, Any] = {"path": Noted(str(given.teacher), "as given by --teacher")}
    if card is None:
        params = {"width": TAUGHT[at], "depth": depth, "stacks": STACKS}
        why = "no --teacher was given: one is trained here first"
        teacher = {"model": Noted("hourglass", why), "params": params, "train": dict(train)}
    student: dict[str, Any] = {
        "model": Noted("hourglass", f"--{given.size.name}"), "params": {"width": WIDTHS[at], "depth": depth},
    }  # fmt: skip
    if given.like is not None:
        student = {"model": Noted(given.like.model, given.like.why), "params": dict(given.like.params)}
    return {
        "data": {**figures.section, "flip": flip},
        "teacher": teacher,
        "student": student,
        "objective": [
            Noted(
                {"loss": "heatmap_mse", "labels": "heatmaps", "weight": 100},
                "the labels; also trains control and teacher. 100: most of a map is 0, so its mean is small",
            ),
            Noted(
                {"loss": "logit_mse", "weight": 100}, "the teacher's heat maps; choose weights on dev, never on test"
            ),
        ],
        "train": train,
    }


__all__ = ["fits", "sketch"]
