"""The rows of a folder that `datasets` wrote (``save_to_disk``), found in its Arrow files without being read.

What an audio or image column holds lies in the file as it was encoded, so that a row is a place there. Of the layout is
used what its files say: ``state.json`` (which tables), ``dataset_info.json`` (kinds of columns, names of classes), and
``dataset_dict.json`` (splits, a folder each).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...runtime.binary_packages import load
from ...runtime.bounded_files import inside, parse_json, read_bytes
from ...runtime.errors import UserError
from .member import Member
from .row import Row

STATE, INFO, SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"
#: Bytes of one of these.
MOST = 1 << 26
#: Kinds of columns whose content is a file of bytes; a row has it as a member under that name.
KINDS = ("Audio", "Image")
#: Columns that name a row, if it has one of them; else its number does.
KEYS = ("__key__", "key", "id")


def is_table(folder: Path) -> bool:
    """Whether `datasets` has saved a data set there."""
    return (folder / STATE).is_file() and (folder / INFO).is_file()


def split_tables(folder: Path) -> dict[str, Path] | None:
    """The folders of a saved `DatasetDict` by the names of their splits; None for any other folder."""
    if not (folder / SPLITS).is_file():
        return None
    content = _json(folder / SPLITS)
    names = content.get("splits")
    if not isinstance(names, list) or not all(isinstance(name, str) and (folder / name).is_dir() for name in names):
        raise UserError(f"{folder / SPLITS}: 'splits' must name the folders beside it: save the data set anew")
    return {name: folder / name for name in names}


def tables(folder: Path) -> list[Path]:
    """The Arrow files of a saved data set, in order. Raises `UserError` where it is none, or incomplete."""
    if not is_table(folder):
        inner = ", ".join(split_tables(folder) or {}) if folder.is_dir() else ""
        why = f"its splits are {inner}: name one of these folders" if inner else f"it has no {STATE} and {INFO}"
        raise UserError(f"{folder}: not a data set that datasets has saved (save_to_disk): {why}")
    state = _json(folder / STATE)
    if state.get("_indices_data_files"):
        raise UserError(f"{folder}: rows of it were chosen without being written: flatten_indices(), then save_to_disk")
    listed = [one.get("filename") for one in state.get("_data_files") or [] if isinstance(one, dict)]
    found = [inside(folder, name) if isinstance(name, str) else None for name in listed]
    if not found or None in found:
        gone = listed[found.index(None)] if found else "_data_files"
        raise UserError(f"{folder / STATE}: {gone!r} is not there: copy the whole folder, or save it anew")
    return [folder / str(name) for name in listed]


def columns_of_kind(folder: Path) -> dict[str, str]:
    """The first column of each of `KINDS`, by kind."""
    kinds = {kind: name for name, kind in reversed(_kinds(folder).items()) if kind in KINDS}
    if not kinds:
        held = ", ".join(_kinds(folder)) or "none"
        raise UserError(f"{folder}: no Audio or Image among its columns ({held}): cast one to it, and save it anew")
    return kinds


def class_columns(folder: Path) -> dict[str, tuple[str, ...]]:
    """The names of the classes of each column of class numbers."""
    features = _features(folder)
    return {
        name: tuple(map(str, one["names"]))
        for name, one in features.items()
        if isinstance(one, dict) and one.get("_type") == "ClassLabel" and isinstance(one.get("names"), list)
    }


def rows_of(file: Path, kinds: Mapping[str, str], first: int) -> Iterator[Row]:
    """The rows of one Arrow file, the first of which is number `first` of the data set.

    Args:
        kinds: the columns with files in them, by kind.
    Raises:
        UserError: a broken file, or a row whose file is not in it.
    """
    arrow: Any = load("pyarrow", "datasets")
    try:
        with arrow.memory_map(str(file)) as mapped:
            size = mapped.size()
            base = mapped.read_buffer(size).address
            mapped.seek(0)
            for batch in arrow.ipc.open_stream(mapped):
                plain = [
                    name
                    for name, kind in zip(batch.schema.names, batch.schema.types, strict=True)
                    if _plain(arrow, kind)
                ]
                spans = {kind: _spans(arrow, batch.column(name), base, size, file) for kind, name in kinds.items()}
                paths = {kind: _paths(arrow, batch.column(name)) for kind, name in kinds.items()}
                for at, values in enumerate(batch.select(plain).to_pylist() if plain else [{}] * len(batch)):
                    number = first + at
                    key = next((str(values[name]) for name in KEYS if values.get(name) is not None), str(number))
                    row = Row(key, file, {}, values)
                    for kind, (starts, ends, there) in spans.items():
                        if there[at]:
                            told = f"row {number}" + (f" ({paths[kind][at]})" if paths[kind][at] else "")
                            row.members[kind] = Member(file, told, int(starts[at]), int(ends[at] - starts[at]))
                    yield row
                first += len(batch)
    except (OSError, arrow.lib.ArrowException) as error:
        raise UserError(
            f"{file}: not an Arrow stream, or a broken one ({' '.join(str(error).split())[:120]})"
        ) from error


def _plain(arrow: Any, kind: Any) -> bool:
    asked = ("is_string", "is_large_string", "is_integer", "is_floating", "is_boolean")
    return any(getattr(arrow.types, name)(kind) for name in asked)


def _spans(arrow: Any, column: Any, base: int, size: int, file: Path) -> tuple[Any, Any, Any]:
    """Where in the file the bytes of each row begin and end, and which rows have any."""
    data = column.field("bytes") if arrow.types.is_struct(column.type) else column
    there = np.array(data.is_valid()) & np.array(column.is_valid())
    if not there.any():
        return there, there, there
    wide = np.int64 if arrow.types.is_large_binary(data.type) else np.int32
    _, offsets, content = data.buffers()
    ends = np.frombuffer(offsets, wide)[data.offset : data.offset + len(data) + 1].astype(np.int64)
    place = content.address - base
    if not 0 <= place <= size:
        raise UserError(f"{file}: a compressed table, in which no row has a place: save_to_disk writes it without")
    return place + ends[:-1], place + ends[1:], there


def _paths(arrow: Any, column: Any) -> list[str | None]:
    if not arrow.types.is_struct(column.type) or column.type.get_field_index("path") < 0:
        return [None] * len(column)
    return list(column.field("path").to_pylist())


def _kinds(folder: Path) -> dict[str, str]:
    return {name: str(one.get("_type")) for name, one in _features(folder).items() if isinstance(one, dict)}


def _features(folder: Path) -> Mapping[str, Any]:
    features = _json(folder / INFO).get("features")
    if not isinstance(features, dict):
        raise UserError(f"{folder / INFO}: it has no 'features': save the data set anew")
    return features


def _json(path: Path) -> Mapping[str, Any]:
    content = parse_json(read_bytes(path, MOST), path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: a JSON object is expected")
    return content


__all__ = ["class_columns", "columns_of_kind", "is_table", "rows_of", "split_tables", "tables"]
