"""What a teacher sees, as sixteen bytes: by them entries are found, and what has changed is not."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Mapping, Sequence, Set
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


# docs/decisions/009-teacher-cache.md
class Contents:
    """Digests of samples. A tensor that a source keeps from epoch to epoch is hashed once."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[Tensor], int, bytes]] = {}

    def __getstate__(self) -> dict[str, object]:
        return {"_known": {}}  # of this process's memory

    def digest(self, seen: Any) -> bytes:
        """Of tensors, arrays, numbers, text, and of sequences, mappings and dataclasses of them.

        Raises `TypeError` for what has no content to speak of.
        """
        hasher = hashlib.sha256()
        self._feed(hasher, seen)
        return hasher.digest()[:16]

    def _feed(self, hasher: Any, value: Any) -> None:
        if isinstance(value, Tensor):
            hasher.update(self._tensor(value))
        elif isinstance(value, np.ndarray):
            hasher.update(f"{value.dtype}{value.shape}".encode() + np.ascontiguousarray(value).tobytes())
        elif value is None or isinstance(value, str | bytes | bool | int | float | np.generic | Path | Enum):
            hasher.update(f"{type(value).__name__} {value!r};".encode())
        elif is_dataclass(value) and not isinstance(value, type):
            self._feed(hasher, {field.name: getattr(value, field.name) for field in fields(value)})
        elif isinstance(value, Mapping):
            hasher.update(f"{len(value)} keys;".encode())
            for key in value:
                self._feed(hasher, key)
                self._feed(hasher, value[key])
        elif isinstance(value, Sequence):
            hasher.update(f"{len(value)} of;".encode())
            for one in value:
                self._feed(hasher, one)
        elif isinstance(value, Set):
            self._feed(hasher, sorted(value))
        else:
            raise TypeError(f"{type(value).__name__} has no content that can be compared")

    def _tensor(self, tensor: Tensor) -> bytes:
        known = self._known.get(id(tensor))
        if known is not None and known[0]() is tensor and known[1] == tensor._version:
            return known[2]
        plain = tensor.detach().cpu().contiguous()
        content = plain.reshape(-1).view(torch.uint8).numpy().data
        head = f"{tensor.dtype}{tuple(tensor.shape)}".encode()
        found = hashlib.sha256(head + b"\n").digest() + hashlib.sha256(content).digest()
        key = id(tensor)
        self._known[key] = (weakref.ref(tensor, lambda _: self._known.pop(key, None)), tensor._version, found)
        return found
