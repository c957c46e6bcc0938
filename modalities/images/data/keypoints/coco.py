"""Persons of COCO's keypoint annotations (Lin et al., 2014): each cut out of its image by its box.

A JSON file has ``images`` (id, file_name), ``annotations`` (image_id, category_id, bbox, keypoints: x, y, v of each
joint, v 0 where it is not labelled, 1 where it is hidden, 2 where it is seen) and ``categories`` (keypoints: the names
of the joints, skeleton: pairs of them counted from 1). Groups (``iscrowd``) and persons without a labelled joint are
passed over.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from xmodal_kd.adapter.images.later import Later
from xmodal_kd.adapter.images.read import CHANNELS, HELD, PIXELS, SHOW_PROGRESS, open_image
from xmodal_kd.adapter.images.section import ImageSection
from xmodal_kd.adapter.images.stores import MOST, one_line
from xmodal_kd.adapter.listed import Listed, Skipped
from xmodal_kd.runtime.allocation import room
from xmodal_kd.runtime.bounded_files import read_bytes
from xmodal_kd.runtime.errors import UserError, nearest
from xmodal_kd.runtime.progress import bar
from xmodal_kd.runtime.whole_files import read_json

from .figures import Figures, Skeleton

#: Bytes of a file of annotations: COCO's largest has 250 MB.
MOST_ANNOTATIONS = 1 << 30
#: Whole images that are held while persons are cut out of them.
AT_HAND = 8
Box = tuple[int, int, int, int]


class Person(NamedTuple):
    """One annotation: left, top, width and height of its box, its joints ``(j, 3)`` as the file has them."""

    key: str
    image: str
    box: tuple[float, float, float, float]
    joints: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Annotations:
    """What a file of annotations says, and where its images lie."""

    file: Path
    images: Path
    skeleton: Skeleton
    persons: tuple[Person, ...]


def annotations_of(path: Path, category: str | None = None) -> Annotations:
    """Those of a JSON file, or of the one in a folder or its ``annotations/`` that has joints; read once in a process.

    Raises:
        UserError: it names the file, what is wrong with it and what to do.
    """
    file = path if path.is_file() else _found(path)
    seen = file.stat()
    skeleton, persons = _read(file, category, seen.st_size, seen.st_mtime_ns)
    return Annotations(file, _images(file, persons[0].image), skeleton, persons)


@lru_cache(maxsize=2)  # of data.path and data.test_path
def _read(file: Path, category: str | None, size: int, date: int) -> tuple[Skeleton, tuple[Person, ...]]:
    """What a file of this size and date says."""
    content = read_json(file, MOST_ANNOTATIONS)
    if not is_keypoints(content):
        raise UserError(
            f"{file}: no keypoint annotations of COCO: it needs the lists images, annotations and categories, one of "
            "these with keypoints"
        )
    number, skeleton = _category(file, content["categories"], category)
    names = {}
    for image in content["images"]:
        if not isinstance(image, dict) or not isinstance(image.get("file_name"), str) or not is_id(image.get("id")):
            raise UserError(f"{file}: images: an entry without id or file_name: {one_line(image)}")
        names[image["id"]] = image["file_name"]
    persons = tuple(_persons(file, content["annotations"], number, names, len(skeleton.names)))
    if not persons:
        raise UserError(f"{file}: no annotation of its category has a labelled joint: give another file")
    return skeleton, persons


def is_keypoints(content: Any) -> bool:
    """Whether JSON is COCO's with joints."""
    if not isinstance(content, dict):
        return False
    if not all(isinstance(content.get(key), list) for key in ("images", "annotations", "categories")):
        return False
    return any(isinstance(one, dict) and one.get("keypoints") for one in content["categories"])


def _found(folder: Path) -> Path:
    """The one file of annotations in a folder."""
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist: give a folder with COCO's annotations, or the JSON file")
    files = candidates(folder)
    if len(files) != 1:
        found = (
            f"it holds {', '.join(file.name for file in files[:5])}: name" if files else "it holds no JSON file: give"
        )
        raise UserError(f"{folder}: {found} the file of COCO's keypoint annotations")
    return files[0]


def candidates(folder: Path) -> list[Path]:
    """JSON files in a folder or its ``annotations/``; those that are called after keypoints, where some are."""
    files = [file for place in (folder, folder / "annotations") for file in sorted(place.glob("*.json"))]
    return [file for file in files if "keypoints" in file.name] or files


def _category(file: Path, categories: Sequence[Any], wanted: str | None) -> tuple[Any, Skeleton]:
    """Number and skeleton of the category whose joints are asked for."""
    held = {str(one.get("name")): one for one in categories if isinstance(one, dict) and one.get("keypoints")}
    if wanted is not None and wanted not in held:
        raise UserError(f"data.keypoints.category: {file} has no joints of {wanted!r}{nearest(wanted, held)}")
    if wanted is None and len(held) > 1:
        raise UserError(f"{file} has joints of {', '.join(held)}: name one of them as data.keypoints.category")
    one = held[wanted or next(iter(held))]
    names = one["keypoints"]
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names) and len(set(names)) == len(names)):
        raise UserError(f"{file}: categories: keypoints must be a list of different names")
    edges = one.get("skeleton") or []
    if not isinstance(edges, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(type(end) is int and 1 <= end <= len(names) for end in pair)
        for pair in edges
    ):
        raise UserError(f"{file}: categories: skeleton must be pairs of numbers from 1 to {len(names)}")
    return one.get("id"), Skeleton(tuple(names), tuple((a - 1, b - 1) for a, b in edges))


def _persons(
    file: Path, annotations: Sequence[Any], number: Any, names: Mapping[Any, str], joints: int
) -> Iterator[Person]:
    for place, one in enumerate(annotations):
        if not isinstance(one, dict):
            raise UserError(f"{file}: annotations: entry {place} is no object")
        if one.get("category_id") != number or one.get("iscrowd"):
            continue
        called = f"{file}: annotation {one.get('id', place)}"
        if not is_id(one.get("image_id")) or one["image_id"] not in names:
            raise UserError(f"{called}: there is no image {one.get('image_id')!r} in images")
        given = _numbers(one.get("keypoints"), 3 * joints, f"{called}: keypoints must be x, y, v of {joints} joints")
        box = four_numbers(one.get("bbox"), called)
        found = given.reshape(joints, 3)
        if not np.isin(found[:, 2], (0, 1, 2)).all():
            raise UserError(f"{called}: how visible a joint is must be 0, 1 or 2")
        if not (found[:, 2] > 0).any():
            continue
        image = names[one["image_id"]]
        yield Person(f"{image}#{one.get('id', place)}", image, box, found)


def is_id(value: Any) -> bool:
    """Whether JSON is what an image may be known by."""
    return isinstance(value, int | str)


def four_numbers(value: Any, called: str) -> tuple[float, float, float, float]:
    """A box: left, top, width, height. Raises `UserError` for anything else, of an annotation `called` so."""
    x, y, width, height = _numbers(value, 4, f"{called}: bbox must be left, top, width, height").tolist()
    if not (width > 0 and height > 0):
        raise UserError(f"{called}: bbox: its sides are {width:g} and {height:g}: they must be above 0")
    return x, y, width, height


def _numbers(value: Any, count: int, wanted: str) -> npt.NDArray[np.float64]:
    try:
        found = np.array(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        found = np.empty(0)
    if found.shape != (count,) or not np.isfinite(found).all() or np.abs(found).max() > 1e6:
        raise UserError(wanted)
    return found


def _images(file: Path, first: str) -> Path:
    """The folder that file names of images start from, by where the first one is."""
    around = (file.parent, file.parent.parent)
    split = file.stem.rpartition("_")[2]
    places = [place / below for place in around for below in ("", "images", split)]
    for place in places:
        if (place / first).is_file():
            return place
    looked = ", ".join(dict.fromkeys(str(place) for place in places))
    raise UserError(f"{file}: its image {first} is in none of {looked}: lay the images beside the file")


def listed_persons(data: ImageSection, category: str | None) -> Iterator[Listed]:
    """The files of annotations, and the images of their persons but for those that ``data.skip`` leaves out."""
    skipped = Skipped.of(data.skip).keys
    for key, path in (("data.path", data.path), ("data.test_path", data.test_path)):
        if path is None:
            continue
        found, named = annotations_of(path.expanduser(), category), set[str]()
        yield Listed(key, found.file, lambda _: None)  # it has been read just now
        for person in found.persons:
            if person.key not in skipped and person.image not in named:
                named.add(person.image)
                yield Listed(person.key, found.images / person.image, looked_at)


def looked_at(path: Path) -> None:
    """Raises `UserError` for an image whose header is none that can be read."""
    open_image(read_bytes(path, MOST), str(path)).close()


# ---------------------------------------------------------------- one image a person


def cut_of(box: Sequence[float], height: int, width: int, margin: float) -> Box:
    """Left, top, right and bottom of what is cut out: the box, wider by `margin`, of the shape of a sample.

    Raises `UserError` for more pixels than are decoded of an image.
    """
    x, y, w, h = box
    tall = max(h, w * height / width) * margin
    wide = tall * width / height
    if tall * wide > PIXELS:
        raise UserError(
            f"a figure's box of {w:g}x{h:g} is cut out with {wide:.0f}x{tall:.0f} pixels, more than {PIXELS:,}: make "
            "the image smaller, or correct the box"
        )
    left, top = round(x + w / 2 - wide / 2), round(y + h / 2 - tall / 2)
    return left, top, left + max(1, round(wide)), top + max(1, round(tall))


def cut_out(image: Image.Image, cut: Box, height: int, width: int) -> Image.Image:
    """``width x height`` pixels of an image's part, black where it reaches beyond."""
    return image.crop(cut).resize((width, height), Image.Resampling.BILINEAR)


@dataclass(frozen=True)
class _Cuts:
    """Persons by number, cut out in whatever process asks."""

    images: Path
    names: tuple[str, ...]
    cuts: tuple[Box, ...]
    height: int
    width: int
    mode: str

    def __call__(self, row: int) -> npt.NDArray[np.uint8]:
        whole = _kept(self.images / self.names[row], self.mode)
        pixels = np.asarray(cut_out(whole, self.cuts[row], self.height, self.width))
        return pixels.reshape(self.height, self.width, -1).transpose(2, 0, 1)

    def signature(self) -> bytes:
        """What changes with any image, and with where it is cut."""
        there = ((name, (self.images / name).stat()) for name in sorted(set(self.names)))
        files = "".join(f"{name} {seen.st_size} {seen.st_mtime_ns}\n" for name, seen in there)
        return f"{files}{self.cuts}{self.height}{self.width}{self.mode}".encode()


@lru_cache(maxsize=AT_HAND)
def _kept(path: Path, mode: str) -> Image.Image:
    return opened(path, mode)


def opened(path: Path, mode: str) -> Image.Image:
    """A whole image in a mode, upright, as those who mark joints see it. Raises `UserError` that names it."""
    with open_image(read_bytes(path, MOST), str(path)) as image:
        try:
            return (ImageOps.exif_transpose(image) or image).convert(mode)
        except Exception as error:  # Pillow's readers raise whatever a broken file leads them to
            raise UserError(f"{path}: a broken image ({one_line(error)})") from error


def _cut(file: Path, one: Person, height: int, width: int, margin: float) -> Box:
    try:
        return cut_of(one.box, height, width, margin)
    except UserError as error:
        raise UserError(f"{file}: {one.key}: {error}") from None


def _held(persons: Later, path: Path) -> npt.NDArray[np.uint8]:
    """All persons, cut out."""
    count, x = len(persons), np.empty(persons.shape, np.uint8)
    with bar(f"cutting figures out, {path.name}", count, quiet=count < SHOW_PROGRESS) as progress:
        for start in range(0, count, 500):
            x[start : start + 500] = persons[start : start + 500]
            progress.update(min(start + 500, count), {})
    return x


def read_coco(
    path: Path, category: str | None, margin: float, height: int, width: int, mode: str, skip: Path | None
) -> Figures:
    """The persons of a file of annotations; those of one image are frames of one clip, so that no split parts them.

    Raises:
        UserError: what is wrong with annotations or images.
    """
    found, skipped = annotations_of(path, category), Skipped.of(skip)
    persons = skipped.keep(found.persons, lambda one: one.key)
    if not persons:
        raise UserError(f"data.skip: it leaves out every person of {path}")
    persons.sort(key=lambda one: one.image)
    cuts = tuple(_cut(found.file, one, height, width, margin) for one in persons)
    box = np.array(cuts, np.float64)
    scale = (width, height) / (box[:, 2:] - box[:, :2])
    given = np.stack([one.joints for one in persons])
    joints = (given[:, :, :2] - box[:, None, :2]) * scale[:, None]
    inside = ((joints >= 0) & (joints < (width, height))).all(axis=2)
    sizes = np.array([one.box[2:] for one in persons]) * scale
    names = tuple(one.image for one in persons)
    make = _Cuts(found.images, names, cuts, height, width, mode)
    shape = (CHANNELS[mode], height, width)
    x: npt.NDArray[np.uint8] | Later
    x = later = Later(make, np.arange(len(persons)), shape, np.uint8, make.signature)
    if len(persons) * math.prod(shape) <= min(HELD, room() // 2):  # each split copies its part
        x = _held(later, path)
    number = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return Figures(
        x, joints.astype(np.float32), np.where(inside, given[:, :, 2], 0).astype(np.uint8),
        sizes.max(axis=1).astype(np.float32), [one.key for one in persons],
        np.array([number[name] for name in names]), found.skeleton, skipped=skipped.found,
    )  # fmt: skip


__all__ = [
    "Annotations",
    "Person",
    "annotations_of",
    "candidates",
    "cut_of",
    "cut_out",
    "four_numbers",
    "is_id",
    "is_keypoints",
    "listed_persons",
    "looked_at",
    "opened",
    "read_coco",
]
