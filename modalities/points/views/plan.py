"""The batches of an epoch, for sources of whatever task."""

from __future__ import annotations

from xmodal_kd.runtime.random_streams import Streams


def batches_of(split: str, count: int, size: int, streams: Streams, epoch: int) -> list[list[int]]:
    """Shuffled full batches of the training split, the only one if there are fewer samples; of others all, in order."""
    learns = split == "train"
    order = streams.numpy("order", epoch).permutation(count).tolist() if learns else list(range(count))
    whole = count - count % size if learns else count
    return [order[i : i + size] for i in range(0, whole, size)] or [order]
