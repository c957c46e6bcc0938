"""Triangles in the world, each knowing what it is of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True)
class Mesh:
    """Triangles of many things together. Numbers are short (float32, int32, int8): a scene is built for every scan.

    Attributes:
        vertices: ``(v, 3)`` metres in the world.
        triangles: ``(f, 3)`` vertex indexes.
        label: ``(f,)`` index into `CLASSES`, or `UNLABELLED`.
        material: ``(f,)`` of `Material`.
        colour: ``(f, 3)`` 0 to 1.
        thing: ``(f,)`` number of the vehicle or person, -1 for all else.
    """

    vertices: Float[np.ndarray, "v 3"]
    triangles: Int[np.ndarray, "f 3"]
    label: Int[np.ndarray, " f"]
    material: Int[np.ndarray, " f"]
    colour: Float[np.ndarray, "f 3"]
    thing: Int[np.ndarray, " f"]

    @classmethod
    def still(
        cls, vertices: np.ndarray, triangles: np.ndarray, label: np.ndarray, material: np.ndarray, colour: np.ndarray
    ) -> Mesh:
        """Triangles of things without a number."""
        return cls(
            vertices.astype(np.float32), triangles.astype(np.int32), label.astype(np.int8), material.astype(np.int8),
            colour.astype(np.float32), np.full(len(triangles), -1, np.int32),
        )  # fmt: skip

    @classmethod
    def join(cls, meshes: Sequence[Mesh]) -> Mesh:
        """Several as one; at least one is needed."""
        starts = np.cumsum([0, *(len(mesh.vertices) for mesh in meshes[:-1])], dtype=np.int32)
        moved = [mesh.triangles + start for mesh, start in zip(meshes, starts, strict=True)]
        rest = [np.concatenate([getattr(m, f.name) for m in meshes]) for f in fields(cls) if f.name != "triangles"]
        return cls(rest[0], np.concatenate(moved), *rest[1:])
