"""Whose signals a store holds: refused by name where they are another teacher's, or made from other data."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from ..recipe.yaml_reader import flat
from ..runtime.checkpoint import digest, read_json, write_json
from ..runtime.errors import UserError
from .codecs import codec_of
from .entries import StoredSignal

FILE = "manifest.json"
SCHEMA = 2
_ENTRY, _LEDGER = struct.Struct(">BH16s"), struct.Struct(">BHQIQ")


def entry_key(number: int, content: bytes) -> bytes:
    """Of a signal's entry: what the teacher saw, wherever and whenever it did."""
    return _ENTRY.pack(0, number, content)


def ledger_key(number: int, seed: int, epoch: int, sample: int) -> bytes:
    """Of the note what the teacher saw of a sample: by it a store knows what it holds without any sample being read."""
    return _LEDGER.pack(1, number, seed, epoch, sample)


@dataclass
class Manifest:
    """``manifest.json`` of a store.

    Attributes:
        teacher: class and digest of the weights.
        data: the resolved data section of the recipe: preprocessing, augmentation, crop, speed.
        precision: in which the teacher computed.
        signals: by name.
    """

    teacher: str
    data: Mapping[str, Any]
    precision: str
    signals: dict[str, StoredSignal] = field(default_factory=dict)

    @classmethod
    def of(cls, teacher: nn.Module, data: Mapping[str, Any], precision: str) -> Manifest:
        return cls(f"{type(teacher).__name__} {digest(teacher.state_dict().items())}", data, precision)

    def adopt(self, folder: Path) -> None:
        """Take over the signals of the store in `folder`.

        Raises:
            UserError: it is another teacher's, of other data, or of another version: all of it is foreign.
        """
        path = folder / FILE
        if not path.is_file():
            return
        there = read_json(path)
        if not isinstance(there, dict):
            raise UserError(f"cache {folder}: its {FILE} is damaged: delete the cache, which is then filled anew")
        mine, theirs = flat(self.identity()), flat({key: there.get(key) for key in self.identity()})
        for key in sorted(mine.keys() | theirs.keys(), key=lambda key: not key.startswith("schema")):
            if mine.get(key) != theirs.get(key):
                raise UserError(
                    f"cache {folder} is not this run's: {key} was {theirs.get(key)!r} when it was filled, is "
                    f"{mine.get(key)!r}: delete it, or choose another cache.path"
                )
        try:
            self.signals = {
                name: StoredSignal(name, s["number"], s["kind"], s["vector"], codec_of(s["codec"]))
                for name, s in there["signals"].items()
            }
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            told = f"its {FILE} is damaged ({' '.join(str(error).split())[:100]})"
            raise UserError(f"cache {folder}: {told}: delete the cache, which is then filled anew") from None

    def identity(self) -> dict[str, Any]:
        return {"schema": SCHEMA, "teacher": self.teacher, "precision": self.precision, "data": dict(self.data)}

    def follow(self, signals: Mapping[str, StoredSignal], folder: Path) -> None:
        """Keep in `folder`, on another machine, what the main process keeps.

        Raises:
            UserError: as `adopt`, and where a signal is kept there in another way.
        """
        self.adopt(folder)
        for name, there in _told(self.signals).items():
            if name in signals and _told({name: signals[name]})[name] != there:
                raise UserError(
                    f"cache {folder}: {name} is kept in another way than by the main process: delete it there, it is "
                    "then filled anew"
                )
        self.signals = {**self.signals, **signals}
        self.write(folder)

    def write(self, folder: Path) -> None:
        write_json(folder / FILE, {**self.identity(), "signals": _told(self.signals)})


def _told(signals: Mapping[str, StoredSignal]) -> dict[str, Any]:
    return {
        name: {"number": k.number, "kind": k.kind, "vector": k.vector, "codec": k.codec.describe()}
        for name, k in signals.items()
    }
