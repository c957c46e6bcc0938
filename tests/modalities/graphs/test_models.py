"""What networks say of nodes: as their papers' formulas, and of a neighbourhood as of the whole graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from oracles import glnn_by_another as glnn

from xmodal_kd.modalities.graphs.adapter import GraphsAdapter
from xmodal_kd.modalities.graphs.data.section import GraphsData
from xmodal_kd.modalities.graphs.data.source import load_graph
from xmodal_kd.modalities.graphs.models import MODELS, Network
from xmodal_kd.objective.objective import Objective
from xmodal_kd.recipe.recipe import Term
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.signals.signals import Layout, Signals


def adapter(data: GraphsData) -> GraphsAdapter:
    return GraphsAdapter(data, Streams(1), 8)


def batch_of(made: GraphsAdapter, nodes: list[int], split: str = "train") -> dict[str, Any]:
    source = made.data(split)
    return source.collate([source.sample(i, 0) for i in nodes])


def built(made: GraphsAdapter, model: str, **params: Any) -> Network:
    torch.manual_seed(1)
    return made.build("student", model, {"width": 4, **params}).eval()


@pytest.mark.parametrize("model", list(MODELS))
def test_a_batch_says_what_the_whole_graph_says(model: str, data: GraphsData) -> None:
    made = adapter(data)
    net = built(made, model)
    whole = made.signals("student", net, batch_of(made, list(range(120))), ("layers.0",))
    some = made.signals("student", net, batch_of(made, [50, 3, 50]), ("layers.0",))
    for name in ("logits", "layers.0"):
        torch.testing.assert_close(some.rows(name), whole.rows(name)[[50, 3, 50]], rtol=1e-5, atol=1e-6)
        assert some[name].layout.same_rows(some["labels"].layout)


def by_hand(model: str, layer: Any, x: np.ndarray, adjacency: np.ndarray) -> np.ndarray:
    """A layer of each network in dense NumPy."""
    weight = {name: value.detach().double().numpy() for name, value in layer.named_parameters()}
    own = x @ weight["own.weight"].T + weight["own.bias"]
    degree = adjacency.sum(axis=1)
    if model == "gcn":
        loops = adjacency + np.eye(len(x))
        scale = np.diag(loops.sum(axis=1) ** -0.5)
        own = scale @ loops @ scale @ x @ weight["own.weight"].T + weight["own.bias"]
    elif model == "sage":
        own += adjacency / np.maximum(degree, 1)[:, None] @ x @ weight["others.weight"].T
    elif model == "peer_aware":
        query, key, value = (x @ weight[f"{name}.weight"].T for name in ("query", "key", "value"))
        for i in range(len(x)):
            peers = [i, *np.flatnonzero(adjacency[i])]
            scores = np.exp([query[i] @ key[j] / np.sqrt(query.shape[1]) for j in peers])
            own[i] += sum(s * value[j] for s, j in zip(scores / scores.sum(), peers, strict=True))
    return np.maximum(own, 0)


@pytest.mark.parametrize("model", list(MODELS))
def test_a_layer_is_what_its_formula_says(model: str, data: GraphsData) -> None:
    made, graph = adapter(data), load_graph(data).whole
    net = built(made, model)
    adjacency = np.zeros((120, 120))
    adjacency[np.arange(120).repeat(graph.degree), graph.neighbours] = 1
    assert (adjacency.sum(axis=1) == 0).any(), "a node without neighbours is among them"
    found = made.signals("student", net, batch_of(made, list(range(120))), ("layers.0",)).rows("layers.0")
    right = by_hand(model, net.layers[0], graph.x.astype(np.float64), adjacency)
    np.testing.assert_allclose(found.detach().numpy(), right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", list(MODELS))
def test_all_weights_learn_and_half_precision_will_do(model: str, data: GraphsData) -> None:
    made = adapter(data)
    net = built(made, model, dropout=0.1).train()
    batch = batch_of(made, list(range(40)))
    with torch.autocast("cpu", torch.bfloat16):
        logits = made.answer("student", net, batch)
    torch.nn.functional.cross_entropy(logits.float(), batch["labels"]).backward()
    assert all(one.grad is not None and bool(one.grad.any()) for one in net.parameters())
    net.eval()
    with torch.autocast("cpu", torch.bfloat16):
        half = made.answer("student", net, batch)
    torch.testing.assert_close(half.float(), made.answer("student", net, batch), rtol=0.1, atol=0.1)


def test_a_network_that_sees_farther_than_a_batch_is_refused(data: GraphsData) -> None:
    with pytest.raises(UserError, match=r"the teacher reads neighbours 3 edges away.*within 2: set it to 3"):
        adapter(data).build("teacher", "sage", {"layers": 3})
    assert adapter(data.model_copy(update={"hops": 0})).build("student", "mlp", {"layers": 3}).hops == 0


@pytest.mark.parametrize(("seed", "lam"), list(glnn.RELEASED))
def test_glnn_is_two_terms(seed: int, lam: float) -> None:
    """`ce` on labelled nodes and `kd` at temperature 1 on all of them: the oracle's value, the release's gradient."""
    labelled, labels, scores, log_taught = glnn.inputs(seed)
    z = torch.tensor(scores, requires_grad=True)
    rows = Layout.samples(len(scores))
    all_labels = torch.full((len(scores),), -1)
    all_labels[: len(labels)] = torch.from_numpy(labels)
    student = Signals().add("logits", z, rows).add("labels", all_labels, rows)
    student.labelled = torch.arange(len(scores)) < len(labels)
    terms = [Term(loss="ce", weight=lam), Term(loss="kd", weight=1 - lam, params={"temperature": 1.0})]
    value = Objective(terms)(student, Signals().add("logits", torch.tensor(log_taught), rows)).value()
    value.backward()
    found = float(value.detach())
    total, first, last = glnn.RELEASED[seed, lam]
    assert found == pytest.approx(glnn.total(labelled, labels, scores, log_taught, lam), rel=1e-12)
    assert found == pytest.approx(total, rel=1e-12)
    assert z.grad is not None
    np.testing.assert_allclose(z.grad[[0, -1]].numpy(), [first, last], atol=1e-11)
