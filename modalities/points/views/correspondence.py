"""Which element of one view shows what an element of another shows.

A view turns the points of a sweep into elements: cells of a range image, pixels of a picture, points of a point model.
Two elements correspond if they show the same point. A correspondence is a sparse matrix with a row per target and a
column per source, kept as pairs; batches lay the elements of their items end to end. Augmentations of either view are
maps from old rows to new ones, so what is matched once survives any of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int, Int64
from torch import Tensor


# docs/decisions/012-points.md
@dataclass(frozen=True)
class Correspondence:
    """Pairs of elements, within the flattened rows of a batch.

    A pair of elements that several points join appears once for each: their number is its weight in a mean.

    Attributes:
        source: ``(m,)`` row of each pair on the side that gives.
        target: ``(m,)`` row of each pair on the side that receives.
        weight: ``(m,)`` above 0.
        item: ``(m,)`` which item of the batch a pair belongs to.
        sources: number of source rows of each item.
        targets: number of target rows of each item.
    """

    source: Int64[Tensor, " m"]
    target: Int64[Tensor, " m"]
    weight: Float32[Tensor, " m"]
    item: Int64[Tensor, " m"]
    sources: tuple[int, ...]
    targets: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.source)

    @property
    def items(self) -> int:
        return len(self.sources)

    def to(self, device: torch.device | str) -> Correspondence:
        parts = {name: getattr(self, name).to(device) for name in ("source", "target", "weight", "item")}
        return replace(self, **parts)

    def flipped(self) -> Correspondence:
        """The same pairs with the sides exchanged."""
        return replace(self, source=self.target, target=self.source, sources=self.targets, targets=self.sources)

    def remap(
        self,
        source: Int64[Tensor, " sources"] | None = None,
        target: Int64[Tensor, " targets"] | None = None,
        *,
        sources: Sequence[int] | None = None,
        targets: Sequence[int] | None = None,
    ) -> Correspondence:
        """The pairs after the rows of either side have moved.

        Args:
            source, target: new row of every old row of that side, -1 where it is gone. Several old rows may become one.
            sources, targets: rows of each item afterwards, where their number changes (a crop).

        Raises:
            ValueError: a map of another length than that side's rows, one that leaves the new rows, or that moves a
                row into another item.
        """
        new_sources = self.sources if sources is None else tuple(sources)
        new_targets = self.targets if targets is None else tuple(targets)
        new_source = _mapped("source", self.source, source, sum(self.sources), new_sources)
        new_target = _mapped("target", self.target, target, sum(self.targets), new_targets)
        kept = (new_source >= 0) & (new_target >= 0)
        found = Correspondence(
            new_source[kept], new_target[kept], self.weight[kept], self.item[kept], new_sources, new_targets
        )
        _check_items("source", found.source, found.item, new_sources)
        _check_items("target", found.target, found.item, new_targets)
        return found

    def then(self, other: Correspondence) -> Correspondence:
        """From this one's sources to `other`'s targets, over the rows in the middle that both match.

        Weights are those of a mean of means: gathering through the result is gathering twice, but that rows in the
        middle which nothing reaches count in no mean.
        """
        if self.targets != other.sources:
            raise ValueError(f"this one ends in rows {self.targets} an item, the other starts from {other.sources}")
        order = torch.argsort(self.target, stable=True)
        per_middle = torch.bincount(self.target, minlength=sum(self.targets))
        first = per_middle.cumsum(0) - per_middle
        repeats = per_middle[other.source]  # how many sources stand behind each of the other's pairs
        pair = torch.repeat_interleave(repeats)
        within = torch.arange(len(pair), device=pair.device) - (repeats.cumsum(0) - repeats)[pair]
        mine = order[first[other.source][pair] + within]
        share = self.weight / _sums(self.weight, self.target, sum(self.targets))[self.target]
        return Correspondence(
            self.source[mine],
            other.target[pair],
            share[mine] * other.weight[pair],
            other.item[pair],
            self.sources,
            other.targets,
        )

    def gather(self, rows: Float[Tensor, "sources c"]) -> tuple[Float[Tensor, "targets c"], Bool[Tensor, " targets"]]:
        """The weighted mean of the sources of every target, and which targets have one; zeros for the others.

        Differentiable; without any pair the result still hangs on `rows` in the graph, with gradient 0.
        """
        if len(rows) != sum(self.sources):
            raise ValueError(f"{len(rows)} rows for a correspondence of {sum(self.sources)} sources")
        exact = torch.promote_types(rows.dtype, torch.float32)
        total = sum(self.targets)
        weight = self.weight.to(exact)
        share = weight / _sums(weight, self.target, total)[self.target]
        mean = rows.new_zeros(total, rows.shape[1], dtype=exact)
        mean = mean.index_add(0, self.target, rows.index_select(0, self.source).to(exact) * share[:, None])
        return mean.to(rows.dtype), self.reached

    @property
    def reached(self) -> Bool[Tensor, " targets"]:
        """Which targets have a source."""
        mask = torch.zeros(sum(self.targets), dtype=torch.bool, device=self.target.device)
        mask[self.target] = True
        return mask


def from_elements(
    source_element: Int[np.ndarray, "n ..."],
    target_element: Int[np.ndarray, "n ..."],
    sources: int,
    targets: int,
    weight: Float[np.ndarray, " n"] | None = None,
) -> Correspondence:
    """The correspondence of two views of one item's `n` points.

    Args:
        source_element, target_element: ``(n,)`` the element that shows each point, -1 for none, or ``(n, k)`` where a
            view may show a point up to k times (several cameras): every source of a point is paired with every target.
        sources, targets: number of elements of each view.
        weight: ``(n,)`` of each point, 1 by default; points of weight 0 match nothing.

    Raises:
        ValueError: different numbers of points, an element that its view does not have, a weight below 0 or not finite.
    """
    left, right = (part[:, None] if part.ndim == 1 else part for part in (source_element, target_element))
    weights = np.ones(len(left), np.float32) if weight is None else np.asarray(weight, np.float32)
    if not len(left) == len(right) == len(weights):
        raise ValueError(f"{len(left)} points of the source, {len(right)} of the target, {len(weights)} weights")
    for side, elements, size in (("source", left, sources), ("target", right, targets)):
        if elements.size and not -1 <= elements.min() <= elements.max() < size:
            raise ValueError(f"{side} elements {elements.min()} to {elements.max()} in a view of {size}")
    if not (np.isfinite(weights).all() and (weights >= 0).all()):
        raise ValueError("a weight is finite and not below 0")
    point, i, j = np.nonzero((left >= 0)[:, :, None] & (right >= 0)[:, None, :] & (weights > 0)[:, None, None])
    return Correspondence(
        torch.from_numpy(left[point, i].astype(np.int64)),
        torch.from_numpy(right[point, j].astype(np.int64)),
        torch.from_numpy(weights[point]),
        torch.zeros(len(point), dtype=torch.int64),
        (int(sources),),
        (int(targets),),
    )


def spread(elements: Int[np.ndarray, "m ..."], chosen: np.ndarray, points: int) -> Int64[np.ndarray, "n ..."]:
    """The elements of all `points` points from those of some: -1 for the others.

    Args:
        elements: of the points that a view was given (a reduced scan's cells, ``arange`` for a sample of points).
        chosen: which points of the sweep they are, as the mask ``(n,)`` or the indexes ``(m,)`` that chose them.
    """
    found = np.full((points, *elements.shape[1:]), -1, dtype=np.int64)
    found[chosen] = elements
    return found


def collate(parts: Sequence[Correspondence]) -> Correspondence:
    """One correspondence of all items, rows counted through the batch."""
    if not parts:
        raise ValueError("a batch has at least one item")
    sources, targets, items = (
        _starts(sizes)
        for sizes in ([sum(p.sources) for p in parts], [sum(p.targets) for p in parts], [p.items for p in parts])
    )
    return Correspondence(
        torch.cat([part.source + start for part, start in zip(parts, sources, strict=False)]),
        torch.cat([part.target + start for part, start in zip(parts, targets, strict=False)]),
        torch.cat([part.weight for part in parts]),
        torch.cat([part.item + start for part, start in zip(parts, items, strict=False)]),
        tuple(size for part in parts for size in part.sources),
        tuple(size for part in parts for size in part.targets),
    )


def collate_row_maps(maps: Sequence[Int64[Tensor, " _"]], sizes: Sequence[int]) -> Int64[Tensor, " old"]:
    """The row map of a batch from those of its items, whose rows afterwards are `sizes`."""
    moved = [torch.where(part >= 0, part + start, -1) for part, start in zip(maps, _starts(sizes), strict=False)]
    return torch.cat(moved)


def _starts(sizes: Sequence[int]) -> list[int]:
    """Where each part begins, and last where all end."""
    return [0, *np.cumsum(sizes).tolist()]


def _sums(values: Tensor, row: Int64[Tensor, " m"], rows: int) -> Tensor:
    return values.new_zeros(rows).index_add(0, row, values)


def _mapped(
    side: str, rows: Int64[Tensor, " m"], row_map: Int64[Tensor, " old"] | None, old: int, new: tuple[int, ...]
) -> Int64[Tensor, " m"]:
    if row_map is None:
        row_map = torch.arange(old, device=rows.device)
    if len(row_map) != old:
        raise ValueError(f"a map of {len(row_map)} rows for {old} {side} rows")
    if old and not -1 <= int(row_map.min()) <= int(row_map.max()) < sum(new):
        raise ValueError(
            f"a {side} map to rows {int(row_map.min())} to {int(row_map.max())} of {sum(new)}: "
            f"where their number changes, say {side}s"
        )
    return row_map.to(rows.device)[rows]


def _check_items(side: str, rows: Int64[Tensor, " m"], item: Int64[Tensor, " m"], sizes: tuple[int, ...]) -> None:
    ends = torch.tensor(sizes, device=rows.device).cumsum(0)
    if not torch.equal(torch.searchsorted(ends, rows, right=True), item):
        raise ValueError(f"a {side} map moves rows into another item")
