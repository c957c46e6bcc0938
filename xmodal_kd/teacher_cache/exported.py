"""A store written as a folder of signals, for another machine to read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..runtime.errors import UserError
from ..runtime.progress import bar
from .entries import StoredSignal, opened
from .fill import Filler, Key
from .folder import CONTENT, Shards, address, arrays_of
from .manifest import Manifest, entry_key
from .store import Store

FORMAT = 1


def export(
    filler: Filler, kept: Mapping[str, StoredSignal], manifest: Manifest, store: Store, folder: Path
) -> dict[str, Any]:
    """Write what `store` holds of the filler's part of the samples. Returns what the folder holds.

    Raises:
        UserError: two samples are of one name; the store has nothing of one.
    """
    signals = {
        name: {"kind": one.kind, "vector": one.vector, **one.codec.describe()} for name, one in sorted(kept.items())
    }
    about = {
        "format": FORMAT, "from": manifest.identity(), "view": filler.spec.view, "signals": signals,
        "classes": list(filler.adapter.class_names("teacher")),
    }  # fmt: skip
    out = Shards(folder, about, filler.part)
    micros = filler.mine(list(filler.plan()))
    with bar("export", len(micros), quiet=filler.quiet) as progress:
        for i, (micro, loaded) in enumerate(zip(micros, filler.loaded(micros), strict=True), 1):
            for key, arrays in _arrays(store, list(kept.values()), micro, loaded["names"], loaded["contents"]):
                out.add(key, arrays)
            progress.update(i, {})
    out.close()
    size = sum(file["bytes"] for file in out.files.values())
    return {"path": str(folder), "samples": len(out.index), "shards": len(out.files), "bytes": size}


def _arrays(
    store: Store, kept: Sequence[StoredSignal], micro: Sequence[Key], names: Sequence[str], contents: Sequence[bytes]
) -> Iterator[tuple[str, dict[str, Any]]]:
    for (epoch, _), name, content in zip(micro, names, contents, strict=True):
        entries = store.get([entry_key(one.number, content) for one in kept])
        if None in entries:
            raise UserError(f"cache {store.folder}: sample {name} is not what it was when the cache was filled")
        arrays = {CONTENT: np.frombuffer(content, np.uint8)}
        for one, entry in zip(kept, entries, strict=True):
            assert entry is not None
            arrays |= arrays_of(one, opened(one.codec, entry))
        yield address(name, epoch), arrays
