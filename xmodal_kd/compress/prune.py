"""Which channels of a teacher a narrower student of the same class keeps: as many as its own sizes say, the best ones.

Importance is that of the filters that write a channel: the sum of their absolute weights (Li et al., ICLR 2017) or how
much the loss would change without them, to first order (Molchanov et al., CVPR 2019).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xmodal_kd.runtime.errors import UserError

from .channels import Channels, Ints
from .origins import Kept

Floats = NDArray[np.float64]
#: A dimension of a weight.
Slot = tuple[str, int]


@dataclass(frozen=True)
class Group:
    """Channels that sit in the same dimensions of the same weights, of which some are kept.

    Attributes:
        slots: those dimensions, and how often a channel sits there: three times in a projection to query, key, value.
        channels: ``(n,)`` their numbers, ascending.
    """

    slots: Mapping[Slot, int]
    channels: Ints


def groups(channels: Channels) -> list[Group]:
    """All channels of a model, by the dimensions that they sit in."""
    places: dict[int, Counter[Slot]] = {}
    for slot in channels.first:
        for number in channels.entries(*slot).tolist():
            places.setdefault(number, Counter())[slot] += 1
    found: dict[frozenset[tuple[Slot, int]], list[int]] = {}
    for number, slots in places.items():
        found.setdefault(frozenset(slots.items()), []).append(number)
    return [Group(dict(key), np.array(sorted(numbers))) for key, numbers in found.items()]


def sizes(found: Sequence[Group], wanted: Mapping[Slot, int]) -> list[int]:
    """How many channels of each group a student keeps, from the sizes of its weights by the teacher's names.

    A dimension in which several groups meet (skip connections, the rows of query and value) is their sum.

    Raises:
        UserError: no whole numbers of channels give these sizes.
    """
    kept: list[int | None] = [None] * len(found)
    sums = {slot: [(i, g.slots[slot]) for i, g in enumerate(found) if slot in g.slots] for slot in wanted}
    while open_ := {slot: parts for slot, parts in sums.items() if any(kept[i] is None for i, _ in parts)}:
        slot, parts = min(open_.items(), key=lambda item: sum(kept[i] is None for i, _ in item[1]))
        unknown = [(i, times) for i, times in parts if kept[i] is None]
        left = wanted[slot] - sum(times * (kept[i] or 0) for i, times in parts)
        whole = sum(times * len(found[i].channels) for i, times in unknown)
        for i, _ in unknown:  # more than one: in the proportion that they have in the teacher
            kept[i] = round(left * len(found[i].channels) / whole)
    numbers = [len(g.channels) if k is None else k for g, k in zip(found, kept, strict=True)]
    for slot, parts in sums.items():
        made = sum(times * numbers[i] for i, times in parts)
        over = next((i for i, _ in parts if not 0 < numbers[i] <= len(found[i].channels)), None)
        if made != wanted[slot] or over is not None:
            raise UserError(
                f"width_prune: the student's {slot[0]!r} has {wanted[slot]} entries along dimension {slot[1]}, which "
                "no choice of the teacher's channels gives: the student must be the same model with fewer of each"
            )
    return numbers


# ---------------------------------------------------------------- importance


def l1(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``|w|`` of each weight."""
    return {name: weight.detach().abs() for name, weight in weights.items()}


def taylor(weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``g w`` of each weight that has a gradient: what the loss loses with it, to first order."""
    return {name: (gradients[name] * weights[name]).detach() for name in weights if name in gradients}


def importance(channels: Channels, parts: Mapping[str, Tensor]) -> Floats:
    """``(numbers,)`` of each channel by its number: the magnitude of the sum of `parts` over the rows that write it.

    Args:
        parts: of matrices and kernels, in the weights' own shapes; vectors write nothing.
    """
    found = np.zeros(len(channels.parent))
    for name, part in parts.items():
        if part.dim() > 1:
            np.add.at(found, channels.entries(name, 0), part.double().flatten(1).sum(dim=1).cpu().numpy())
    return np.abs(found)


# ---------------------------------------------------------------- choice

#: Channels that belong together (heads, norm groups), block by block, and how many blocks the student has.
Partition = tuple[str, list[Ints], int]


def choose(
    found: Sequence[Group], numbers: Sequence[int], scores: Floats, partitions: Sequence[Partition] = ()
) -> NDArray[np.bool_]:
    """``(numbers,)`` whether each channel stays.

    Of a block of a partition (a head, a group of a norm) the student keeps as many channels as of any other; where it
    has fewer heads, the heads of the largest sum stay, the same for query, key and value.

    Raises:
        UserError: heads that do not divide what is kept.
    """
    stays = np.zeros(len(scores), dtype=bool)
    alive = _heads(scores, partitions)
    for group, number in zip(found, numbers, strict=True):
        for block, share in _blocks(group, number, alive, partitions):
            best = block[np.argsort(-scores[block], kind="stable")[:share]]
            stays[best] = True
    return stays


def _heads(scores: Floats, partitions: Sequence[Partition]) -> NDArray[np.bool_]:
    """Channels of heads that stay, and all that are in no head."""
    alive = np.ones(len(scores), dtype=bool)
    for kind, blocks, number in partitions:
        if kind == "heads" and number < len(blocks):
            order = np.argsort([-scores[block].sum() for block in blocks], kind="stable")
            for i in order[number:]:
                alive[blocks[i]] = False
    return alive


def _blocks(
    group: Group, number: int, alive: NDArray[np.bool_], partitions: Sequence[Partition]
) -> list[tuple[Ints, int]]:
    """A group's channels block by block, and how many of each are kept."""
    whole = [(group.channels, number)]
    if number == len(group.channels):
        return whole
    for kind, blocks, wanted in sorted(partitions, key=lambda p: p[0] != "heads"):
        parts = [np.intersect1d(block, group.channels) for block in blocks]
        if sum(map(len, parts)) != len(group.channels) or len(set(map(len, parts))) > 1:
            continue  # of other channels, or of these and others behind each other
        staying = [part for part in parts if alive[part].all()]
        if kind == "norm" and (wanted != len(blocks) or number % wanted):
            continue
        if number % wanted or len(staying) != wanted or number // wanted > min(map(len, staying)):
            raise UserError(f"width_prune: {wanted} heads of {number // wanted} cannot be chosen from {len(blocks)}")
        return [(part, number // wanted) for part in staying]
    return whole


def kept(channels: Channels, stays: NDArray[np.bool_]) -> dict[str, Kept]:
    """What stays of each dimension of each weight."""
    found: dict[str, list[Tensor | None]] = {}
    for name, dim in channels.first:
        stay = stays[channels.entries(name, dim)]
        index = None if stay.all() else torch.from_numpy(np.flatnonzero(stay))
        found.setdefault(name, []).append(index)
    return {name: tuple(indexes) for name, indexes in found.items()}


def partitions(teacher: Channels, student: Channels, names: Mapping[str, str]) -> list[Partition]:
    """The teacher's norm groups and heads, and how many blocks the student has in their place.

    Args:
        names: the teacher's name of each of the student's weights.
    """
    counts = {(kind, _place(student, blocks, names)): len(blocks) for kind, blocks in current(student)}
    own = {name: name for name in teacher.state}
    found: dict[tuple[str, frozenset[Slot]], Partition] = {}
    for kind, blocks in current(teacher):
        key = (kind, _place(teacher, blocks, own))
        if key in counts:  # not of a layer that the student lacks
            found[key] = kind, blocks, counts[key]
    return list(found.values())


def current(channels: Channels) -> list[tuple[str, list[Ints]]]:
    """Partitions by what their channels have become since."""
    return [(kind, [np.unique(channels._roots(b[b > 0])) for b in blocks]) for kind, blocks in channels.partitions]


def _place(channels: Channels, blocks: Sequence[Ints], names: Mapping[str, str]) -> frozenset[Slot]:
    """The dimensions that a partition's channels sit in, by the teacher's names."""
    numbers = np.concatenate(blocks)
    return frozenset(
        (names[name], dim)
        for name, dim in channels.first
        if name in names and np.isin(channels.entries(name, dim), numbers).any()
    )
