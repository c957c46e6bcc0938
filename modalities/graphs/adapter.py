"""Graphs: nodes of one graph and their classes; students that see neighbours, few of them, or none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from xmodal_kd.adapter.adapter import Adapter, Batch, Evaluation, Score
from xmodal_kd.adapter.panels import Panel
from xmodal_kd.adapter.saved_model import About
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.runtime.registry import Registry
from xmodal_kd.signals.capture import capture, only_call
from xmodal_kd.signals.signals import Layout, Signals

from .data.section import GraphsData
from .data.source import GraphsSource, Sample, load_graph
from .evaluate.metrics import metrics
from .export.saved_folder import Card, about, build, export, load_card, load_model, save_model
from .models import MODELS, Network
from .show.panels import show

#: Nodes that are scored at once.
TOGETHER = 1024


class GraphsAdapter(Adapter):
    """A row is a node of the batch. Graph networks see what lies around it, an MLP its own features."""

    Data: ClassVar[type[GraphsData]] = GraphsData
    models: ClassVar[Registry[Any]] = MODELS
    metric: ClassVar[tuple[str, bool]] = ("accuracy", False)
    gives: ClassVar[frozenset[str]] = frozenset({"logits", "labels", "features"})
    quick_export: ClassVar[bool] = False
    saves_low_rank: ClassVar[bool] = True
    datasets: ClassVar[Mapping[str, str]] = {
        "simulator": "a stochastic block model with noisy features, whose neighbours help",
        "npz": "a graph in an .npz: edge_index or CSR parts, features, labels, masks (as of PyG, DGL, OGB)",
    }

    def __init__(self, data: GraphsData, streams: Streams, batch_size: int) -> None:
        self.config, self.streams, self.batch_size = data, streams, batch_size

    def data(self, split: str) -> GraphsSource:
        return GraphsSource(self.config, split, self.streams, self.batch_size)

    def class_names(self, role: str) -> Sequence[str]:
        return [str(number) for number in range(load_graph(self.config).whole.classes)]

    def describe(self) -> Mapping[str, Any]:
        return {split: self.data(split).describe() for split in ("train", "dev", "test")}

    # ---------------------------------------------------------------- models

    def build(self, role: str, model: str, params: Mapping[str, Any]) -> Network:
        given = MODELS[model].Config.model_validate(params).model_dump(mode="json")
        features, classes = load_graph(self.config).whole.x.shape[1], tuple(self.class_names(role))
        card = Card(format=1, modality="graphs", model=model, params=given, features=features, classes=classes)
        return self._fitting(role, build(card))

    def load(self, role: str, folder: Path) -> Network:
        card, features = load_card(folder), load_graph(self.config).whole.x.shape[1]
        if card.features != features:
            raise UserError(f"{folder}: its {role} sees {card.features} features of a node, the data has {features}")
        if (classes := tuple(self.class_names(role))) != card.classes:
            raise UserError(f"{folder}: its {role} knows {len(card.classes)} classes, the data {len(classes)}")
        return self._fitting(role, load_model(folder))

    def _fitting(self, role: str, model: Network) -> Network:
        if model.hops > self.config.hops:
            raise UserError(
                f"data.hops: the {role} reads neighbours {model.hops} edges away, and a batch holds those within "
                f"{self.config.hops}: set it to {model.hops}"
            )
        return model

    def save(self, role: str, model: nn.Module, folder: Path) -> None:
        save_model(folder, cast(Network, model), {"role": role})

    def about(self, role: str, model: nn.Module, folder: Path) -> About:
        return about(load_card(folder))

    def export(self, model: nn.Module, folder: Path) -> Mapping[str, Any]:
        return export(cast(Network, model), folder)

    # ---------------------------------------------------------------- signals

    def signals(self, role: str, model: nn.Module, batch: Batch, features: Sequence[str] = ()) -> Signals:
        """``logits``, ``labels`` and what is captured, a row a node of the batch."""
        rows = Layout.samples(len(batch["x"]), batch["x"].device)
        with capture(model, features) as taken:
            out = Signals(batch["ids"]).add("logits", self.answer(role, model, batch), rows)
        for name, calls in taken.items():
            out.add(name, _asked_for(model, only_call(name, calls), batch), rows)
        return out.add("labels", batch["labels"], rows)

    def answer(self, role: str, model: nn.Module, batch: Batch) -> Tensor:
        if not cast(Network, model).sees_edges:
            return model(batch["x"])  # type: ignore[no-any-return]
        return _asked_for(model, model(batch["around"], batch["edges"], batch["degree"]), batch)

    def teacher_sees(self, sample: Sample) -> tuple[int, str]:
        return sample.node, sample.graph

    # ---------------------------------------------------------------- evaluation

    @torch.no_grad()
    def evaluate(self, role: str, model: nn.Module, split: str) -> Evaluation:
        """Accuracy and likelihood; a node's score is whether it is wrong, by class."""
        source, device, classes = self.data(split), next(model.parameters()).device, self.class_names(role)
        logits = []
        for some in torch.arange(len(source)).split(TOGETHER):
            batch = source.collate([source.sample(i, 0) for i in some.tolist()])
            moved = {key: value.to(device) for key, value in batch.items() if isinstance(value, Tensor)}
            logits.append(self.answer(role, model, moved).float().cpu())
        scores, labels = torch.cat(logits), torch.from_numpy(source.labels)
        wrong = (scores.argmax(dim=1) != labels).tolist()
        rows = zip(source.nodes.tolist(), labels.tolist(), wrong, strict=True)
        return Evaluation(
            metrics(scores, labels, classes), [Score(str(node), classes[k], float(w), 1.0) for node, k, w in rows]
        )

    def show(self, models: Mapping[str, nn.Module], folder: Path) -> Sequence[Panel]:
        return show(self.data("test"), models, self.class_names("student"), self.answer)


def _asked_for(model: nn.Module, rows: Tensor, batch: Batch) -> Tensor:
    """Of what a graph network says of all that lies around, what it says of the batch's nodes."""
    return rows[batch["at"]] if cast(Network, model).sees_edges else rows


__all__ = ["GraphsAdapter"]
