"""Triangles that rays can be cast into, by Open3D."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from xmodal_kd.binary import load

from .mesh import Mesh


class Scene:
    """A mesh that rays can be cast into, in world coordinates.

    As many threads as torch uses take part, so that loader workers do not crowd each other out. A scene cannot be
    pickled: build it where it is used.

    Raises:
        UserError: Open3D cannot be loaded.
    """

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        open3d = load("open3d")
        self._core: Any = open3d.core
        self._threads = torch.get_num_threads()
        self._scene: Any = open3d.t.geometry.RaycastingScene(nthreads=self._threads)
        vertices, triangles = mesh.vertices.astype(np.float32), mesh.triangles.astype(np.uint32)
        self._scene.add_triangles(self._core.Tensor(vertices), self._core.Tensor(triangles))

    def cast(
        self, origin: Float[np.ndarray, " 3"], directions: Float[np.ndarray, "n 3"]
    ) -> tuple[Float[np.ndarray, " n"], Int[np.ndarray, " n"], Float[np.ndarray, "n 3"]]:
        """What rays from one place meet first.

        Returns:
            ``(n,)`` distances in units of the directions' lengths, inf where nothing is met; ``(n,)`` triangle indexes,
            -1 there; ``(n, 3)`` unit normals of the triangles, turned towards where the ray came from.
        """
        found = self._scene.cast_rays(self._rays(origin, directions), nthreads=self._threads)
        distance = found["t_hit"].numpy()
        face = np.where(np.isinf(distance), -1, found["primitive_ids"].numpy().astype(np.int64))
        normal = found["primitive_normals"].numpy()
        away = np.einsum("ij,ij->i", normal, directions) > 0
        return distance, face, np.where(away[:, None], -normal, normal)

    def blocked(self, origins: Float[np.ndarray, "n 3"], direction: Float[np.ndarray, " 3"]) -> Bool[np.ndarray, " n"]:
        """Whether something stands in that direction from each place: its shadow if the sun does."""
        found = self._scene.test_occlusions(self._rays(origins, direction, len(origins)), nthreads=self._threads)
        dark: np.ndarray = found.numpy()
        return dark

    def _rays(self, origin: np.ndarray, directions: np.ndarray, count: int | None = None) -> Any:
        rays = np.empty((len(directions) if count is None else count, 6), np.float32)
        rays[:, :3], rays[:, 3:] = origin, directions
        return self._core.Tensor(rays)
