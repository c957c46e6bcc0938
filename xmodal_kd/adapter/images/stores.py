"""Where images lie: a folder, or a zip in the EDM convention. Names of images, their bytes, and their labels."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import features

from ...runtime.bounded_arrays import check_member, check_zip
from ...runtime.bounded_files import parse_json, read_bytes
from ...runtime.errors import UserError
from ..packed.shards import NAMES, natural

#: What is taken for an image, by the end of its name; everything else is passed over, as torchvision does.
EXTENSIONS = {
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm",
    ".pnm", ".tga", ".jp2", ".avif",
}  # fmt: skip
if not features.check("avif"):
    EXTENSIONS.discard(".avif")
#: Images too, which Pillow does not read, or not everywhere: they are counted, not passed over in silence.
UNREAD = {".avif", ".heic", ".heif", ".jxl"} - EXTENSIONS
#: First-level folders that are splits of a data set, whatever lies in them.
TRAIN, DEV, TEST = (NAMES[split] for split in ("train", "dev", "test"))
SPLIT_FOLDERS = {*TRAIN, *DEV, *TEST}
#: Folders that systems make: of thumbnails, deleted files and the like.
ASIDE = {"__MACOSX", "@eaDir", "#recycle", "@Recycle", "$RECYCLE.BIN", "lost+found"}
#: Files that may say what images show, or hold them, which are not read, and how they come here.
TABLES = (".csv", ".tsv", ".json", ".jsonl")
SAVED = {
    ".parquet": "datasets.load_dataset(FOLDER).save_to_disk(SAVED) writes what is read here (sources: datasets)",
    ".arrow": "data.path is the folder that save_to_disk wrote, or a split of it (sources: datasets)",
    **dict.fromkeys((".h5", ".hdf5", ".tfrecord", ".mdb"), "write its images as PNG files, a subfolder for each class"),
    ".npy": "numpy.savez(FILE, x=...) with floats (n, channels, height, width) in [-1, 1] is read (sources: arrays)",
}
#: What an array's name ends with, in a zip of latents.
ARRAYS = ".npy"
#: What to do with such a zip where images are looked for.
ADVICE = "where a model of latents is meant, set data.latents: true"
LABELS = "dataset.json"
#: Bytes of an image, or of all labels.
MOST = 1 << 28


@dataclass(frozen=True)
class Labelling:
    """Class index of each image by name, and what the classes are called."""

    index: dict[str, int]
    names: tuple[str, ...]


class Store(Protocol):
    """Images by name (a relative path with slashes), in natural order."""

    names: Sequence[str]

    def read(self, name: str) -> bytes: ...

    def where(self, name: str) -> str:
        """What an error message calls it."""
        ...

    def labelling(self, classes: tuple[str, ...] | None) -> Labelling | None:
        """Labels, if there are any. `classes` names them where the store itself does not."""
        ...


class Folder:
    """Images at any depth below `path`, links followed, hidden files and folders not.

    Labels are those of its dataset.json, or else, if every image lies in a subfolder, the names of the first-level
    subfolders, numbered in natural order: 2 before 10, unlike torchvision's ImageFolder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.is_file():
            raise UserError(f"{path} is a file, not a folder (a zip is read by sources: edm)")
        found = []
        for folder, below, files in os.walk(path, followlinks=True):
            below[:] = [name for name in below if not _hidden(name)]
            found += [(Path(folder) / name).relative_to(path).as_posix() for name in files]
        self.names, self.unread = _images(found), _unread(found)
        if not self.names:
            told = _but(self.unread) or _saved(found)
            raise UserError(f"{path} has no images below it (their names end in {_extensions()}){told}")

    def read(self, name: str) -> bytes:
        return read_bytes(self.path / name, MOST)

    def where(self, name: str) -> str:
        return str(self.path / name)

    def labelling(self, classes: tuple[str, ...] | None) -> Labelling | None:
        if (self.path / LABELS).is_file():
            return parse_labels(self.read(LABELS), self.where(LABELS), self.names, classes)
        if not all("/" in name for name in self.names):
            return None
        folders = {name: name.partition("/")[0] for name in self.names}
        if {folder.lower() for folder in folders.values()} <= SPLIT_FOLDERS:
            there = sorted(set(folders.values()))
            raise UserError(
                f"{self.path}: its subfolders {', '.join(there)} are splits, not classes: set data.path to the one to "
                "train on and data.test_path to the one to test on"
            )
        if len(set(folders.values())) == 1 and all(name.count("/") > 1 for name in self.names):
            inner = self.path / next(iter(folders.values()))
            raise UserError(
                f"{self.path}: all its images lie in {inner}, and below it in folders: set data.path to that one"
            )
        numbers = {folder: i for i, folder in enumerate(sorted(set(folders.values()), key=natural))}
        return Labelling({name: numbers[folder] for name, folder in folders.items()}, tuple(numbers))

    def unlabelled(self, who: str) -> str:
        """Why `labelling` is None, and what to do; `who` needs labels."""
        loose = next(name for name in self.names if "/" not in name)
        lists = sorted(path.name for path in self.path.iterdir() if path.suffix.lower() in TABLES)
        held = f"; {lists[0]} is not read" if lists else ""
        return f"{self.path}: {who} needs labels: a subfolder for each class ({loose} is in none), or {LABELS}{held}"

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *_: object) -> None: ...


class Zip:
    """A zip, stored or compressed, of images and dataset.json: the convention of NVIDIA's EDM and StyleGAN."""

    def __init__(self, path: Path, *, latents: bool = False) -> None:
        self.path = path
        if path.is_dir():
            raise UserError(f"{path} is a folder, not a zip (sources: folder reads it)")
        try:
            self._zip = zipfile.ZipFile(path)
        except zipfile.BadZipFile as error:
            raise UserError(f"{path} is not a zip, or a broken one ({error})") from error
        except OSError as error:
            raise UserError(f"{path} is not readable ({error.strerror})") from error
        check_zip(path, self._zip)
        self._all = self._zip.namelist()
        seen = [name for name in self._all if not any(map(_hidden, name.split("/")))]
        arrays = sorted((name for name in seen if name.lower().endswith(ARRAYS)), key=natural)
        self.names = arrays if latents else _images(seen)
        self.unread: list[str] = [] if latents else _unread(seen)
        if not self.names:
            self._zip.close()
            if latents:
                raise UserError(f"{path} holds no latents (names that end in {ARRAYS}): leave data.latents out")
            if arrays:
                raise UserError(f"{path} holds no images but arrays ({arrays[0]}, ...): {ADVICE}")
            raise UserError(f"{path} holds no images (their names end in {_extensions()}){_but(self.unread)}")

    def read(self, name: str) -> bytes:
        try:
            check_member(self.path, self._zip.getinfo(name), MOST)
            return self._zip.read(name)
        except KeyError as error:
            raise UserError(f"{self.where(name)}: no longer in the zip, which has changed: start anew") from error
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError) as error:
            raise UserError(f"{self.where(name)}: cannot be read from the zip ({one_line(error)})") from error

    def where(self, name: str) -> str:
        return f"{self.path}: {name}"

    def labelling(self, classes: tuple[str, ...] | None) -> Labelling | None:
        if LABELS not in self._all:
            return None
        return parse_labels(self.read(LABELS), self.where(LABELS), self.names, classes)

    def unlabelled(self, who: str) -> str:
        """Why `labelling` is None, and what to do; `who` needs labels."""
        deeper = next((name for name in self._all if name.endswith(f"/{LABELS}")), None)
        if LABELS in self._all:
            why = f"the labels of its {LABELS} are null"
        elif deeper:
            why = f"its {LABELS} must lie at the top, not at {deeper}"
        else:
            why = f"it has no {LABELS}: unzip it where its folders are the classes (sources: folder)"
        return f"{self.path}: {who} needs labels: {why}"

    def __enter__(self) -> Zip:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._zip.close()


def kept_open(path: Path, *, latents: bool = False) -> Zip:
    """A zip that is read member by member: its table is read once, not for each. As it stands on the disk now, and not
    by a file that another process moves in; from any thread. Raises `UserError` as `Zip`."""
    try:
        there = path.stat()
    except OSError as error:
        raise UserError(f"{path} is not readable ({error.strerror})") from error
    return _kept(path, latents, (os.getpid(), there.st_size, there.st_mtime_ns))


@lru_cache(maxsize=4)
def _kept(path: Path, latents: bool, there: tuple[int, ...]) -> Zip:
    return Zip(path, latents=latents)


def parse_labels(text: bytes, where: str, names: Sequence[str], classes: tuple[str, ...] | None) -> Labelling | None:
    """A dataset.json: ``{"labels": [[name, class], ...] or null, "classes": [name, ...] (optional)}``.

    Classes that it does not name are called after `classes`, or else after their numbers.

    Raises:
        UserError: not such a JSON, a name without an image, an image without a label, numbers that are not 0 to k-1.
    """
    content = parse_json(text, f"{where}:")
    if not isinstance(content, dict):
        raise UserError(f"{where}: a JSON object with 'labels' is expected")
    pairs = content.get("labels")
    if pairs is None:
        return None
    index = _by_name(pairs, where)
    known = set(names)
    if missing := next((name for name in index if name not in known), None):
        raise UserError(f"{where}: it labels {missing!r}, which is not there")
    if bare := next((name for name in names if name not in index), None):
        raise UserError(f"{where}: {bare!r} has no label")
    declared = _classes(content.get("classes"), where)
    return Labelling(index, class_names(list(index.values()), declared or classes, where))


def _by_name(pairs: Any, where: str) -> dict[str, int]:
    if not isinstance(pairs, list):
        raise UserError(f"{where}: 'labels' must be a list of [name, class], or null")
    index: dict[str, int] = {}
    for pair in pairs:
        if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)):
            raise UserError(f"{where}: each of its 'labels' must be [name, class], got {str(pair)[:80]}")
        name, label = pair[0].replace("\\", "/").removeprefix("./"), pair[1]
        if isinstance(label, bool) or not isinstance(label, int):
            vector = f" (a vector of {len(label)}: write its class's number)" if isinstance(label, list) else ""
            raise UserError(f"{where}: the label of {name!r} must be a class number, got {str(label)[:80]}{vector}")
        if index.setdefault(name, label) != label:
            raise UserError(f"{where}: {name!r} has two labels, {index[name]} and {label}")
    return index


def _classes(names: Any, where: str) -> tuple[str, ...] | None:
    if names is None:
        return None
    if not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
        raise UserError(f"{where}: 'classes' must be a list of names")
    return tuple(names)


def class_names(
    labels: Sequence[int] | npt.NDArray[np.int64], names: tuple[str, ...] | None, where: str
) -> tuple[str, ...]:
    """`names`, or numbers where there are none, for `labels`, which must be 0 to k-1 (`UserError` if not).

    Without names, a number that no sample has is a hole in the numbering, and an error; with names, one that is rare.
    """
    used = {int(label) for label in np.unique(np.asarray(labels))}
    if names is None:
        if used != set(range(len(used))):
            raise UserError(f"{where}: labels must be 0 to k-1 without a hole, got {_some(sorted(used))}")
        return tuple(map(str, range(len(used))))
    if twice := next((name for name, count in Counter(names).items() if count > 1), None):
        raise UserError(f"{where}: two classes are called {twice!r}")
    if wrong := sorted(label for label in used if not 0 <= label < len(names)):
        raise UserError(f"{where}: of {len(names)} classes, labels must be 0 to {len(names) - 1}, got {_some(wrong)}")
    return names


def one_line(error: BaseException) -> str:
    """What an error of another library says, short and on one line."""
    return " ".join(str(error).split())[:160] or type(error).__name__


def _some(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:10])) + (", ..." if len(numbers) > 10 else "")


def _hidden(name: str) -> bool:
    """Also the folders that macOS puts into its zips, and disks that serve several machines beside their files."""
    return name.startswith(".") or name in ASIDE


def _images(names: Sequence[str]) -> list[str]:
    found = [name for name in names if Path(name).suffix.lower() in EXTENSIONS and not _hidden(name.split("/")[-1])]
    return sorted(found, key=natural)


def _unread(names: Sequence[str]) -> list[str]:
    """Images in formats that are not read here."""
    found = [name for name in names if Path(name).suffix.lower() in UNREAD and not _hidden(name.split("/")[-1])]
    return sorted(found, key=natural)


def _but(unread: Sequence[str]) -> str:
    return f", only {len(unread)} that Pillow cannot read here, as {unread[0]}: convert them first" if unread else ""


def _saved(names: Sequence[str]) -> str:
    """What holds images in another way, and what to do."""
    first = next((name for name in sorted(names) if Path(name).suffix.lower() in SAVED), None)
    return "" if first is None else f", but {first}: {SAVED[Path(first).suffix.lower()]}"


def split_folders(path: Path) -> tuple[Path, Path] | None:
    """The folders to train on and to test on, where a data set's folder holds its splits; None for any other."""
    if not path.is_dir():
        return None
    below = {place.name.lower(): place for place in path.iterdir() if place.is_dir() and not _hidden(place.name)}
    if not below or not set(below) <= SPLIT_FOLDERS:
        return None
    train, test = (next((below[name] for name in names if name in below), None) for names in (TRAIN, (*TEST, *DEV)))
    return (train, test) if train is not None and test is not None else None


def _extensions() -> str:
    return " ".join(sorted(EXTENSIONS))
