"""Which rows belong to which item: signals of a batch to an entry an item, and entries to signals of another batch.

An entry holds the valid rows of one item and nothing of the batch that it was seen in: padding is made anew by the
batch that it is put into, whose layout the student's own signals give.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence, Set
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..objective.resample import COORDINATES
from ..runtime.errors import UserError
from ..signals.signals import Kind, Layout, Signal, Signals
from .codecs import Array, Codec

_HEAD = struct.Struct("<IIB")  # valid rows, rows that the item must have, flags and axes
#: Every row counts; the valid ones are not the first; the item has neither more nor fewer rows (it is not padded).
_FULL, _MASKED, _EXACT = 0x80, 0x40, 0x20


class StoredSignal(NamedTuple):
    """A signal as the manifest knows it.

    Attributes:
        number: by which its entries are found.
        kind: of its rows.
        vector: rows are single numbers ``(n,)``.
    """

    name: str
    number: int
    kind: Kind
    vector: bool
    codec: Codec


Packed = dict[str, Any]


def written(kept: StoredSignal, signal: Signal, names: Sequence[str]) -> list[bytes]:
    """An entry for each item of the batch.

    Args:
        names: of the items, for messages.
    Raises:
        UserError: a row holds NaN or infinity, or a value that the codec cannot write; it names the item.
    """
    rows, layout = signal
    order, totals = _by_item(layout)
    mask = layout.mask[order]
    item = layout.item[order][mask].cpu()
    chosen = rows[order][mask]
    chosen = chosen.unsqueeze(-1) if kept.vector else chosen
    _check(kept, chosen, item, names)
    try:
        fields = kept.codec.encode(chosen)
    except OverflowError as error:
        raise UserError(f"cache: the teacher's {kept.name!r} of a sample near {names[0]}: {error}") from None
    counts = np.bincount(item.numpy(), minlength=layout.items)
    ends, tops = np.cumsum(counts), np.cumsum(totals)
    masks = mask.cpu().numpy()
    return [
        _entry(layout, masks[top - total : top], [field[end - count : end] for field in fields])
        for total, top, count, end in zip(totals, tops, counts, ends, strict=True)
    ]


def _check(kept: StoredSignal, rows: Tensor, item: Tensor, names: Sequence[str]) -> None:
    """NaN and infinity are no targets; minus infinity is a score of a class that is masked."""
    if kept.name.partition(":")[0] == COORDINATES:
        return  # a point without coordinates is nobody's neighbour
    allowed = torch.isfinite(rows) | (rows == -torch.inf) if kept.name == "logits" else torch.isfinite(rows)
    if not bool(allowed.all()):
        bad = names[int(item[int((~allowed.all(dim=-1)).nonzero()[0])])]
        raise UserError(f"sample {bad}: the teacher's {kept.name!r} hold NaN or Inf: nothing was cached of it")


def _by_item(layout: Layout) -> tuple[Tensor, Array]:
    """Order that brings rows of an item together as they follow each other, and the number of each item's rows."""
    totals: Array = torch.bincount(layout.item, minlength=layout.items).cpu().numpy()
    if layout.grid is not None:  # in order by what a grid is
        return torch.arange(len(layout), device=layout.item.device), totals
    return layout.item.argsort(stable=True), totals


def _entry(layout: Layout, mask: Array, fields: Sequence[Array]) -> bytes:
    """Head, grid where every cell counts, bits of the mask where valid rows are not the first ones, fields."""
    count = int(mask.sum())
    grid = layout.grid if layout.full and layout.grid is not None else ()
    exact = layout.full or layout.grid is None
    place = mask.nonzero()[0]
    total = len(mask) if exact else int(place[-1]) + 1 if count else 0
    return closed(Item(list(fields), place, total, exact, layout.full, grid))


class Item(NamedTuple):
    """An entry as plain arrays.

    Attributes:
        fields: ``(n, w)`` each, of the valid rows.
        place: ``(n,)`` of each valid row among the item's rows.
        total: rows that the item must have.
        exact: neither more nor fewer.
        full: every row counts.
        grid: shape of the rows where all its cells count.
    """

    fields: list[Array]
    place: Array
    total: int
    exact: bool = False
    full: bool = False
    grid: tuple[int, ...] = ()

    @classmethod
    def of_rows(cls, fields: list[Array]) -> Item:
        """The first rows of the item, whatever padding comes behind them."""
        return cls(fields, np.arange(len(fields[0])), len(fields[0]))


def opened(codec: Codec, entry: bytes) -> Item:
    count, total, flags = _HEAD.unpack_from(entry)
    at, axes = _HEAD.size, flags & 0x1F
    grid = struct.unpack_from(f"<{axes}I", entry, at)
    at += 4 * axes
    place: Array = np.arange(count)
    if flags & _MASKED:
        size = (total + 7) // 8
        place = np.unpackbits(np.frombuffer(entry, np.uint8, size, at), count=total).nonzero()[0]
        at += size
    fields = []
    for dtype, width in codec.fields:
        array = np.frombuffer(entry, dtype, count * width, at).reshape(count, width)
        fields.append(array)
        at += array.nbytes
    return Item(fields, place, total, bool(flags & _EXACT), bool(flags & _FULL), grid)


def closed(item: Item) -> bytes:
    """The entry that `opened` reads; of the same item the same bytes."""
    count, bits = len(item.place), b""
    flags = (_FULL if item.full else 0) | (_EXACT if item.exact else 0) | len(item.grid)
    if not np.array_equal(item.place, np.arange(count)):
        mask = np.zeros(item.total, bool)
        mask[item.place] = True
        flags, bits = flags | _MASKED, np.packbits(mask).tobytes()
    head = _HEAD.pack(count, item.total, flags) + struct.pack(f"<{len(item.grid)}I", *item.grid)
    return b"".join([head, bits, *(np.ascontiguousarray(field).tobytes() for field in item.fields)])


def packed(kept: StoredSignal, entries: Sequence[bytes]) -> Packed:
    """The entries of a batch's items behind one another, as tensors and plain values that any loader can carry.

    ``counts`` (b,) valid rows of each item, ``place`` (n,) their positions among the item's rows, ``fields`` (n, w)
    each, ``total`` (b,) rows that each item must have, ``exact`` whether neither more nor fewer, ``grid`` of each item
    where all its cells count, ``full`` whether every row of every item counts, ``each`` the count where all have one.
    """
    items = [opened(kept.codec, entry) for entry in entries]
    counts, totals, grids = [len(i.place) for i in items], [i.total for i in items], [i.grid for i in items]
    full, exact = all(i.full for i in items), all(i.exact for i in items)
    places = [i.place for i in items]
    pieces = [[i.fields[f] for i in items] for f in range(len(kept.codec.fields))]
    return {
        "counts": torch.tensor(counts),
        "each": counts[0] if len(set(counts)) == 1 else None,
        "total": torch.tensor(totals),
        "place": torch.from_numpy(np.concatenate(places).astype(np.int64)),
        "fields": [torch.from_numpy(_plain(np.concatenate(piece))) for piece in pieces],
        "grid": grids,
        "full": full,
        "exact": exact,
    }


def _plain(array: Array) -> Array:
    """torch computes little with unsigned numbers of more than a byte."""
    wide = {"uint16": np.int32, "uint32": np.int64}
    return array.astype(wide.get(array.dtype.name, array.dtype.newbyteorder("=")), copy=False)


def restored(
    kept: Mapping[str, StoredSignal], found: Mapping[str, Packed], beside: Signals, own: Set[str] = frozenset()
) -> Signals:
    """The teacher's signals of this batch, on the layouts of the student's.

    Args:
        own: signals that stay on the teacher's rows, which a term brings to the student's.
    Raises:
        UserError: an item has more rows than any of the student's signals of that kind has for it.
    """
    out = Signals(beside.ids)
    known: list[tuple[StoredSignal, Packed, _Place]] = []
    for name, pack in found.items():
        one = kept[name]
        rows = one.codec.decode(pack["fields"])
        rows = rows.squeeze(-1) if one.vector else rows
        # signals of one layout are placed once
        place = next((p for other, its, p in known if other.kind == one.kind and _alike(its, pack)), None)
        if name in own:
            place = _Place(*_by_itself(one, pack))
        elif place is None:
            place = _placed(one, pack, beside)
            known.append((one, pack, place))
        out.add(name, place.put(rows), place.layout)
    return out


class _Place(NamedTuple):
    """A layout of this batch, and where in it rows lie; None where they are in its order."""

    layout: Layout
    where: Tensor | None

    def put(self, rows: Tensor) -> Tensor:
        if self.where is None:
            return rows
        return rows.new_zeros((len(self.layout), *rows.shape[1:])).index_copy_(0, self.where, rows)


def _alike(a: Packed, b: Packed) -> bool:
    return a["full"] == b["full"] and a["grid"] == b["grid"] and torch.equal(a["counts"], b["counts"]) and (
        torch.equal(a["place"], b["place"])
    )  # fmt: skip


def _placed(one: StoredSignal, pack: Packed, beside: Signals) -> _Place:
    counts, place = pack["counts"], pack["place"]
    items, device = len(counts), counts.device
    grids = set(pack["grid"])
    grid = next(iter(grids)) if len(grids) == 1 else ()
    if pack["full"] and (grid or one.kind == "sample") and pack["each"] == prod(grid):
        return _Place(Layout.dense(one.kind, items, grid, device), None)
    item = torch.arange(items, device=device).repeat_interleave(counts)
    template = _template(one, pack, beside)
    if template is None:
        if pack["full"]:
            return _Place(Layout.ragged(one.kind, item, items), None)
        template = Layout.padded(one.kind, pack["total"], int(pack["total"].max()))
    order, _ = _by_item(template)
    totals = torch.bincount(template.item, minlength=items)
    where = order[(totals.cumsum(0) - totals)[item] + place]
    if len(where) == len(template) and template.grid is not None:  # all of them, in their order
        return _Place(template, None)
    mask = torch.zeros_like(template.mask).index_fill_(0, where, True)
    if torch.equal(mask, template.mask):
        return _Place(template, where)
    return _Place(Layout(template.kind, mask, template.item, items, template.grid), where)


def _by_itself(one: StoredSignal, pack: Packed) -> tuple[Layout, Tensor | None]:
    """The layout that the rows had, as far as it is of the items and not of the batch; and where in it they lie."""
    totals, items, device = pack["total"], len(pack["total"]), pack["counts"].device
    grids = set(pack["grid"])
    if pack["full"] and len(grids) == 1 and (grid := next(iter(grids))):
        return Layout.dense(one.kind, items, grid, device), None
    owner = torch.arange(items, device=device).repeat_interleave(pack["counts"])
    if pack["full"]:
        return Layout.ragged(one.kind, owner, items), None
    steps = int(totals.max()) if items else 0
    if pack["exact"]:
        item = torch.arange(items, device=device).repeat_interleave(totals)
        first, grid = totals.cumsum(0) - totals, None
    else:
        item = torch.arange(items, device=device).repeat_interleave(steps)
        first, grid = steps * torch.arange(items, device=device), (steps,)
    where = first[owner] + pack["place"]
    mask = torch.zeros(len(item), dtype=torch.bool, device=device).index_fill_(0, where, True)
    return Layout(one.kind, mask, item, items, grid), where


def _template(one: StoredSignal, pack: Packed, beside: Signals) -> Layout | None:
    """The student's layout that these rows belong on: of the same kind, and where several are, of as many valid rows.

    The signal of the same name is asked first. None where the student has no rows of that kind.
    """
    names = sorted(beside, key=lambda name: name != one.name)
    layouts = {id(layout): layout for layout in map(beside.layout, names) if layout.kind == one.kind}
    fits = []
    for layout in layouts.values():
        rows = torch.bincount(layout.item, minlength=layout.items)
        if len(rows) != len(pack["total"]) or bool((rows < pack["total"]).any()):
            continue
        if pack["exact"] and layout.grid is None and not torch.equal(rows, pack["total"]):
            continue
        valid = rows if layout.full else torch.bincount(layout.item[layout.mask], minlength=layout.items)
        if torch.equal(valid, pack["counts"]):
            return layout
        fits.append(layout)
    if layouts and not fits:
        raise UserError(
            f"cache: the {one.kind} rows of the teacher's {one.name!r} fit no signal of the student in this batch: how "
            "the roles meet has changed since the cache was filled: choose another cache.path"
        )
    return fits[0] if fits else None
