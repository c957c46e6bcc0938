"""Images: classifiers of small pictures, every loss of the core on their scores, embeddings and maps; further tasks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from xmodal_kd.adapter.adapter import Adapter, Batch, Evaluation, Input, Score
from xmodal_kd.adapter.images.listed import listed_images
from xmodal_kd.adapter.listed import Listed
from xmodal_kd.adapter.panels import Panel
from xmodal_kd.adapter.saved_model import About
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.runtime.registry import Registry
from xmodal_kd.signals.capture import capture, only_call
from xmodal_kd.signals.signals import Layout, Signals

from .data.source import ImagesData, ImagesSource, Sample, load_split
from .evaluate.metrics import metrics
from .export.saved_folder import Card, about, build, export, load_card, load_model, save_model
from .losses import joints, restoration  # noqa: F401 - registers the losses
from .methods import temporal  # noqa: F401 - registers the methods
from .models import MODELS, Network, task_of
from .models.rows import add_feature
from .show.panels import glimpse, show

#: Images that are scored at once.
TOGETHER = 256
#: Main metrics of further tasks, and whether less is better.
METRICS = {"keypoints": ("pck", False), "restoration": ("psnr", False)}


class ImagesAdapter(Adapter):
    """All roles see the same image. A row is an image, or of a captured map a position of it."""

    Data: ClassVar[type[ImagesData]] = ImagesData
    models: ClassVar[Registry[Any]] = MODELS
    metric: ClassVar[tuple[str, bool]] = ("accuracy", False)
    quick_export: ClassVar[bool] = False
    saves_low_rank: ClassVar[bool] = True
    datasets: ClassVar[Mapping[str, str]] = {
        "digits": "scikit-learn's handwritten digits: 1,797 images of 8x8",
        "folder": "images in a folder; subfolders or dataset.json are the classes",
        "edm": "a zip of images with dataset.json (the EDM convention)",
        "webdataset": "WebDataset's shards (.tar): an image with .cls, or .json with label, of one name",
        "photos": "task restoration, as folder, edm and digits: scikit-learn's two photographs, cut into tiles",
        "skeletons": "task keypoints: figures drawn here, with known joints, also in clips that move",
        "coco": "task keypoints: COCO's keypoint annotations (JSON) and a folder of images",
        "datasets": "a folder of Hugging Face's datasets, as save_to_disk writes it: an Image and a ClassLabel column",
    }

    def __init__(self, data: ImagesData, streams: Streams, batch_size: int) -> None:
        self.config, self.streams, self.batch_size = data, streams, batch_size

    @classmethod
    def of(cls, data: ImagesData) -> type[Adapter]:
        """The adapter of a task; a further one stands in ``tasks/``, and has its line here."""
        if data.task == "keypoints":
            from .tasks.keypoints import KeypointsAdapter

            return KeypointsAdapter
        if data.task == "restoration":
            from .tasks.restoration import RestorationAdapter

            return RestorationAdapter
        return cls

    @classmethod
    def metric_of(cls, data: Mapping[str, Any]) -> tuple[str, bool]:
        return METRICS.get(str(data.get("task")), cls.metric)

    @classmethod
    def files(cls, data: ImagesData) -> Iterable[Listed]:
        task = cls.of(data)
        return listed_images(data) if task is cls else task.files(data)

    def data(self, split: str) -> ImagesSource:
        return ImagesSource(self.config, split, load_split(self.config, split), self.streams, self.batch_size)

    def class_names(self, role: str) -> Sequence[str]:
        return load_split(self.config, "train").class_names or ()

    def describe(self) -> Mapping[str, Any]:
        return {split: self.data(split).describe() for split in ("train", "dev", "test")}

    # ---------------------------------------------------------------- models

    def build(self, role: str, model: str, params: Mapping[str, Any]) -> Network:
        if (task := task_of(model)) != "classes":
            raise UserError(f"{role}: model {model!r} is of another task: set data.task to {task}")
        given = MODELS[model].Config.model_validate(params).model_dump(mode="json")
        shape = cast(tuple[int, int, int], load_split(self.config, "train").shape)
        classes = tuple(self.class_names(role))
        return build(Card(format=1, modality="images", model=model, params=given, shape=shape, classes=classes))

    def load(self, role: str, folder: Path) -> Network:
        card, train = load_card(folder), load_split(self.config, "train")
        if card.shape != train.shape:
            raise UserError(f"{folder}: its {role} sees images of {card.shape}, the data's are {train.shape}")
        if card.classes != train.class_names:
            raise UserError(f"{folder}: its {role} knows the classes {card.classes}, the data {train.class_names}")
        return load_model(folder)

    def save(self, role: str, model: nn.Module, folder: Path) -> None:
        save_model(folder, cast(Network, model), {"role": role})

    def about(self, role: str, model: nn.Module, folder: Path) -> About:
        return about(load_card(folder))

    def export(self, model: nn.Module, folder: Path) -> Mapping[str, Any]:
        return export(cast(Network, model), folder)

    # ---------------------------------------------------------------- signals

    def signals(self, role: str, model: nn.Module, batch: Batch, features: Sequence[str] = ()) -> Signals:
        """``logits`` and ``labels`` a row an image; captured vectors too, captured maps a row a position."""
        rows = Layout.samples(len(batch["x"]), batch["x"].device)
        with capture(model, features) as taken:
            out = Signals(batch["ids"]).add("logits", model(batch["x"]), rows).add("labels", batch["labels"], rows)
        for name, calls in taken.items():
            add_feature(out, name, only_call(name, calls))
        return out

    def input(self) -> Input:
        return Input(cast(tuple[int, int, int], load_split(self.config, "train").shape), -1.0, 1.0, key="x")

    def given(self, x: Tensor) -> Batch:
        ids = torch.arange(len(x), device=x.device)
        return {"ids": ids, "x": x, "labels": torch.full_like(ids, -1), "labelled": torch.zeros_like(ids).bool()}

    def teacher_sees(self, sample: Sample) -> Tensor:
        return sample.x

    def answer(self, role: str, model: nn.Module, batch: Batch) -> Tensor:
        return model(batch["x"])  # type: ignore[no-any-return]

    # ---------------------------------------------------------------- evaluation

    @torch.no_grad()
    def evaluate(self, role: str, model: nn.Module, split: str) -> Evaluation:
        """Accuracy, likelihood and calibration; an image's score is whether it is wrong, by class."""
        source, device, classes = self.data(split), next(model.parameters()).device, self.class_names(role)
        parts = (source.images.tensor(some) for some in torch.arange(len(source)).split(TOGETHER))
        logits = torch.cat([model(part.to(device)).float().cpu() for part in parts])
        wrong = (logits.argmax(dim=1) != source.labels).tolist()
        groups = [classes[i] for i in source.classes]
        scores = [
            Score(key, group, float(w), 1.0) for key, group, w in zip(source.images.keys, groups, wrong, strict=True)
        ]
        return Evaluation(metrics(logits, source.labels, classes), scores)

    def show(self, models: Mapping[str, nn.Module], folder: Path) -> Sequence[Panel]:
        return show(self.data("test"), models, self.class_names("student"))

    def glimpse(self, role: str, model: nn.Module) -> Sequence[Panel]:
        return glimpse(self.data("dev"), role, model)


__all__ = ["ImagesAdapter"]
