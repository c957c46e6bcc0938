"""Which rows belong to which item: signals of a batch to an entry an item, and entries to signals of another batch.

An entry holds the valid rows of one item and nothing of the batch that it was seen in: padding is made anew by the
batch that it is put into, whose layout the student's own signals give.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

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
    flags = (_FULL if layout.full else 0) | (_EXACT if exact else 0) | len(grid)
    total = len(mask) if exact else count
    bits = b""
    if not mask[:count].all():
        total = len(mask) if exact else int(mask.nonzero()[0][-1]) + 1
        flags |= _MASKED
        bits = np.packbits(mask[:total]).tobytes()
    head = _HEAD.pack(count, total, flags) + struct.pack(f"<{len(grid)}I", *grid)
    return b"".join([head, bits, *(field.tobytes() for field in fields)])


def packed(kept: StoredSignal, entries: Sequence[bytes]) -> Packed:
    """The entries of a batch's items behind one another, as tensors and plain values that any loader can carry.

    ``counts`` (b,) valid rows of each item, ``place`` (n,) their positions among the item's rows, ``fields`` (n, w)
    each, ``total`` (b,) rows that each item must have, ``exact`` whether neither more nor fewer, ``grid`` of each item
    where all its cells count, ``full`` whether every row of every item counts.
    """
    counts, totals, places, grids, full, exact = [], [], [], [], True, True
    pieces: list[list[Array]] = [[] for _ in kept.codec.fields]
    for entry in entries:
        count, total, flags = _HEAD.unpack_from(entry)
        at = _HEAD.size
        axes = flags & 0x1F
        grids.append(struct.unpack_from(f"<{axes}I", entry, at))
        at += 4 * axes
        if flags & _MASKED:
            size = (total + 7) // 8
            bits = np.unpackbits(np.frombuffer(entry, np.uint8, size, at), count=total)
            places.append(bits.nonzero()[0])
            at += size
        else:
            places.append(np.arange(count))
        for piece, (dtype, width) in zip(pieces, kept.codec.fields, strict=True):
            array = np.frombuffer(entry, dtype, count * width, at).reshape(count, width)
            piece.append(array)
            at += array.nbytes
        counts.append(count)
        totals.append(total)
        full, exact = full and bool(flags & _FULL), exact and bool(flags & _EXACT)
    return {
        "counts": torch.tensor(counts),
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


def restored(kept: Mapping[str, StoredSignal], found: Mapping[str, Packed], beside: Signals) -> Signals:
    """The teacher's signals of this batch, on the layouts of the student's.

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
        if place is None:
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
    if pack["full"] and grid and bool((counts == prod(grid)).all()):
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
