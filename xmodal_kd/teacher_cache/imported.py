"""A store filled from a folder of signals: what fits is taken, what does not is refused by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..adapter.adapter import Adapter
from ..recipe.cache_spec import CacheSpec
from ..recipe.yaml_reader import flat
from ..runtime.errors import UserError
from .codecs import Array
from .entries import Item, StoredSignal, closed
from .folder import CLASSES, CONTENT, SignalFolder, item_of, scores
from .manifest import Manifest

NAMING = "name its samples as the recipe's data do, in index.json or by their files"


class Imported:
    """The folder that a recipe's ``cache.signals`` names.

    Args:
        manifest: whose signals the store holds, as the recipe has it.
    Raises:
        UserError: its shards are not whole; it is of another teacher, of other data, or of other classes.
    """

    def __init__(self, spec: CacheSpec, manifest: Manifest, adapter: Adapter) -> None:
        assert spec.signals is not None
        self.spec, self.folder = spec, SignalFolder(spec.signals.expanduser().absolute())
        self.folder.check_files()
        self._check_origin(manifest)
        self.classes = list(adapter.class_names("teacher"))
        self._check_classes()

    def _check_origin(self, manifest: Manifest) -> None:
        origin = self.folder.about.get("from")
        if origin is None or self.spec.match == "name":
            return
        mine, theirs = _comparable(manifest.identity()), _comparable(origin)
        for key in sorted(mine.keys() | theirs.keys()):
            if mine.get(key) != theirs.get(key):
                raise UserError(
                    f"cache.signals: {self.folder.folder} is not this recipe's: {key} was {theirs.get(key)!r} where it "
                    f"was made, is {mine.get(key)!r}: change the recipe, or say cache.match=name"
                )

    def _check_classes(self) -> None:
        path, theirs = self.folder.folder / CLASSES, list(self.folder.classes() or self.classes)
        if theirs == self.classes:
            return
        at = next((i for i, (a, b) in enumerate(zip(theirs, self.classes, strict=False)) if a != b), None)
        what = f"{len(theirs)} classes, the teacher here {len(self.classes)}"
        what = what if at is None else f"class {at} is {theirs[at]!r}, the teacher's here {self.classes[at]!r}"
        raise UserError(f"{path}: {what}: bring its columns into the order of the classes here")

    # ---------------------------------------------------------------- which signals

    def names(self, wanted: Sequence[str], some: Sequence[str]) -> list[str]:
        """Of the signals that it holds, those `wanted`. Raises `UserError` for one that it has not.

        Args:
            some: of the samples, for the message where the folder holds none of these.
        """
        held = self.folder.described()
        if (lacking := next((name for name in wanted if name not in held), None)) is not None:
            raise UserError(
                f"cache.signals: {self.folder.folder}: holds no {lacking!r}, which the objective compares: it holds "
                f"{', '.join(held)}"
            )
        if self.spec.on_missing == "error" and not any(self.folder.path(name) for name in some):
            raise UserError(
                f"cache.signals: {self.folder.folder}: holds nothing of {some[0]!r} nor of the others: {NAMING}"
            )
        return list(wanted)

    def made(self, here: StoredSignal) -> StoredSignal:
        """How a signal is kept that the teacher here would have `here`: as the folder has it where that is not dense.

        Raises `UserError` for another kind, width or number of classes.
        """
        described = self.folder.described()[here.name]
        if "codec" not in described:
            return here
        there = self.folder.signal(here.name, described, here.number)
        if (there.kind, there.vector, there.codec.width) != (here.kind, here.vector, here.codec.width):
            raise UserError(
                f"cache.signals: {self.folder.folder}: its {here.name!r} are {there.codec.width} wide, a row a "
                f"{there.kind}; the teacher's here {here.codec.width}, a row a {here.kind}"
            )
        return there if described["codec"] != "fp16" else here

    # ---------------------------------------------------------------- entries

    def entries(self, kept: Sequence[StoredSignal], key: str, content: bytes) -> list[bytes] | None:
        """An entry a signal of the sample called `key`; None where nothing is held of it, and that is no error.

        Raises:
            UserError: it is missing and should not be; it is of another content; an array is not as it should be.
        """
        held = self.folder.arrays(key)
        if held is None:
            if self.spec.on_missing == "error":
                raise UserError(
                    f"cache.signals: {self.folder.folder}: holds nothing of {key!r}: add it, or say "
                    "cache.on_missing=skip, or compute"
                )
            return [closed(_nothing(one)) for one in kept] if self.spec.on_missing == "skip" else None
        seen = held.get(CONTENT)
        if seen is not None and self.spec.match == "content" and seen.tobytes() != content:
            raise UserError(
                f"cache.signals: {self.folder.path(key)}: {key!r} was another one there (its content, crop or speed; "
                "or its features were computed on another processor): if it is the same, say cache.match=name"
            )
        return [self._entry(one, held, key) for one in kept]

    def _entry(self, kept: StoredSignal, held: Mapping[str, Array], key: str) -> bytes:
        path = self.folder.path(key)
        described = self.folder.described()[kept.name]
        try:
            if "codec" in described:
                there = self.folder.signal(kept.name, described, kept.number)
                item = item_of(there, held)
                if there.codec.describe() == kept.codec.describe():
                    return closed(item)
                rows = there.codec.decode([torch.from_numpy(np.ascontiguousarray(f)) for f in item.fields]).float()
                return closed(item._replace(fields=kept.codec.encode(rows)))
            dense = scores(path, held) if kept.name == "logits" else held[kept.name].astype(np.float32)
            dense = dense[None] if dense.ndim == 1 and not kept.vector else dense
            dense = dense[:, None] if kept.vector else dense
            if dense.ndim != 2 or dense.shape[1] != kept.codec.width:
                raise ValueError(f"{kept.name} of shape {dense.shape}: (rows, {kept.codec.width}) is expected")
            return closed(Item.of_rows(kept.codec.encode(torch.from_numpy(np.ascontiguousarray(dense)))))
        except (KeyError, ValueError, OverflowError) as error:
            raise UserError(f"{path}: {key!r}: {' '.join(map(str, error.args))}") from None


def _nothing(kept: StoredSignal) -> Item:
    return Item.of_rows([np.zeros((0, width), kind) for kind, width in kept.codec.fields])


def _comparable(identity: Mapping[str, Any]) -> dict[str, Any]:
    """All but where files lie."""
    return {key: value for key, value in flat(dict(identity)).items() if key.rpartition(".")[2] not in ("path", "skip")}
