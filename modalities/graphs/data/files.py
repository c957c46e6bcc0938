"""A graph of an ``.npz``: what PyG, DGL and OGB hold, and the sparse parts of the gnn-benchmark's files.

The file says edges by ``edge_index`` (2, e) or ``adj_data``, ``adj_indices``, ``adj_indptr``, ``adj_shape``; features
by ``x`` (n, f) or ``attr_data``, ``attr_indices``, ``attr_indptr``, ``attr_shape``; classes by ``y`` or ``labels``
(n,), below 0 where nobody knows; splits by ``train_mask``, ``val_mask``, ``test_mask`` (n,), or ``train_idx``,
``val_idx``, ``test_idx``, or OGB's ``train``, ``valid``, ``test``, or not at all. Pickled objects are refused: they
could run code.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array

from xmodal_kd.runtime.allocation import room
from xmodal_kd.runtime.bounded_arrays import names_in, read_npz
from xmodal_kd.runtime.errors import UserError

from .graph import Graph, Nodes, both_ways

#: Splits by what files call them: as masks, or as lists of nodes, of which OGB's are the last.
CALLED = {
    "train": ("train_mask", "train_idx", "train"),
    "dev": ("val_mask", "val_idx", "valid_idx", "valid"),
    "test": ("test_mask", "test_idx", "test"),
}
#: All that is read of a file: others may be pickled.
NAMES = frozenset({
    "edge_index", "x", "features", "attr_matrix", "y", "labels",
    *(f"{what}_{part}" for what in ("adj", "attr") for part in ("data", "indices", "indptr", "shape")),
    *(name for called in CALLED.values() for name in called),
})  # fmt: skip
Arrays = Mapping[str, np.ndarray]


def read_graph(path: Path) -> Graph:
    """The graph of a file, with its splits, where it says them.

    Raises:
        UserError: it names the file, the key and what is wrong.
    """
    held = read_npz(path, NAMES)
    x = _features(held, path)
    labels = _labels(held, path, len(x))
    starts, neighbours = both_ways(*_edges(held, path, len(x)), len(x))
    known = np.unique(labels[labels >= 0])
    if len(known) < 2:
        raise UserError(f"{path}: its labels are of {len(known)} class: there is nothing to tell apart")
    if len(gaps := np.flatnonzero(known != np.arange(len(known)))):
        raise UserError(
            f"{path}: no node is of class {gaps[0]}, but of {known[-1]}: number the classes from 0 without gaps"
        )
    return Graph(x, labels, starts, neighbours, len(known), _splits(held, path, labels))


def _first(held: Arrays, path: Path, *names: str) -> str:
    found = next((name for name in names if name in held), None)
    if found is None:
        raise UserError(f"{path} has no {names[0]!r} (it holds {', '.join(names_in(path)) or 'nothing'}): add it")
    return found


def _features(held: Arrays, path: Path) -> np.ndarray:
    if "attr_data" in held:
        found = _sparse(held, path, "attr")
        if 4 * prod(found.shape) > room() // 2:
            raise UserError(f"{path}: {found.shape} features do not fit into this machine's memory: make them fewer")
        x = found.toarray()
    else:
        name = _first(held, path, "x", "features", "attr_matrix")
        x = held[name]
        if x.ndim != 2 or 0 in x.shape or x.dtype.kind not in "fiub":
            raise UserError(f"{path}: {name!r} is {x.dtype} of shape {x.shape}: numbers (nodes, features) are expected")
    with np.errstate(over="ignore"):  # what is too large for float32 is found below
        x = np.ascontiguousarray(x, dtype=np.float32)
    if not np.isfinite(x).all():
        bad = int(np.argmin(np.isfinite(x).all(axis=1)))
        raise UserError(f"{path}: the features of node {bad} are not finite: mend them, or leave the node out")
    return x


def _labels(held: Arrays, path: Path, nodes: int) -> Nodes:
    name = _first(held, path, "y", "labels")
    found = held[name].squeeze()
    if found.shape != (nodes,) or found.dtype.kind not in "iu":
        raise UserError(
            f"{path}: {name!r} is {found.dtype} of shape {found.shape}: whole numbers of shape ({nodes},) are "
            "expected, a class for each node"
        )
    return found.astype(np.int64)


def _edges(held: Arrays, path: Path, nodes: int) -> tuple[Nodes, Nodes]:
    if "adj_data" in held:
        adjacency = _sparse(held, path, "adj").tocoo()
        adjacency.eliminate_zeros()
        if adjacency.shape != (nodes, nodes):
            raise UserError(
                f"{path}: its edges are of {adjacency.shape} nodes, and {nodes} have features: give all nodes both"
            )
        return adjacency.row.astype(np.int64), adjacency.col.astype(np.int64)
    name = _first(held, path, "edge_index", "adj_data")
    edges = held[name]
    if edges.ndim != 2 or len(edges) != 2 or edges.dtype.kind not in "iu":
        raise UserError(f"{path}: {name!r} is {edges.dtype} of shape {edges.shape}: whole numbers (2, edges) expected")
    _numbers(edges, path, name, nodes)
    return edges[0].astype(np.int64), edges[1].astype(np.int64)


def _sparse(held: Arrays, path: Path, what: str) -> csr_array:
    """In float32."""
    parts = [held[_first(held, path, f"{what}_{part}")] for part in ("data", "indices", "indptr", "shape")]
    data, indices, starts, shape = parts
    try:
        rows, columns = (int(side) for side in shape)
        if data.dtype.kind not in "fiub" or {indices.dtype.kind, starts.dtype.kind} - {"i", "u"}:
            raise ValueError(f"of {data.dtype}, {indices.dtype} and {starts.dtype}")
        with np.errstate(over="ignore"):
            data = data.astype(np.float32)
        found = csr_array((data, indices, starts), shape=(rows, columns))
        found.check_format(full_check=True)
    except (ValueError, TypeError) as error:
        told = " ".join(str(error).split())
        raise UserError(f"{path}: '{what}_data' and its parts are no matrix in CSR ({told}): write them anew") from None
    return found


def _splits(held: Arrays, path: Path, labels: Nodes) -> dict[str, Nodes]:
    found: dict[str, Nodes] = {}
    for split, called in CALLED.items():
        if (name := next((name for name in called if name in held), None)) is None:
            continue
        if name.endswith("_mask"):
            mask = held[name]
            if mask.shape != labels.shape or mask.dtype != bool:
                raise UserError(
                    f"{path}: {name!r} is {mask.dtype} of shape {mask.shape}: bool of shape {labels.shape} is expected "
                    "(of several splits, one column)"
                )
            found[split] = np.flatnonzero(mask)
        else:
            numbers = held[name]
            if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
                raise UserError(
                    f"{path}: {name!r} is {numbers.dtype} of shape {numbers.shape}: a list of nodes expected"
                )
            _numbers(numbers, path, name, len(labels))
            found[split] = np.unique(numbers.astype(np.int64))
    if not found:
        return {}
    for split, called in CALLED.items():
        if not len(found.get(split, ())):
            raise UserError(
                f"{path} names {', '.join(found)} nodes, but no {called[0]} or {called[1]} of any: add it, or draw all "
                "by data.split"
            )
        if unknown := (labels[found[split]] < 0).sum():
            raise UserError(f"{path}: {unknown} of its {split} nodes have no label: leave them out of it")
    for one, other in (("train", "dev"), ("train", "test"), ("dev", "test")):
        if both := len(np.intersect1d(found[one], found[other])):
            raise UserError(f"{path}: {both} nodes are of {one} and of {other}: a node is of one split")
    return found


def _numbers(found: np.ndarray, path: Path, name: str, nodes: int) -> None:
    if found.size and (found.min() < 0 or found.max() >= nodes):
        bad = int(found.min() if found.min() < 0 else found.max())
        raise UserError(f"{path}: {name!r} names node {bad}, and there are {nodes}, numbered from 0")


__all__ = ["read_graph"]
