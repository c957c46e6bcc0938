"""A folder of signals, by which teachers that run elsewhere teach here: ``docs/own_logits.md``.

It holds arrays by sample and signal, either a file a sample (``.npz``, of which nothing is unpickled, ``.safetensors``,
or ``.npy``, which holds the logits alone) or shards of many, in which an array is called ``<sample>/<signal>``.
``index.json`` says which file a sample is in where its name does not, ``signals.json`` how the arrays are meant.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from ..runtime.checkpoint import read_json, write_json
from ..runtime.errors import UserError
from ..runtime.saved_steps import file_digest
from ..runtime.whole_files import write_bytes
from .codecs import Array, codec_of
from .entries import Item, StoredSignal

ABOUT, INDEX, CLASSES = "signals.json", "index.json", "vocab.json"
SUFFIXES = (".npz", ".safetensors", ".npy")
#: By which name scores may go in a file, the first that is there.
LOGITS = ("logits", "log_probs", "logprobs")
#: Bytes of arrays after which a shard is full.
SHARD = 1 << 28
#: Of an index, whose lines are some 60 bytes a sample.
MOST_INDEX = 1 << 33
#: What stands behind a signal's name where its rows are not just the first of the sample's: see `entries.Item`.
LAYOUT, PLACE = ".layout", ".place"
#: The array of a sample that says what the teacher saw: the sixteen bytes of `Contents.digest`.
CONTENT = "seen"


def address(name: str, epoch: int) -> str:
    """Of a sample as its augmentation in `epoch` makes it; the clean view is that of epoch 0, and is the sample."""
    return f"{name}#{epoch}" if epoch else name


def is_signals(folder: Path) -> bool:
    """Whether a folder may hold signals: arrays at any depth, and of what, or none of another kind than NumPy's.

    A file of safetensors alone may be a model's weights.
    """
    if not folder.is_dir():
        return False
    kinds = SUFFIXES if (folder / CLASSES).is_file() or (folder / ABOUT).is_file() else (".npz", ".npy")
    return any(path.suffix in kinds for path in folder.rglob("*"))


class SignalFolder:
    """Reads a folder of signals.

    Args:
        key: of the recipe by which the folder was given, for messages.
    Raises:
        UserError: it is not there, or a file that describes it is damaged.
    """

    def __init__(self, folder: Path, key: str = "cache.signals") -> None:
        if not folder.is_dir():
            raise UserError(f"{key}: {folder}: no such folder")
        self.folder = folder
        self.about: Mapping[str, Any] = _mapping(folder / ABOUT)
        self.index: Mapping[str, str] = _mapping(folder / INDEX, MOST_INDEX)
        self._shards: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_shards": {}}  # open files are a process's own

    def path(self, key: str) -> Path | None:
        """The file of a sample, by the index, by its key, or by its key without its suffix."""
        if key in self.index:
            return self.folder / self.index[key]
        plain = key if Path(key).suffix == "" else str(Path(key).with_suffix(""))
        names = [name + suffix for name in (key, plain) for suffix in SUFFIXES]
        return next((self.folder / name for name in names if (self.folder / name).is_file()), None)

    def arrays(self, key: str) -> dict[str, Array] | None:
        """Arrays of a sample by name; None where nothing is stored of it. Raises `UserError` for a damaged file."""
        if (path := self.path(key)) is None:
            return None
        try:
            if path.suffix == ".npz":
                with path.open("rb") as raw, np.load(raw, allow_pickle=False) as held:
                    return {name: np.asarray(held[name]) for name in held.files}
            if path.suffix == ".npy":
                return {LOGITS[0]: np.asarray(np.load(path, allow_pickle=False))}
            file, names = self._opened(path)
            start = f"{key}/"
            return {
                name.removeprefix(start): _array(file, name) for name in (names.get(key, ()) if names else file.keys())
            }
        except Exception as error:  # whatever a damaged file makes its reader say
            raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())[:120]})") from error

    def _opened(self, path: Path) -> tuple[Any, Mapping[str, Sequence[str]]]:
        """A safetensors file, kept open where it is a shard, and the names of a shard's arrays by sample."""
        if path.name not in self.about.get("shards", ()):
            return safe_open(path, "pt"), {}
        if path.name not in self._shards:
            file: Any = safe_open(path, "pt")
            names: dict[str, list[str]] = {}
            for name in file.keys():  # noqa: SIM118
                names.setdefault(name.rpartition("/")[0], []).append(name)
            self._shards[path.name] = file, names
        found: tuple[Any, Mapping[str, Sequence[str]]] = self._shards[path.name]
        return found

    def logits(self, key: str) -> Array | None:
        """``(rows, classes)`` float32, decoded where only the highest are kept; None where nothing is stored.

        Raises `UserError` for a file without scores.
        """
        if (held := self.arrays(key)) is None:
            return None
        if (described := self.described().get("logits")) is not None and described.get("codec", "fp16") != "fp16":
            return decoded(self.signal("logits", described, 0), held)
        return scores(self.path(key), held)

    # ---------------------------------------------------------------- what it says of itself

    @property
    def origin(self) -> bytes:
        """Of which folder the signals are."""
        return blake2b(str(self.folder.absolute()).encode(), digest_size=8).digest()

    def classes(self) -> tuple[str, ...] | None:
        """What each column of the scores means; None where the folder does not say. Raises `UserError`."""
        path = self.folder / CLASSES
        if not path.is_file():
            return None
        held = read_json(path)
        named = dict(enumerate(held)) if isinstance(held, list) else {at: name for name, at in dict(held).items()}
        if not named or sorted(named) != list(range(len(named))):
            raise UserError(f"{path}: a list of symbols or classes, or a column for each, is expected")
        return tuple(str(named[i]) for i in range(len(named)))

    def described(self) -> Mapping[str, Any]:
        """How each signal is kept, by name; dense scores a sample where the folder does not say."""
        found: Mapping[str, Any] = self.about.get("signals", {"logits": {}})
        return found

    def signal(self, name: str, described: Mapping[str, Any], number: int) -> StoredSignal:
        """Raises `UserError` where ``signals.json`` does not say it as it should."""
        try:
            codec = {key: value for key, value in described.items() if key not in ("kind", "vector")}
            kind, vector = described.get("kind", "sample"), described.get("vector", False)
            return StoredSignal(name, number, kind, vector, codec_of(codec))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{self.folder / ABOUT}: signals.{name}: not as written by cache export ({error})"
            ) from None

    def check_files(self) -> None:
        """Raises `UserError` that names a shard which is missing, cut or changed."""
        for name, told in self.about.get("shards", {}).items():
            path = self.folder / name
            if not path.is_file():
                raise UserError(f"{path}: is missing: copy it again, or export its part again")
            if path.stat().st_size != told["bytes"] or file_digest(path) != told["blake2b"]:
                raise UserError(f"{path}: is not what was written (its hash differs): copy it again")


def _mapping(path: Path, most: int = 1 << 28) -> Mapping[str, Any]:
    found = read_json(path, most) if path.is_file() else {}
    if not isinstance(found, dict):
        raise UserError(f"{path}: an object is expected")
    return found


def _array(file: Any, name: str) -> Array:
    tensor = file.get_tensor(name)
    found: Array = (tensor if str(tensor.dtype) != "torch.bfloat16" else tensor.float()).numpy()
    return found


def scores(path: Path | None, held: Mapping[str, Array]) -> Array:
    """What of a file's arrays are dense scores. Raises `UserError` where none are, or where they are no scores."""
    name = next((name for name in LOGITS if name in held), None)
    if name is None:
        raise UserError(f"{path}: no array called logits: it holds {', '.join(held) or 'nothing'}")
    found: Array = held[name]
    if np.isnan(found).any() or np.isposinf(found).any():
        raise UserError(f"{path}: logits hold NaN or Inf")
    if found.size and found.min() >= 0 and np.allclose(found.sum(axis=-1, dtype=np.float64), 1, atol=1e-3):
        raise UserError(f"{path}: these are probabilities, not logits: store their logarithms")
    return found.astype(np.float32)


def decoded(kept: StoredSignal, held: Mapping[str, Array]) -> Array:
    import torch

    fields = [torch.from_numpy(np.ascontiguousarray(field)) for field in item_of(kept, held).fields]
    found: Array = kept.codec.decode(fields).float().numpy()
    return found


# ---------------------------------------------------------------- entries as arrays


def arrays_of(kept: StoredSignal, item: Item) -> dict[str, Array]:
    """A sample's arrays of one signal, by their names in a file."""
    found = {kept.name + name: field for name, field in zip(kept.codec.names, item.fields, strict=True)}
    if item[2:] != (plain := Item.of_rows(item.fields))[2:]:
        found[kept.name + LAYOUT] = np.array([item.total, item.exact, item.full, *item.grid], np.int64)
    if not np.array_equal(item.place, plain.place):
        found[kept.name + PLACE] = item.place.astype(np.int64)
    return found


def item_of(kept: StoredSignal, held: Mapping[str, Array]) -> Item:
    """Raises `KeyError` for an array that is not there, `ValueError` for one of another type or shape."""
    fields = []
    for name, (kind, width) in zip(kept.codec.names, kept.codec.fields, strict=True):
        field = held[kept.name + name]
        if field.shape[1:] != (width,) or field.dtype != np.dtype(kind):
            raise ValueError(f"{kept.name + name} is {field.dtype} {field.shape}, and (rows, {width}) {kind} is needed")
        fields.append(field)
    item = Item.of_rows(fields)
    if (layout := held.get(kept.name + LAYOUT)) is not None:
        total, exact, full, *grid = layout.tolist()
        item = item._replace(total=total, exact=bool(exact), full=bool(full), grid=tuple(grid))
    if (place := held.get(kept.name + PLACE)) is not None:
        item = item._replace(place=place)
    if len(item.place) != len(fields[0]) or (len(item.place) and int(item.place.max()) >= item.total):
        raise ValueError(f"{kept.name}: its layout is not of its {len(fields[0])} rows")
    return item


# ---------------------------------------------------------------- writing


class Shards:
    """Writes samples into shards of a folder, then what describes them. A kill leaves a folder without that.

    Args:
        about: what ``signals.json`` says besides the shards.
        part: of how many (i, n), by which the shards are named.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any], part: tuple[int, int] = (0, 1)) -> None:
        self.folder, self.about, self.part = folder, about, part
        self.index: dict[str, str] = {}
        self.files: dict[str, dict[str, Any]] = {}
        self._arrays: dict[str, Array] = {}
        self._bytes = 0
        (folder / ABOUT).unlink(missing_ok=True)

    def add(self, key: str, arrays: Mapping[str, Array]) -> None:
        """Raises `UserError` for a key that was there before: of two samples one could not be found."""
        if key in self.index:
            raise UserError(f"{self.folder}: two samples are called {key!r}: a folder of signals finds them by name")
        self.index[key] = self._name()
        self._arrays |= {f"{key}/{name}": array for name, array in arrays.items()}
        self._bytes += sum(array.nbytes for array in arrays.values())
        if self._bytes >= SHARD:
            self._flush()

    def _name(self) -> str:
        return f"signals-{self.part[0]}of{self.part[1]}-{len(self.files):05d}.safetensors"

    def _flush(self) -> None:
        if not self._arrays:
            return
        from safetensors.numpy import save

        name = self._name()
        write_bytes(self.folder / name, save({n: np.ascontiguousarray(a) for n, a in self._arrays.items()}))
        self.files[name] = told(self.folder / name)
        self._arrays, self._bytes = {}, 0

    def close(self) -> None:
        self._flush()
        describe(self.folder, self.about, self.files, self.index)


def told(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "blake2b": file_digest(path)}


def describe(folder: Path, about: Mapping[str, Any], files: Mapping[str, Any], index: Mapping[str, str]) -> None:
    """Write what makes the shards of `folder` a folder of signals; ``signals.json`` is the last."""
    if (classes := about.get("classes")) is not None:
        write_json(folder / CLASSES, classes)
    write_json(folder / INDEX, dict(index))
    write_json(folder / ABOUT, {**{k: v for k, v in about.items() if k != "classes"}, "shards": dict(files)})


def merge(folders: Sequence[Path], out: Path) -> dict[str, Any]:
    """Make one folder of the parts of several processes. Returns what it holds.

    Shards are linked where the file system can, else copied. Doing it again adds what is new.

    Raises:
        UserError: a part is not whole, two are of other teachers, data or codecs, or say a sample differently.
    """
    parts = [SignalFolder(folder, "cache merge") for folder in folders]
    first, index, files = parts[0], dict[str, str](), dict[str, Any]()
    for part in parts:
        if not part.about.get("shards"):
            raise UserError(f"{part.folder}: no shards that cache export wrote: nothing to merge")
        part.check_files()
        for key in sorted({*first.about, *part.about} - {"shards"}):
            if first.about.get(key) != part.about.get(key):
                raise UserError(
                    f"{part.folder}: its {ABOUT} says another {key!r} than {first.folder}: parts of one teacher, "
                    "data and cache section can be merged"
                )
        for name, one in part.about["shards"].items():
            if name in files and files[name] != one:
                raise UserError(f"{part.folder / name}: {name} of an earlier part is another: export with --shard I/N")
            files[name] = one
            _place(part.folder / name, out / name)
        index |= _new(parts, part, index)
    classes = read_json(first.folder / CLASSES) if (first.folder / CLASSES).is_file() else None
    about = {key: value for key, value in first.about.items() if key != "shards"}
    describe(out, about | ({} if classes is None else {"classes": classes}), files, index)
    size = sum(file["bytes"] for file in files.values())
    return {"path": str(out), "samples": len(index), "shards": len(files), "bytes": size}


def _new(parts: Sequence[SignalFolder], part: SignalFolder, index: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """What `part` adds to the index. Raises `UserError` where it says something else of a sample that is there."""
    for key, name in part.index.items():
        if key not in index:
            yield key, name
        elif index[key] != name:
            before = next(p for p in parts if p.index.get(key) == index[key])
            a, b = before.arrays(key) or {}, part.arrays(key) or {}
            if a.keys() != b.keys() or any(not np.array_equal(a[n], b[n]) for n in a):
                raise UserError(f"{part.folder}: says something else of {key!r} than {before.folder}: leave one out")


def _place(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.resolve() == target.resolve():
        return
    with suppress(FileNotFoundError):
        target.unlink()
    try:
        target.hardlink_to(source)
    except OSError:  # another disk
        import shutil

        half = target.with_name(f".{target.name}.tmp")
        shutil.copyfile(source, half)
        half.replace(target)


__all__ = ["Shards", "SignalFolder", "address", "arrays_of", "is_signals", "item_of", "merge"]
