"""A whole modality in one file, for the tests of the core: ragged rows to classify, known to the core only by name.

A recipe names it as ``modality: toy:ToyAdapter`` and needs ``--allow-import toy``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from xmodal_kd.adapter.adapter import Adapter, Batch, Evaluation, Input, Score, Strict
from xmodal_kd.compress.folder import load as load_saved
from xmodal_kd.compress.gates import Units
from xmodal_kd.losses import LOSSES, loss
from xmodal_kd.losses.base import item_mean
from xmodal_kd.objective.objective import Objective
from xmodal_kd.recipe.recipe import Term, Train
from xmodal_kd.runtime.checkpoint import read_json, write_json, write_tensors
from xmodal_kd.runtime.device import make_accelerator
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.runtime.registry import Registry
from xmodal_kd.signals.capture import capture
from xmodal_kd.signals.signals import Layout, Signals
from xmodal_kd.training.engine import Engine
from xmodal_kd.training.method import Distil

Models = dict[str, nn.Module]
WIDTH, CLASSES, LONGEST = 6, 4, 5
NAMES = ("red", "green", "blue", "black")
MODELS: Registry[Any] = Registry("model")

if "test_ce" not in LOSSES:

    @loss("test_ce", reduction="rows", family="test", paper="none", year=2026)
    def ce(student: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy of each row."""
        return F.cross_entropy(student, labels, reduction="none")

    @loss("test_items", reduction="items", family="test", paper="none", year=2026)
    def items(student: Tensor, teacher: Tensor, item: Tensor, items: int) -> tuple[Tensor, Tensor]:
        """Squared difference of each item's mean row; items of fewer than three rows do not count."""
        values = (item_mean(student - teacher, item, items) ** 2).sum(dim=1)
        counted = torch.bincount(item, minlength=items) >= 3
        return values * counted, counted


class Config(Strict):
    width: int = 16
    dropout: float = 0.0
    batch_norm: bool = False


@MODELS.register("mlp")
class Net(nn.Module):
    """Classifies each valid row by itself."""

    Config: ClassVar[type[Strict]] = Config

    def __init__(self, config: Config) -> None:
        super().__init__()
        norm = nn.BatchNorm1d(config.width) if config.batch_norm else nn.LayerNorm(config.width)
        self.body = nn.Sequential(nn.Linear(WIDTH, config.width), norm, nn.GELU(), nn.Dropout(config.dropout))
        self.head = nn.Linear(config.width, CLASSES)
        self.card: dict[str, Any] = {}

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """``(b, t, 6)`` and its valid rows ``(b, t)`` to logits of the valid rows ``(n, 4)``."""
        return self.head(self.body(x[mask]))


@MODELS.register("leaky")
class Leaky(Net):
    """Forgets the mask: what an item's valid rows become depends on how far the batch pads it."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return super().forward(x - x.mean(dim=1, keepdim=True), mask)


@MODELS.register("prunable")
class Prunable(Net):
    """Says that its hidden channels can be taken out."""

    def units(self) -> list[Units]:
        parts = {"body.0.weight": 0, "body.0.bias": 0, "body.1.weight": 0, "body.1.bias": 0, "head.weight": 1}
        return [Units("hidden", self.head.in_features, parts, "head.weight", drop=0.1)]

    def narrowed(self, counts: Mapping[str, int]) -> None:
        left = counts["hidden"]
        self.body[1].normalized_shape = (left,)
        self.body[0].out_features = self.head.in_features = left
        self.card["params"] = {**self.card["params"], "width": left}


class Sample(NamedTuple):
    index: int
    x: Tensor
    labels: Tensor


class Data(Strict):
    train: int = 24
    dev: int = 8
    test: int = 24
    noise: float = 0.1
    double: bool = False
    equal: bool = False
    """All items of one length."""
    single: bool = False
    """All items of one row, so that an item has one class."""
    broken: int | None = None
    """Index of a training sample that cannot be read."""
    nan: int | None = None
    """Index of a training sample that holds NaN."""
    unlabelled: int = 0
    """So many training samples, the last ones, have no labels."""


class ToySource:
    """Items of two to five rows; a row's class is decided by a fixed rule, blurred by noise of (epoch, index)."""

    def __init__(self, data: Data, split: str, streams: Streams, batch_size: int) -> None:
        self.config, self.split, self.streams, self.batch_size = data, split, streams, batch_size

    def __len__(self) -> int:
        return int(getattr(self.config, self.split))

    @property
    def labelled(self) -> Sequence[int]:
        return range(len(self) - (self.config.unlabelled if self.split == "train" else 0))

    @property
    def classes(self) -> list[int] | None:
        return [int(self.sample(i, 0).labels) for i in range(len(self))] if self.config.single else None

    def plan(self, epoch: int) -> Sequence[Sequence[int]]:
        order = self.streams.numpy("order", self.split, epoch).permutation(len(self)).tolist()
        return [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]

    def sample(self, index: int, epoch: int) -> Sample:
        if index == self.config.broken:
            raise UserError(f"toy-{index}: cannot be read")
        draw = Streams(0).torch(self.split, index)  # the data are the same for every seed
        rows = LONGEST if self.config.equal else int(torch.randint(2, LONGEST + 1, (), generator=draw))
        rows = 1 if self.config.single else rows
        x = torch.randn(rows, WIDTH, generator=draw)
        labels = (x[:, 0] * x[:, 1] > 0).long() + 2 * (x[:, 2] + x[:, 3] > 0).long()
        noise = torch.randn(rows, WIDTH, generator=self.streams.torch("noise", self.split, epoch, index))
        x = x + (self.config.noise if self.split == "train" else 0.0) * noise
        if index == self.config.nan:
            x[0, 0] = torch.nan
        if index not in self.labelled:
            labels = torch.full_like(labels, -1)
        return Sample(index, x.double() if self.config.double else x, labels)

    def collate(self, samples: Sequence[Sample]) -> Batch:
        return {
            "ids": torch.tensor([s.index for s in samples]),
            "keys": [f"toy-{s.index}" for s in samples],
            "x": pad_sequence([s.x for s in samples], batch_first=True),
            "labels": pad_sequence([s.labels for s in samples], batch_first=True, padding_value=-1),
            "lengths": torch.tensor([len(s.x) for s in samples]),
        }


class ToyAdapter(Adapter):
    """Rows of colours."""

    Data: ClassVar[type[Strict]] = Data
    models: ClassVar[Registry[Any]] = MODELS
    datasets: ClassVar[Mapping[str, str]] = {"toy": "random rows"}
    metric: ClassVar[tuple[str, bool]] = ("error", True)
    saves_low_rank: ClassVar[bool] = True

    def __init__(self, data: Data, streams: Streams, batch_size: int) -> None:
        self.config, self.streams, self.batch_size = data, streams, batch_size

    def data(self, split: str) -> ToySource:
        if split not in ("train", "dev", "test"):
            raise UserError(f"no split {split!r}")
        return ToySource(self.config, split, self.streams, self.batch_size)

    def build(self, role: str, model: str, params: Mapping[str, Any]) -> Net:
        net: Net = MODELS[model](MODELS[model].Config.model_validate(params))
        net.card = {"model": model, "params": dict(params), "classes": list(NAMES)}
        return net.double() if self.config.double else net

    def load(self, role: str, folder: Path) -> Net:
        card = read_json(folder / "card.json")
        if tuple(card["classes"]) != NAMES:
            raise UserError(f"{folder}: its {role} knows the classes {card['classes']}")
        net = self.build(role, card["model"], card["params"])
        load_saved(net, folder / "model.safetensors")
        return net

    def class_names(self, role: str) -> Sequence[str]:
        return NAMES

    def input(self) -> Input | None:
        return Input((1, LONGEST, WIDTH), -9.0, 9.0, key="x")

    def given(self, x: Tensor) -> Batch:
        ids, rows = torch.arange(len(x)), x.reshape(len(x), -1, WIDTH)
        labels = torch.full(rows.shape[:2], -1)
        lengths = torch.full((len(x),), rows.shape[1])
        return {"ids": ids, "x": rows, "labels": labels, "lengths": lengths, "labelled": ids < 0}

    def signals(self, role: str, model: nn.Module, batch: Batch, features: Sequence[str] = ()) -> Signals:
        lengths, steps = batch["lengths"], batch["x"].shape[1]
        layout = Layout.padded("frame", lengths, steps)
        with capture(model, features) as taken:
            logits = model(batch["x"], layout.mask.reshape(-1, steps))
        out = Signals(batch["ids"]).add("labels", batch["labels"].reshape(-1), layout)
        rarity = torch.where(layout.mask, batch["labels"].reshape(-1), torch.nan)  # class 0 weighs nothing
        out.add("rarity", rarity if role == "teacher" else rarity * rarity, layout)
        for name, rows in {"logits": logits, **{name: calls[-1] for name, calls in taken.items()}}.items():
            padded = rows.new_full((len(layout), rows.shape[-1]), torch.nan)
            out.add(name, padded.index_put((layout.mask.nonzero().squeeze(1),), rows), layout)
        return out

    @torch.no_grad()
    def evaluate(self, role: str, model: nn.Module, split: str) -> Evaluation:
        source, scores, loss = self.data(split), [], 0.0
        for index in range(len(source)):
            batch = source.collate([source.sample(index, 0)])
            said = self.signals(role, model, batch)
            logits, labels = said.rows("logits"), said.rows("labels")
            loss += float(F.cross_entropy(logits, labels)) / len(source)
            wrong = int((logits.argmax(dim=1) != labels).sum())
            scores.append(Score(f"toy-{index}", "all", float(wrong), float(len(labels))))
        error = sum(s.errors for s in scores) / sum(s.units for s in scores)
        return Evaluation({"error": error, "loss": loss}, scores, [])

    def save(self, role: str, model: nn.Module, folder: Path) -> None:
        write_tensors(folder / "model.safetensors", model.state_dict())
        write_json(folder / "card.json", model.card)

    def export(self, model: nn.Module, folder: Path) -> Mapping[str, Any]:
        write_tensors(folder / "exported.safetensors", model.state_dict())
        size = (folder / "exported.safetensors").stat().st_size
        return {"exported.safetensors": {"bytes": size, "metrics": self.evaluate("student", model, "test").metrics}}

    def describe(self) -> Mapping[str, Any]:
        return {s: {"samples": len(self.data(s)), "left_out": 0} for s in ("train", "dev", "test")}


RECIPE = """\
# A toy run.
modality: toy:ToyAdapter
seed: 3
data: {}
teacher:
  model: mlp
  params: {width: 24}
  train: {steps: 8, batch_size: 6, optimizer: {lr: 2e-2}, eval_every: 4}
student:
  model: mlp
  params: {width: 8, dropout: 0.2}
objective:
  - {loss: test_ce}
  - {loss: kd, params: {temperature: 2.0}}
  - {loss: hint, on: body}
train: {steps: 8, batch_size: 6, optimizer: {lr: 2e-2}, eval_every: 4, checkpoint_every: 2, ema: 0.8}
"""


def compressed(
    compress: str, student: str = "{model: mlp, params: {width: 8}}", train: str = "steps: 4, eval_every: 2",
    terms: str = "[{loss: test_ce}, {loss: kd, params: {temperature: 2.0}}]",
) -> str:  # fmt: skip
    """A recipe of a toy run with a small teacher, whose student is made small."""
    return f"""\
# A toy run.
modality: toy:ToyAdapter
seed: 3
data: {{}}
teacher:
  model: mlp
  params: {{width: 16}}
  train: {{steps: 4, batch_size: 6, optimizer: {{lr: 2e-2}}, eval_every: 4}}
student: {student}
compress: {compress}
objective: {terms}
train: {{batch_size: 6, optimizer: {{lr: 2e-2}}, {train}}}
trackers: []
"""


#: A term of each reduction, and a projector.
TERMS = (
    Term(loss="test_ce"),
    Term(loss="kd", params={"temperature": 2.0}),
    Term(loss="test_items", weight=0.5),
    Term(loss="hint", on="body"),
)
RELATION = Term(loss="cka", on="body", weight=0.3)


def adapter(batch_size: int = 6, seed: int = 3, **data: Any) -> ToyAdapter:
    return ToyAdapter(Data(**data), Streams(seed), batch_size)


def roles(toy: ToyAdapter, *, student: Any = MappingProxyType({}), teacher: Any = MappingProxyType({})) -> Models:
    """Both roles with their initial weights; the arguments are further parameters of each."""
    with toy.streams.forked("init"):
        return {
            "teacher": toy.build("teacher", "mlp", {"width": 24, **teacher}),
            "student": toy.build("student", "mlp", {"width": 8, **student}),
        }


def engine(
    folder: Path,
    train: Train,
    *,
    toy: ToyAdapter | None = None,
    models: dict[str, nn.Module] | None = None,
    terms: Sequence[Term] = TERMS,
    accelerator: Accelerator | None = None,
    method: Any = None,
    **options: Any,
) -> Engine:
    """An engine of the default method on toy data."""
    toy = toy or adapter(train.batch_size)
    models = roles(toy) if models is None else models
    method = method or Distil(toy, Objective(terms, steps=train.steps), train, toy.streams)
    accelerator = accelerator or make_accelerator("cpu", train.precision)
    return Engine(
        method, toy.data("train"), models, train,
        streams=toy.streams, accelerator=accelerator, folder=folder, quiet=True, **options,
    )  # fmt: skip
