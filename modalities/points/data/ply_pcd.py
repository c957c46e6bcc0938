"""PLY and PCD files as columns, by their headers.

Open3D reads both, but fills what a cut PLY lacks with whatever is in memory, and says so only on its own log. A scan
that is half invented must be refused, so the few lines that read one are here; they also need no Open3D.
"""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from xmodal_kd.runtime.bounded_files import read_bytes
from xmodal_kd.runtime.errors import UserError

Columns = dict[str, npt.NDArray[Any]]

#: PLY's names of scalar types, old and new.
PLY_TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2", "ushort": "u2",
    "uint16": "u2", "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4", "float": "f4", "float32": "f4",
    "double": "f8", "float64": "f8",
}  # fmt: skip
PLY_ORDERS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
PCD_TYPES = {(kind, size): f"<{kind.lower()}{size}" for kind in "IU" for size in (1, 2, 4, 8)} | {
    ("F", 4): "<f4",
    ("F", 8): "<f8",
}
#: A header that has not ended here is none.
LONGEST_HEADER = 64 * 1024
#: Bytes of a file, and values of a field.
MOST, MOST_VALUES = 1 << 32, 4096


def read_ply(path: Path) -> Columns:
    """The scalar properties of the element ``vertex``, by name, ``(n,)`` each; other elements are passed over.

    Raises:
        UserError: not a PLY, no vertices, vertices that hold lists, fewer values than the header says.
    """
    content = read_bytes(path, MOST)
    if not content.startswith((b"ply\n", b"ply\r\n")):
        raise UserError(f"{path}: not a PLY file (it does not begin with the line 'ply')")
    lines, body = _header(content, b"end_header", path)
    words = [line.split() for line in lines]
    order = next((line[1] for line in words if len(line) > 1 and line[0] == "format"), "")
    if order not in PLY_ORDERS:
        raise UserError(f"{path}: PLY format {order!r} is unknown (known: {', '.join(PLY_ORDERS)})")
    starts = [i for i, line in enumerate(words) if line[:1] == ["element"]]
    elements = [words[start:end] for start, end in pairwise([*starts, len(words)])]
    at = next((i for i, element in enumerate(elements) if element[0][1:2] == ["vertex"]), None)
    if at is None:
        raise UserError(f"{path}: no element 'vertex': it holds no points")
    for element in elements[:at]:
        body = _after(body, element, order, path)
    count, properties = _element(elements[at], path)
    if odd := next((line for line in properties if len(line) != 2 or line[0] not in PLY_TYPES), None):
        raise UserError(f"{path}: property {' '.join(odd)!r} of its vertices is not a scalar that PLY knows")
    kinds = [(name, PLY_ORDERS[order] + PLY_TYPES[kind]) for kind, name in properties]
    return _text(body, kinds, count, path) if order == "ascii" else _binary(body, kinds, count, path)


def _element(lines: list[list[str]], path: Path) -> tuple[int, list[list[str]]]:
    """How many an element has, and the words of its properties."""
    return _count(lines[0][2:3], path), [line[1:] for line in lines[1:] if line[:1] == ["property"]]


def _after(body: bytes, element: list[list[str]], order: str, path: Path) -> bytes:
    """What follows an element that is none of ours, faces that stand before the vertices for instance."""
    count, properties = _element(element, path)
    if order == "ascii":
        rows = body.split(b"\n", count)
        return rows[count] if len(rows) > count else b""
    sizes = []  # of each property: bytes of its length, 0 for a scalar, and of a value
    for words in properties:
        kinds = words[1:3] if words[:1] == ["list"] and len(words) == 4 else words[:1]
        if unknown := next((kind for kind in kinds if kind not in PLY_TYPES), None):
            raise UserError(f"{path}: property {' '.join(words)!r}: {unknown!r} is no type that PLY knows")
        lists = len(kinds) == 2
        sizes.append((int(PLY_TYPES[kinds[0]][1]) if lists else 0, int(PLY_TYPES[kinds[-1]][1])))
    if not any(length for length, _ in sizes):
        return body[count * sum(size for _, size in sizes) :]
    at, big = 0, order == "binary_big_endian"
    for _ in range(count):
        for length, size in sizes:
            many = int.from_bytes(body[at : at + length], "big" if big else "little") if length else 1
            at += length + many * size
        if at > len(body):
            raise UserError(f"{path}: cut short in its element {element[0][1]!r}, before the vertices")
    return body[at:]


def read_pcd(path: Path) -> Columns:
    """The fields of a PCD (ascii, binary or binary_compressed), by name, ``(n,)`` each; fields of several values and
    padding are left out.

    Raises:
        UserError: not a PCD, a header that is not whole, fewer values than it says.
    """
    lines, body = _header(read_bytes(path, MOST), b"DATA", path)
    header = {line.split()[0].upper(): line.split()[1:] for line in lines if line.split() and not line.startswith("#")}
    names, sizes, kinds = (header.get(key, []) for key in ("FIELDS", "SIZE", "TYPE"))
    counts = header.get("COUNT", ["1"] * len(names))
    if not names or not len(names) == len(sizes) == len(kinds) == len(counts):
        raise UserError(f"{path}: not a PCD file (FIELDS, SIZE, TYPE and COUNT must say the same number of fields)")
    count = _count(header["POINTS"], path) if "POINTS" in header else _grid(header, path)
    fields = []
    for i, (name, size, kind, many) in enumerate(zip(names, sizes, kinds, counts, strict=True)):
        dtype = PCD_TYPES.get((kind.upper(), int(size) if _is_count(size) else 0))
        if dtype is None or not _is_count(many) or not 0 < int(many) <= MOST_VALUES:
            raise UserError(f"{path}: field {name!r} has type {kind}{size} x {many}, which PCD does not know")
        fields += [(name if many == "1" and name != "_" else f"_{i}_{j}", dtype) for j in range(int(many))]
    data = (header["DATA"] or [""])[0].lower()
    readers = {"ascii": _text, "binary": _binary, "binary_compressed": _compressed}
    if data not in readers:
        raise UserError(f"{path}: PCD data {data!r} is unknown (known: {', '.join(readers)})")
    found = readers[data](body, fields, count, path)
    return {name: column for name, column in found.items() if not name.startswith("_")}


def _header(content: bytes, last: bytes, path: Path) -> tuple[list[str], bytes]:
    """The lines up to and with the one that begins with `last`, and what follows."""
    lines: list[str] = []
    stream = io.BytesIO(content)
    while stream.tell() < LONGEST_HEADER and (line := stream.readline()):
        lines.append(line.decode("latin-1").strip())
        if line.strip().upper().startswith(last.upper()):
            return lines, content[stream.tell() :]
    raise UserError(f"{path}: a broken header: no line {last.decode()!r}")


def _count(words: list[str], path: Path) -> int:
    if len(words) != 1 or not _is_count(words[0]):
        raise UserError(f"{path}: the header does not say how many points there are")
    return int(words[0])


def _grid(header: Mapping[str, list[str]], path: Path) -> int:
    """Points by width and height, of a header that does not count them."""
    return _count(header.get("WIDTH", []), path) * _count(header.get("HEIGHT", []), path)


def _is_count(word: str) -> bool:
    return word.isascii() and word.isdecimal() and len(word) < 13


def _binary(body: bytes, fields: list[tuple[str, str]], count: int, path: Path) -> Columns:
    kind = _record(fields, path)
    if len(body) < count * kind.itemsize:
        raise UserError(f"{path}: cut short: {count} points take {count * kind.itemsize} bytes, {len(body)} are there")
    table = np.frombuffer(body, kind, count)
    return {name: table[name] for name, _ in fields}


def _text(body: bytes, fields: list[tuple[str, str]], count: int, path: Path) -> Columns:
    kind = _record(fields, path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy warns of an empty body: the count below says it
            table = np.loadtxt(io.BytesIO(body), dtype=np.float64, ndmin=2, max_rows=count, comments=None)
    except ValueError as error:
        raise UserError(f"{path}: its points are not rows of {len(fields)} numbers") from error
    if len(table) < count or (count and table.shape[1] != len(fields)):
        raise UserError(f"{path}: {count} rows of {len(fields)} numbers are expected, {len(table)} are there")
    table = table.reshape(count, len(fields))
    with np.errstate(invalid="ignore"):
        return {name: table[:, i].astype(kind[name]) for i, (name, _) in enumerate(fields)}


def _compressed(body: bytes, fields: list[tuple[str, str]], count: int, path: Path) -> Columns:
    """Field by field, not point by point, packed by LZF."""
    size = _record(fields, path).itemsize * count
    packed, whole = struct.unpack("<II", body[:8]) if len(body) >= 8 else (0, 0)
    if whole != size or len(body) < 8 + packed:
        raise UserError(f"{path}: cut short, or not compressed as PCD is")
    try:
        unpacked = _lzf(body[8 : 8 + packed], whole)
    except IndexError as error:
        raise UserError(f"{path}: its compressed points are broken") from error
    columns, start = {}, 0
    for name, kind in fields:
        columns[name] = np.frombuffer(unpacked, kind, count, start)
        start += np.dtype(kind).itemsize * count
    return columns


def _lzf(packed: bytes, size: int) -> bytes:
    """LZF: a control byte below 32 announces that many literals and one more, another one a copy of what came before.

    Raises:
        IndexError: the bytes end too early, point before the start or do not give `size`.
    """
    out, i = bytearray(), 0
    while i < len(packed):
        control = packed[i]
        i += 1
        if control < 32:
            out += packed[i : i + control + 1]
            i += control + 1
            continue
        length = control >> 5
        if length == 7:
            length += packed[i]
            i += 1
        start = len(out) - ((control & 31) << 8) - packed[i] - 1
        i += 1
        if start < 0:
            raise IndexError("a copy from before the start")
        if len(out) > size:
            raise IndexError("more than announced")
        for j in range(start, start + length + 2):  # byte by byte: a copy may run into what it writes
            out.append(out[j])
    if len(out) != size:
        raise IndexError("another length than announced")
    return bytes(out)


def _record(fields: list[tuple[str, str]], path: Path) -> np.dtype[Any]:
    try:
        return np.dtype(fields)
    except ValueError as error:
        raise UserError(f"{path}: two fields have one name") from error
