"""What lies around a node, who is in which split, and graphs of files."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from xmodal_kd.losses.known_classes import IGNORED
from xmodal_kd.modalities.graphs.data.graph import Graph, both_ways
from xmodal_kd.modalities.graphs.data.section import GraphsData, Simulated
from xmodal_kd.modalities.graphs.data.simulator import simulate
from xmodal_kd.modalities.graphs.data.source import GraphsSource, load_graph
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams


def dense(graph: Graph) -> np.ndarray:
    found = np.zeros((len(graph), len(graph)), dtype=int)
    for node in range(len(graph)):
        found[node, graph.neighbours[graph.starts[node] : graph.starts[node + 1]]] = 1
    return found


def test_edges_lie_both_ways_once_and_are_no_loops() -> None:
    starts, neighbours = both_ways(np.array([0, 0, 1, 2, 3]), np.array([1, 1, 0, 2, 1]), 5)
    assert starts.tolist() == [0, 1, 3, 3, 4, 4] and neighbours.tolist() == [1, 0, 3, 1]


@pytest.mark.parametrize("hops", [0, 1, 2, 3])
def test_what_lies_around_is_all_within_so_many_edges(data: GraphsData, hops: int) -> None:
    graph = load_graph(data).whole
    adjacency, asked = dense(graph), np.array([7, 3, 7])
    reached, inner = np.isin(np.arange(len(graph)), asked), np.zeros(len(graph), dtype=bool)
    for _ in range(hops):
        inner = reached
        reached = reached | (adjacency[reached].sum(axis=0) > 0)
    found = graph.around(asked, hops)
    assert found.nodes.tolist() == np.flatnonzero(reached).tolist() and found.nodes[found.at].tolist() == [7, 3, 7]
    ends = set(zip(*found.nodes[found.edges].tolist(), strict=True))
    assert ends == {(i, j) for j in np.flatnonzero(inner) for i in np.flatnonzero(adjacency[j])}
    assert len(ends) == found.edges.shape[1] and found.degree.tolist() == adjacency.sum(axis=1)[reached].tolist()


def test_blocks_are_joined_within_as_often_as_the_recipe_says() -> None:
    graph = simulate(Simulated(nodes=3000, classes=4, degree=8, homophily=0.7))
    ends = np.arange(len(graph)).repeat(graph.degree)
    assert np.mean(graph.labels[ends] == graph.labels[graph.neighbours]) == pytest.approx(0.7, abs=0.02)
    assert graph.degree.mean() == pytest.approx(8, rel=0.03) and np.bincount(graph.labels).tolist() == [750] * 4
    again = simulate(Simulated(nodes=3000, classes=4, degree=8, homophily=0.7))
    assert (again.x == graph.x).all() and (again.neighbours == graph.neighbours).all()
    assert (simulate(Simulated(seed=1)).x != simulate(Simulated()).x).all()


def test_only_train_nodes_show_their_labels(data: GraphsData) -> None:
    whole = load_graph(data).whole
    sources = {split: GraphsSource(data, split, Streams(1), 8) for split in ("train", "dev", "test")}
    train = sources["train"]
    assert len(train) == 120 and train.nodes[train.labelled].tolist() == whole.splits["train"].tolist()
    batch = train.collate([train.sample(i, 0) for i in range(120)])
    known = torch.zeros(120, dtype=torch.bool)
    known[train.labelled] = True
    assert (batch["labels"][~known] == IGNORED).all() and (batch["labels"][known] >= 0).all()
    assert np.bincount(batch["labels"][known]).tolist() == [4, 4, 4]
    seen = [set(whole.splits[split].tolist()) for split in ("train", "dev", "test")]
    assert len(set.union(*seen)) == sum(map(len, seen)) == 12 + 20 + 30
    first, second, dev = ([*chain(*plan)] for plan in (train.plan(0), train.plan(1), sources["dev"].plan(0)))
    assert sorted(first) == list(range(120)) == sorted(second) and first != second and dev == list(range(20))
    assert [len(one) for one in train.plan(0)] == [8] * 15


def test_inductive_training_sees_nothing_of_test_nodes(data: GraphsData) -> None:
    apart = data.model_copy(update={"inductive": True})
    train, dev, test = (GraphsSource(apart, split, Streams(1), 8) for split in ("train", "dev", "test"))
    unseen = set(test.nodes.tolist())
    assert not unseen & set(train.nodes.tolist()) and len(train) == 90
    for source in (train, dev):
        around = source.graph.around(source.nodes, 2).nodes
        assert not unseen & set(around.tolist())
    assert unseen < set(test.graph.around(test.nodes, 2).nodes.tolist()) and test.graph.degree[test.nodes].sum() > 0
    whole = GraphsSource(data, "train", Streams(1), 8)
    assert train.sample(0, 0).graph != whole.sample(0, 0).graph, "a cache must not take one for the other"


# ---------------------------------------------------------------- files


def arrays(data: GraphsData) -> dict[str, Any]:
    graph = load_graph(data).whole
    ends = np.arange(len(graph)).repeat(graph.degree)
    masks = {f"{called}_mask": np.isin(np.arange(len(graph)), graph.splits[split])
             for split, called in (("train", "train"), ("dev", "val"), ("test", "test"))}  # fmt: skip
    return {"edge_index": np.stack([graph.neighbours, ends]), "x": graph.x, "y": graph.labels, **masks}


def of_file(path: Path, held: dict[str, Any], **more: Any) -> GraphsData:
    np.savez(path, **held)
    return GraphsData(sources="npz", path=path, **more)


def test_a_graph_is_read_in_either_form(data: GraphsData, tmp_path: Path) -> None:
    held, graph = arrays(data), load_graph(data).whole
    matrix = csr_array((graph.x * (np.abs(graph.x) > 1)).astype(np.float64))
    edges = csr_array((np.ones(len(graph.neighbours)), graph.neighbours, graph.starts), shape=(120, 120))
    lists = {f"{name}_idx": np.flatnonzero(held[f"{name}_mask"]) for name in ("train", "val", "test")}
    one = load_graph(of_file(tmp_path / "a.npz", held)).whole
    other = load_graph(
        of_file(tmp_path / "b.npz", {"labels": held["y"], **parts("adj", edges), **parts("attr", matrix), **lists})
    ).whole
    for found in (one, other):
        assert (found.starts == graph.starts).all() and (found.neighbours == graph.neighbours).all()
        assert all((found.splits[name] == graph.splits[name]).all() for name in ("train", "dev", "test"))
        assert (found.labels == graph.labels).all() and found.classes == 3
    assert (one.x == graph.x).all() and np.allclose(other.x, matrix.toarray())
    plain = {name: held[name] for name in ("edge_index", "x", "y")}
    ogb = {"train": lists["train_idx"], "valid": lists["val_idx"], "test": lists["test_idx"]}
    for splits in (ogb, {"train_idx": ogb["train"], "valid_idx": ogb["valid"], "test_idx": ogb["test"]}):
        found = load_graph(of_file(tmp_path / f"{len(list(tmp_path.iterdir()))}.npz", plain | splits)).whole
        assert all((found.splits[name] == graph.splits[name]).all() for name in ("train", "dev", "test"))
    drawn = load_graph(of_file(tmp_path / "a.npz", held, split={"per_class": 2, "dev": 3, "test": 4})).whole
    assert [len(drawn.splits[name]) for name in ("train", "dev", "test")] == [6, 3, 4]


def parts(what: str, matrix: csr_array, **changed: Any) -> dict[str, Any]:
    found = {part: changed.get(part, getattr(matrix, part)) for part in ("data", "indices", "indptr", "shape")}
    return {f"{what}_{part}": value for part, value in found.items()}


def test_a_weight_of_0_is_no_edge(data: GraphsData, tmp_path: Path) -> None:
    held = {name: one for name, one in arrays(data).items() if name != "edge_index"}
    edges = csr_array((np.array([1.0, 0.0, 0.5]), (np.array([0, 1, 2]), np.array([1, 2, 3]))), shape=(120, 120))
    graph = load_graph(of_file(tmp_path / "graph.npz", held | parts("adj", edges))).whole
    assert edges.nnz == 3 and np.flatnonzero(graph.degree).tolist() == [0, 1, 2, 3] and len(graph.neighbours) == 4


SOME = csr_array((np.ones(3), (np.arange(3), np.arange(3))), shape=(120, 120))
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no features": ({"x": None}, "has no 'x' .it holds edge_index, y"),
    "no edges": ({"edge_index": None}, "has no 'edge_index'"),
    "edges the other way round": ({"edge_index": np.zeros((5, 2), dtype=int)}, r"is int64 of shape \(5, 2\)"),
    "a node that is not there": ({"edge_index": np.array([[0], [120]])}, "names node 120, and there are 120"),
    "labels of one class": ({"y": np.zeros(120, dtype=int)}, "its labels are of 1 class"),
    "a class without nodes": ({"y": 2 * (np.arange(120) % 3)}, "no node is of class 1, but of 4: number the classes"),
    "labels of probabilities": ({"y": np.zeros((120, 3))}, r"'y' is float64 of shape \(120, 3\)"),
    "a class without a train node": ({"y": np.arange(120) % 60}, r"class \d+ has no train node"),
    "features that are not finite": ({"x": np.full((120, 2), np.nan)}, "the features of node 0 are not finite"),
    "masks of several splits": ({"train_mask": np.ones((120, 10), dtype=bool)}, "one column"),
    "a mask that lacks": ({"val_mask": None}, "names train, test nodes, but no val_mask"),
    "one node twice": ({"val_mask": np.ones(120, dtype=bool)}, "12 nodes are of train and of dev"),
    "no label where one is needed": ({"y": np.where(np.arange(120) > 60, np.arange(120) % 3, -1)}, "have no label"),
    "parts that are no matrix": (parts("attr", SOME, indptr=np.ones(1, int)), "'attr_data' and its parts are no"),
    "edges of words": (parts("adj", SOME, data=np.array(["a", "b", "c"])), r"no matrix in CSR \(of <U1, int"),
    "edges to half a node": (parts("adj", SOME, indices=SOME.indices + 0.5), r"no matrix in CSR \(of float64, float64"),
    "more features than memory": (parts("attr", csr_array((120, 1 << 40))), "do not fit into this machine's memory"),
}  # fmt: skip


@pytest.mark.parametrize("what", list(WRONG))
def test_files_that_will_not_do(what: str, data: GraphsData, tmp_path: Path) -> None:
    changed, says = WRONG[what]
    held = {name: one for name, one in (arrays(data) | changed).items() if one is not None}
    with pytest.raises(UserError, match=says) as refused:
        load_graph(of_file(tmp_path / "graph.npz", held))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("split", "says"), [
    ({"per_class": 41}, "class 0 has 40 nodes: set it lower"), ({"dev": 100, "test": 100}, "60 labelled ones are left"),
])  # fmt: skip
def test_more_nodes_than_there_are(split: dict[str, int], says: str, data: GraphsData) -> None:
    with pytest.raises(UserError, match=says):
        load_graph(data.model_copy(update={"split": GraphsData(sources="simulator", split=split).split}))


@pytest.mark.parametrize(("keys", "says"), [
    ({"sources": "npz"}, "path: name the .npz file"), ({"sources": "simulator", "path": "x"}, "reads no file"),
    ({"sources": "npz", "path": "x", "simulator": {"nodes": 30}}, "simulator: sources: npz reads a file"),
])  # fmt: skip
def test_sections_that_contradict_themselves(keys: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        GraphsData.model_validate(keys)
