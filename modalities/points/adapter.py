"""3D points: frames to rows of cells, pixels or points, segmenters, mIoU, students for sparse LiDAR and cameras."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn

from xmodal_kd.adapter.adapter import Adapter, Batch, Evaluation, Overview, Score, is_teacher
from xmodal_kd.adapter.listed import Listed, Skipped
from xmodal_kd.adapter.panels import Panel
from xmodal_kd.adapter.saved_model import CARD, About
from xmodal_kd.models.no_model import NoModel
from xmodal_kd.models.onnx_teacher import is_onnx, said_of
from xmodal_kd.runtime.bounded_cache import BoundedCache
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.runtime.registry import Registry
from xmodal_kd.signals.capture import capture, only_call
from xmodal_kd.signals.class_mapping import answering
from xmodal_kd.signals.signals import Signals

from .data.augment_config import MOVES
from .data.config import PointsData, View
from .data.frames import Joined, Recorded, frames_of
from .data.stored_logits import StoredLogits
from .evaluate.metrics import Tally, miou_interval, miou_labelled
from .evaluate.whole_scan import over_points
from .export.card import about
from .export.onnx import export
from .export.onnx_teacher import is_ours, load_ours, load_theirs
from .export.saved_folder import check_classes, check_view, essence, load_card, load_model, save_model
from .losses import bev, centres, fusion, local  # noqa: F401 - registers the losses
from .methods import BevDistill, DistillBevFP, LabelDistill, LabelKD, UniDistill  # noqa: F401 - registers the methods
from .models import MODELS
from .models.vision_encoder import VisionEncoder, is_encoder, layer_map, load_encoder, that_answer
from .show.overview import overview
from .show.panels import glimpse, show
from .views.projection import Trap, projected, warned
from .views.rows import Rows, as_rows, layout_of
from .views.source import PointsSource
from .views.views import see

#: Bytes of a frozen teacher's rows that are kept.
MEMORY = 1 << 30


def _missing() -> Rows:
    raise AssertionError("it was there a moment ago")


class PointsAdapter(Adapter):
    """Teacher and student see the same moment, each in its own way, and meet on the student's rows.

    A row is a cell of a range image, a pixel or a point, as the student's model sees. A frozen teacher's are gathered
    through the points that both see; rows which it does not see are masked. A teacher that learns has its own rows.
    """

    Data: ClassVar[type[PointsData]] = PointsData
    models: ClassVar[Registry[Any]] = MODELS
    gives: ClassVar[frozenset[str]] = frozenset({"logits", "labels", "features"})
    metric: ClassVar[tuple[str, bool]] = ("miou", False)
    quick_export: ClassVar[bool] = False
    saves_low_rank: ClassVar[bool] = True
    datasets: ClassVar[Mapping[str, str]] = {
        "simulator": "streets made on the fly: ground, pavements, cars, trucks, buildings, poles, trees, people",
        "kitti": "KITTI object's layout: training/{velodyne,image_2,calib,label_2}",
        "kitti_raw": "KITTI raw's layout: <date>/<drive>_sync/{velodyne_points,image_02}/data, calib_*.txt",
        "semantickitti": "SemanticKITTI's layout: sequences/NN/{velodyne,labels}, poses.txt, calib.txt",
        "nuscenes": "a nuScenes key frame: frame.json with its sweep and six photographs",
        "range_images": "labelled range images: NAME.npz with xyz (h, w, 3), intensity and label (h, w)",
    }

    def __init__(self, data: PointsData, streams: Streams, batch_size: int) -> None:
        self.config, self.streams, self.batch_size = data, streams, batch_size
        self.classes = data.taxonomy.names
        # opened now: a folder that is not there must not come out after hours of training
        self.real = list(_real(data))
        self._sources: dict[str, PointsSource] = {}
        self._labelled: Sequence[int] | None = None
        self._class_weight: Tensor | None = None
        self._taught: BoundedCache[Rows] = BoundedCache(MEMORY)
        if data.sources != "simulator" or data.unlabelled is not None:
            for split in ("train", "dev", "test"):
                self.data(split)
        for folder in self.real if data.needs_pictures else ():
            see(folder[0], View(sees="image"), data)

    @classmethod
    def of(cls, data: PointsData) -> type[Adapter]:
        if data.task == "detection":
            from .tasks.detection import DetectionAdapter

            return DetectionAdapter
        return cls

    @classmethod
    def metric_of(cls, data: Mapping[str, Any]) -> tuple[str, bool]:
        return ("map", False) if data.get("task") == "detection" else cls.metric

    @classmethod
    def files(cls, data: PointsData) -> Iterator[Listed]:
        yield from data.listed()
        for split in () if data.sources == "simulator" and data.unlabelled is None else ("train", "dev", "test"):
            frames = frames_of(data, split)
            for part in frames.parts if isinstance(frames, Joined) else (frames,):
                if isinstance(part, Recorded):
                    yield from part.files()
        for folder in _real(data):
            yield from folder.files()

    def data(self, split: str) -> PointsSource:
        if split not in self._sources:
            self._sources[split] = PointsSource(self.config, split, self.streams, self.batch_size)
        return self._sources[split]

    def rehearsing(self, items: int) -> Adapter:
        """With a memory of its own of what teachers say: it knows a model by its place, which a later one may take."""
        made = cast(PointsAdapter, super().rehearsing(items))
        made._taught = BoundedCache(MEMORY)
        return made

    def begin(self, role: str, labelled: Sequence[int]) -> None:
        """The weights of the classes are those of the frames whose labels may be looked at."""
        self._labelled, self._class_weight = labelled, None
        train = self.data("train")
        train.learns, train.known = role, frozenset(labelled)

    # ---------------------------------------------------------------- models

    def view(self, role: str) -> View:
        return self.config.view(role)

    def build(self, role: str, model: str, params: Mapping[str, Any]) -> nn.Module:
        kind, sees = MODELS[model], self.view(role).sees
        if kind.view != sees or kind.detects:
            odd = f"sees {kind.view}, {_key(role)}.sees says {sees}"
            raise UserError(f"{role}: model {model!r} {'is of data.task detection' if kind.detects else odd}")
        config = kind.Config.model_validate(params)
        if not self.config.lidar.turns and "around" in kind.Config.model_fields:
            config = config.model_copy(update={"around": False})
        classes = self.view(role).classes or self.classes
        built = kind(config, channels=self.view(role).channels, classes=len(classes))
        built.fits(self.config.image)
        built.card = {"model": model, "params": built.again.model_dump(mode="json")}
        return answering(built, classes, self.classes)

    def load(self, role: str, folder: Path) -> nn.Module:
        if (spec := self.teachers.get(role)) is not None and spec.signals is not None:
            return self._load_stored(role, folder, spec.on_missing)
        if is_teacher(role) and is_encoder(folder) and not (folder / CARD).is_file():
            if self.view(role).sees != "image":
                raise UserError(f"{folder}: an encoder of images: set {_key(role)}.sees to image")
            return load_encoder(folder, self.config.image)
        if is_onnx(folder) and not is_ours(folder):
            return self._load_theirs(role, folder)
        model, card = load_ours(folder) if is_onnx(folder) else load_model(folder)
        classes = self.view(role).classes or self.classes
        check_classes(folder, card, classes)
        check_view(folder, role, essence(self.view(role), self.config.lidar), essence(card.view, card.lidar))
        model.card = {"model": card.model, "params": card.params}  # type: ignore[assignment]
        return answering(model, classes, self.classes)

    def _load_theirs(self, role: str, file: Path) -> nn.Module:
        """A teacher in an ONNX file, which is tried on the first frame: not after hours of training."""
        view, source = self.view(role), self.data("train")

        def trial(model: nn.Module) -> Tensor:
            return _forward(model, _side(role, source.collate([source.clean(0)])))

        said, classes = said_of(self.teachers.get(role)), view.classes or self.classes
        return answering(*load_theirs(file, said, view, classes, trial), self.classes)

    def _load_stored(self, role: str, folder: Path, on_missing: str) -> nn.Module:
        """From now on all frames carry what the teacher said, and this is what `role` sees of them."""
        stored = StoredLogits(folder, on_missing, self.classes)
        splits = {split: self.data(split) for split in ("train", "dev", "test")}
        named = {split: source.frames.named for split, source in splits.items()}
        stored.check(named | {f"data.real, {one.folder.path}": one.named for one in self.real})
        for source in splits.values():
            source.tell(role, stored)
        for frames in self.real:
            frames.tell(role, stored)
        self.config = self.config.answered(role)
        self.data("train").moment(0)  # what does not fit must not come out after hours of training
        return NoModel(stored.stored.origin)

    def class_names(self, role: str) -> Sequence[str]:
        return self.classes

    def save(self, role: str, model: nn.Module, folder: Path) -> None:
        view = self.view(role)
        card: Mapping[str, Any] = model.card  # type: ignore[assignment]
        save_model(folder, model, {
            **card, "channels": view.channels, "classes": view.classes or self.classes, "view": view,
            "image": self.config.image, "sensor": self.config.sensor, "role": role,
            "label_ids": self.config.label_ids(view),
        })  # fmt: skip

    # ---------------------------------------------------------------- signals

    def signals(self, role: str, model: nn.Module, batch: Batch, features: Sequence[str] = ()) -> Signals:
        """``logits`` and captured features on the student's rows, or, of a teacher that learns, on its own.

        Beside them ``labels``, ``class_weight`` (of the label; of the teacher's answer on its rows), ``voxels``,
        ``supervoxels`` and ``superpixels`` (regions; below 0 none).
        """
        if is_teacher(role) and not model.training:
            return self._teaches(role, model, batch, features)
        side = _side(role, batch)
        layout, labels = layout_of(side), side["labels"]
        out = Signals(batch["ids"])
        for name, rows in self._rows(model, side, features).items():
            out.add(name, rows, layout)
        known = layout_of(side, self._known(role, labels))
        out.add("labels", labels, known)
        out.add("class_weight", self._weights(labels.device)[labels.clamp(min=0)], known)
        for name in ("voxels", "supervoxels", "superpixels"):
            if name in side:
                out.add(name, side[name], layout)
        return out

    def _known(self, role: str, labels: Tensor) -> Tensor:
        """Which rows have a label that `role` may learn: a teacher of some classes sees no others."""
        classes = self.view(role).classes
        if classes is None:
            return labels >= 0
        return torch.isin(labels, torch.tensor([self.classes.index(name) for name in classes], device=labels.device))

    def _teaches(self, role: str, model: nn.Module, batch: Batch, features: Sequence[str]) -> Signals:
        """A teacher's rows, brought to the student's."""
        side, own = _side(role, batch), batch["student"]
        match = side.get("match", batch["match"])
        out = Signals(batch["ids"])
        layout = layout_of(own, match.reached)
        for name, rows in self._frozen_rows(model, side, batch, features).items():
            out.add(name, match.gather(rows)[0], layout)
        if not isinstance(model, VisionEncoder):
            answers = out.rows("logits").argmax(dim=-1)
            out.add("class_weight", self._weights(answers.device)[answers], layout)
        return out.add("labels", own["labels"], layout_of(own, own["labels"] >= 0))

    def _frozen_rows(
        self, model: nn.Module, side: Mapping[str, Any], batch: Batch, features: Sequence[str]
    ) -> dict[str, Tensor]:
        """A frozen teacher's own rows: remembered for the training frames, where it sees them as they are."""
        ids = batch["ids"].tolist()
        if not batch["repeats"] or side["inputs"].ndim != 4:
            return self._rows(model, side, features)
        weights = sum(p._version for p in model.parameters())  # an average's change in place
        keys = [(id(model), weights, i, *features) for i in ids]
        if not all(key in self._taught for key in keys):
            found = {name: rows.detach() for name, rows in self._rows(model, side, features).items()}
            rows = len(side["valid"]) // len(ids)
            for at, key in enumerate(keys):
                self._taught.get(key, lambda at=at: Rows({n: x[at * rows :][:rows].clone() for n, x in found.items()}))  # type: ignore[misc]
            return found
        held = [self._taught.get(key, _missing) for key in keys]
        return {name: torch.cat([one.values[name] for one in held]) for name in held[0].values}

    def _rows(self, model: nn.Module, side: Mapping[str, Any], features: Sequence[str]) -> dict[str, Tensor]:
        """``logits`` and features as rows of what a model saw; a coarser map's cells stand for those they cover."""
        grid = tuple(side["inputs"].shape[2:])
        with capture(model, features) as taken:
            said = _forward(model, side)
        found = {} if isinstance(model, VisionEncoder) else {"logits": said}
        found |= {name: layer_map(model, only_call(name, calls), grid) for name, calls in taken.items()}
        return {name: as_rows(name, value, grid, len(side["valid"])) for name, value in found.items()}

    def _weights(self, device: torch.device) -> Tensor:
        """``(classes,)`` (commonest / class)^balance over the labelled training scans; 1 for a class they lack."""
        if self._class_weight is None:
            count = self.data("train").count(self._labelled)
            weight = (count.max() / np.maximum(count, 1)) ** self.config.balance
            self._class_weight = torch.from_numpy(np.where(count > 0, weight, 1.0)).float()
        return self._class_weight.to(device)

    def views_differ(self) -> str | None:
        view, augment = self.config.student, self.config.augment
        moved = [name for name in MOVES[view.sees] if getattr(augment, name)]
        found = [f"data.augment.{name}" for name in moved] + ["data.student.points"] * (view.sees == "points")
        return f"{found[0]} moves rows: leave it out" if found else None

    def answer(self, role: str, model: nn.Module, batch: Batch) -> Tensor:
        """The forward pass: the views that it needs are there."""
        return _forward(model, _side(role, batch))

    # ---------------------------------------------------------------- evaluation and export

    def evaluate(self, role: str, model: nn.Module, split: str) -> Evaluation:
        """On the student's rows that the teacher sees too, so that roles compare; `miou_own` on all of its own.

        `miou` is over the classes that are labelled or predicted, `miou_labelled` over those that are labelled.
        A frame's score is 1 - mIoU over the classes that it holds; their mean is not the mIoU of all rows. Of the test
        split, with ``measure: points``, also what `over_points` says. An encoder of images answers nothing: its metric
        is None.
        """
        if isinstance(model, VisionEncoder):
            return Evaluation({self.metric[0]: None})
        found = self.measure(role, model, source := self.data(split))
        if split != "test" or self.config.measure == "rows":
            return found
        return replace(found, metrics=found.metrics | over_points(model, source.frames, self.view(role), self.config))

    def measure(self, role: str, model: nn.Module, source: PointsSource) -> Evaluation:
        device = next(model.parameters()).device
        shared, own, scores, matrices = Tally(self.classes), Tally(self.classes), [], []
        for batch in batches(source, device):
            said = self.signals(role, model, batch)
            rows, layout = said["logits"]
            confidence, answer = (x.cpu().numpy() for x in torch.softmax(rows.float(), dim=-1).max(dim=-1))
            side = batch["student"]
            labels, distance = side["labels"].cpu().numpy(), side["distance"].cpu().numpy()
            mask, both = layout.mask.cpu().numpy(), batch["match"].reached.cpu().numpy()
            item = layout.item.cpu().numpy()
            for i, key in enumerate(batch["keys"]):
                here = mask & (item == i)
                common = here & both
                matrix = shared.add(answer[common], confidence[common], labels[common], distance[common])
                own.add(answer[here], confidence[here], labels[here], distance[here])
                scores.append(Score(key, source.split, 1.0 - miou_labelled(matrix), 1.0))
                matrices.append(matrix)
        metrics = shared.metrics() | ({} if is_teacher(role) else {"miou_own": own.metrics()["miou"]})
        if interval := miou_interval([matrix for matrix in matrices if matrix.any()]):
            metrics |= {"miou_interval": interval, "miou_interval_over": "frames"}
        return Evaluation(metrics, [s for s in scores if np.isfinite(s.errors)])

    def overview(self, models: Mapping[str, nn.Module], folder: Path) -> Overview:
        return overview(self, that_answer(models), folder)

    def show(self, models: Mapping[str, nn.Module], folder: Path) -> Sequence[Panel]:
        return show(self, that_answer(models))

    def glimpse(self, role: str, model: nn.Module) -> Sequence[Panel]:
        return glimpse(self, role, model)

    def about(self, role: str, model: nn.Module, folder: Path) -> About:
        return about(load_card(folder))

    def export(self, model: nn.Module, folder: Path) -> Mapping[str, Any]:
        """ONNX beside the weights, for the models that ONNX can express."""
        return export(model, folder)

    def traps(self, batch: Batch) -> Iterator[Trap]:
        """Of pictures: points against their bounds, frames on which the teacher is silent, what readers warned of."""
        frames = self.data("train").frames  # ids behind them are of samples that a scheme added
        yield from projected([frames[i][0] for i in batch["ids"].tolist() if i < len(frames)])
        silent = (torch.bincount(batch["match"].item, minlength=batch["match"].items) == 0).nonzero().flatten().tolist()
        if silent:
            key, all_of = batch["keys"][silent[0]], len(batch["keys"])
            found = f"{key}: both sides see no point ({len(silent)} of {all_of} frames)"
            yield "warn", found, "its rows learn nothing from the teacher: look at beams, augmentation and calibration"
        for line in warned({**self.describe(), **{str(one.folder.path): one.describe() for one in self.real}}):
            yield "warn", line, "correct the calibration, or know what it costs"

    def describe(self) -> Mapping[str, Any]:
        return {split: self.data(split).describe() for split in ("train", "dev", "test")}


def _real(data: PointsData) -> Iterator[Recorded]:
    """The folders that all roles are measured on at the end."""
    for folder in data.real:
        yield Recorded(
            folder, data.lidar, classes=data.taxonomy, pictures=True, skipped=Skipped.of(data.skip), beside=True
        )


def batches(source: PointsSource, device: torch.device, size: int | None = None) -> Iterator[Batch]:
    """All samples of a split in order, as they are."""
    size = size or source.batch_size
    for start in range(0, len(source), size):
        made = source.collate([source.clean(i) for i in range(start, min(start + size, len(source)))])
        yield send_to_device(made, device)


def _forward(model: nn.Module, side: Mapping[str, Any]) -> Tensor:
    """Logits of a view with a grid, or of points laid end to end."""
    found: Tensor = model(side["inputs"]) if side["inputs"].ndim == 4 else model(side["inputs"], side["lengths"])
    return found


def _side(role: str, batch: Batch) -> Mapping[str, Any]:
    """What of a batch a role sees."""
    found: Mapping[str, Any] = batch["others"].get(role) or batch["teacher" if is_teacher(role) else "student"]
    return found


def _key(role: str) -> str:
    """Where the recipe says what a role sees."""
    return f"data.{role.replace('-', 's.')}" if is_teacher(role) else "data.student"


__all__ = ["PointsAdapter", "batches"]
