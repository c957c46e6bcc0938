"""Boxes of things: points or photographs to rows of cells of the ground, centre heads, AP, students of less."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from xmodal_kd.adapter.adapter import Adapter, Batch, Evaluation, Overview, Score, is_teacher
from xmodal_kd.adapter.panels import Panel
from xmodal_kd.adapter.saved_model import CARD, About
from xmodal_kd.models.onnx_teacher import is_onnx
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.runtime.registry import Registry
from xmodal_kd.signals.capture import capture, only_call
from xmodal_kd.signals.signals import Layout, Signals

from ..data.augment_config import MOVES
from ..data.config import PointsData, View
from ..evaluate.detection import DetectionTally
from ..export.card import about_detector
from ..export.detector_onnx import export
from ..export.onnx_teacher import is_ours, load_ours
from ..export.saved_folder import check_classes, check_view, essence, load_card, load_model, save_model
from ..models import HEADED, MODELS, BoxesModel, CenterPoint, CenterPointCamera
from ..models.centre import Answer
from ..models.decoding import Found, found
from ..show.boxes import glimpse, overview, show
from ..views.detection_source import DetectionSource
from ..views.frustum import focal
from ..views.ground import CODE, Ground, matched, objects, shifts, targets

#: The module whose output is boxes, which change from cell to cell.
BOXES = "boxes"
#: The module of detectors of photographs that says how deep what a pixel shows is.
DEPTH = "depth"


class DetectionAdapter(Adapter):
    """Teacher and student look for the things of a moment, each in its own pillars or photographs, and meet on the
    student's cells. Where one of them sees photographs, nobody sees or looks for more than these show.

    A row is a cell of the ground. ``logits`` are the heat of each class, ``boxes`` (a module's output) the box that a
    cell says. Beside them ``labels``, the heat that is right, ``box_labels`` on the cells that hold a centre, two
    signals to weigh rows by, ``foreground`` (the largest right heat) and ``centre`` (1 where a centre is), and two for
    a term's ``regions``: ``objects`` (which thing's box is on a cell, from 1; 0: none; -1 throughout a frame whose
    boxes may not be looked at) and ``point_count`` (the teacher's points in a cell, or the student's where the teacher
    sees photographs; -1 where either side sees points and has none). ``depth`` of a role that sees photographs has rows
    of its own, cells of the photographs, with ``depth_labels``: the step in which the nearest point of the scan is.
    """

    Data: ClassVar[type[PointsData]] = PointsData
    models: ClassVar[Registry[Any]] = MODELS
    gives: ClassVar[frozenset[str]] = frozenset({"logits", "regression", "features"})
    metric: ClassVar[tuple[str, bool]] = ("map", False)
    quick_export: ClassVar[bool] = False

    def __init__(self, data: PointsData, streams: Streams, batch_size: int) -> None:
        self.config, self.streams, self.batch_size = data, streams, batch_size
        self.classes = data.detection.names
        self._sources: dict[str, DetectionSource] = {}
        if data.sources != "simulator":
            for split in ("train", "dev", "test"):
                self.data(split)

    def data(self, split: str) -> DetectionSource:
        if split not in self._sources:
            self._sources[split] = DetectionSource(self.config, split, self.streams, self.batch_size)
        return self._sources[split]

    # ---------------------------------------------------------------- models

    def view(self, role: str) -> View:
        return self.config.view(role)

    def ground(self, role: str) -> Ground:
        """The cells of what a role answers."""
        return Ground.of(self.config.detection, self.view(role).cell, CenterPoint.merged)

    def build(self, role: str, model: str, params: Mapping[str, Any]) -> nn.Module:
        kind, sees = MODELS[model], self.view(role).sees
        if kind.view != sees or not kind.detects:
            found = [name for name in HEADED if MODELS[name].view == sees]
            raise UserError(
                f"{role}: model {model!r} {'sees' if kind.view != sees else 'labels what it sees,'} {kind.view}, and "
                f"data.task detection needs {' or '.join(found)} where sees is {sees}"
            )
        if issubclass(kind, BoxesModel):
            raise UserError(
                f"{role}: model {model!r} says boxes, which nothing here can train: write its folder once "
                f"(docs/own_models.md), and give it as {_key(role)}.path"
            )
        config = kind.Config.model_validate(params)
        built = kind(config, channels=self.view(role).channels, classes=len(self.classes))
        built.fits(self.config.image)
        built.card = {"model": model, "params": built.again.model_dump(mode="json")}
        return built

    def load(self, role: str, folder: Path) -> nn.Module:
        if (spec := self.teachers.get(role)) is not None and spec.signals is not None:
            raise UserError(
                f"{_key(role)}.signals: {folder}: logits by point are of segmentation: to learn boxes "
                "from a detector of somebody else's, name it by its import path (docs/own_models.md)"
            )
        if is_onnx(folder) and not is_ours(folder):
            raise UserError(
                f"{folder}: a detector in an ONNX file teaches where it was exported here, beside its {CARD}: name one "
                "of somebody else's by its import path (docs/own_models.md)"
            )
        model, card = (load_ours if is_onnx(folder) else load_model)(folder, detects=True)
        check_classes(folder, card, self.classes)
        asked, trained = ({**essence(view, lidar), "cell": view.cell} for view, lidar in (
            (self.view(role), self.config.lidar), (card.view, card.lidar),
        ))  # fmt: skip
        check_view(folder, role, asked, trained)
        if card.view.sees == "image" and card.image != self.config.image:
            raise UserError(
                f"{folder}: this {role} was trained on photographs of {list(card.image)}, data.image says "
                f"{list(self.config.image)}: make them agree"
            )
        if isinstance(model, BoxesModel):  # its own ground is that of its card
            model.stand_on(self.config.detection, self.view(role).cell)
        model.card = {"model": card.model, "params": card.params}  # type: ignore[assignment]
        return model

    def class_names(self, role: str) -> Sequence[str]:
        return self.classes

    def save(self, role: str, model: nn.Module, folder: Path) -> None:
        card: Mapping[str, Any] = model.card  # type: ignore[assignment]
        save_model(folder, model, {
            **card, "channels": self.view(role).channels, "classes": self.classes, "view": self.view(role),
            "image": self.config.image, "sensor": self.config.sensor, "role": role,
            "detection": self.config.detection, "focal": self._focal(role),
        })  # fmt: skip

    def _focal(self, role: str) -> float | None:
        if self.view(role).sees != "image":
            return None
        return focal(self.data("train").moment(0).pictured(role).lift[0])

    # ---------------------------------------------------------------- signals

    def signals(self, role: str, model: nn.Module, batch: Batch, features: Sequence[str] = ()) -> Signals:
        """``logits`` and captured features on the student's cells, or, of a teacher that learns, on its own.

        Beside them what the frames' boxes say of these cells; of a frame whose labels may not be looked at, nothing.
        """
        ours = self.ground(role if is_teacher(role) and model.training else "student")
        theirs, items = self.ground(role), len(batch["keys"])
        device = _device(batch)
        layout = Layout.dense("pixel", items, ours.shape, device)
        out = Signals(batch["ids"])
        for name, maps in self._maps(role, model, batch, features).items():
            if name == DEPTH:
                self._say_depth(out, model, maps, _seen(role, batch))
                continue
            rows = _as_rows(name, maps, theirs.shape)
            rows = rows if ours == theirs else _brought(name, rows, theirs, ours, items)
            where = layout
            if name == BOXES and isinstance(model, BoxesModel):  # where it says none, there is no row
                where = Layout("pixel", rows.isfinite().all(dim=1), layout.item, items, ours.shape)
            out.add(name, rows, where)
        self.say_labels(out, batch, ours, layout)
        return out.add("point_count", self._point_count(role, batch, ours), layout)

    def say_labels(self, out: Signals, batch: Batch, ours: Ground, layout: Layout) -> None:
        """Add what the frames' boxes say of the cells of a ground, which `layout` lays out."""
        device = layout.item.device
        boxes, numbers = self.known_things(batch)
        right = targets(boxes, numbers, ours, len(self.classes))
        heat, code, centre = (x.to(device) for x in (right.heat, right.code, right.centre))
        out.add("labels", heat, layout)
        out.add("box_labels", code, Layout("pixel", centre, layout.item, layout.items, ours.shape))
        out.add("foreground", heat.amax(dim=1), layout)
        out.add("centre", centre.float(), layout)
        seen = _labelled(batch).to(device).repeat_interleave(ours.cells)
        out.add("objects", torch.where(seen, objects(boxes, ours).to(device), -1), layout)

    def known_things(self, batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
        """Boxes and classes of each frame's things, none of a frame whose labels may not be looked at."""
        known = _labelled(batch).tolist()
        boxes, numbers = (
            [some if here else some[:0] for some, here in zip(batch[key], known, strict=True)]
            for key in ("boxes", "numbers")
        )
        return boxes, numbers

    def _say_depth(self, out: Signals, model: nn.Module, maps: Tensor | None, seen: Mapping[str, Any]) -> None:
        """Add a role's answers by step of depth and the right ones, none of one that sees points."""
        items = seen["shape"][0]
        if maps is None or not isinstance(model, CenterPointCamera):
            device = None if out.ids is None else out.ids.device
            rows, right = torch.zeros(0, 1, device=device), torch.zeros(0, dtype=torch.long, device=device)
            layout = Layout.ragged("pixel", right, items)
        else:
            rows, right = rearrange(maps, "b d i j -> (b i j) d"), model.steps(seen["depth"])
            layout = Layout.dense("pixel", items, (len(rows) // items,), rows.device)
        known = Layout("pixel", right >= 0, layout.item, items, layout.grid)
        out.add(DEPTH, rows, layout)
        out.add("depth_labels", right, known)

    def _point_count(self, role: str, batch: Batch, ours: Ground) -> Tensor:
        """``(rows,)`` the points in each cell of the teacher, or else the student, that sees points; -1 where one that
        does has none."""
        roles = [one for one in (role if is_teacher(role) else "teacher", "student") if "points" in _seen(one, batch)]
        counts = [self._counted(one, batch, ours) for one in roles]
        if not counts:
            return torch.full((len(batch["keys"]) * ours.cells,), -1, device=_device(batch))
        return torch.where(torch.stack(counts).amin(dim=0) > 0, counts[0], -1)

    def _counted(self, role: str, batch: Batch, ours: Ground) -> Tensor:
        """``(rows,)`` the points that a role sees in each cell; of a coarser pillar of its own all."""
        seen, items = _seen(role, batch), len(batch["keys"])
        own = Ground.of(self.config.detection, self.view(role).cell)
        count = torch.bincount(seen["cell"], minlength=items * own.cells)
        match = matched(own, ours, items).to(count.device)
        return count.new_zeros(items * ours.cells).index_add(0, match.target, count[match.source])

    def _maps(self, role: str, model: nn.Module, batch: Batch, features: Sequence[str]) -> dict[str, Any]:
        with capture(model, features) as taken:
            answer = self.answer(role, model, batch)
        # those that see points are asked for no depth
        given = {name: None if name == DEPTH and not calls else only_call(name, calls) for name, calls in taken.items()}
        return {"logits": answer.heat, **given}

    def views_differ(self) -> str | None:
        moved = [name for name in MOVES["pillars"] if getattr(self.config.augment, name)]
        return f"data.augment.{moved[0]} moves rows: leave it out" if moved else None

    def answer(self, role: str, model: nn.Module, batch: Batch) -> Answer:
        seen = _seen(role, batch)
        if isinstance(model, CenterPointCamera):
            size = seen["pictures"].shape[-2], seen["pictures"].shape[-1]
            cell = model.cells(seen["lift"], size, Ground.of(self.config.detection, self.view(role).cell))
            return model(seen["pictures"], cell, seen["shape"])  # type: ignore[no-any-return]
        given: Answer = model(seen["points"], seen["cell"], seen["shape"])
        return given

    def found(self, role: str, model: nn.Module, batch: Batch) -> list[Found]:
        """The boxes that a role finds in each frame of a batch."""
        with torch.no_grad():
            return found(self.answer(role, model, batch), self.ground(role))

    # ---------------------------------------------------------------- evaluation and export

    def evaluate(self, role: str, model: nn.Module, split: str) -> Evaluation:
        """On all things to find, whatever of them a role's own view shows: so that roles compare.

        A frame's score is 1 - its own mAP over the classes that it holds; their mean is not the mAP of all frames.
        """
        source = self.data(split)
        tally, keys = DetectionTally(self.config.detection), list[str]()
        for batch in batches(source, next(model.parameters()).device):
            finds = self.found(role, model, batch)
            for index, key, one in zip(batch["ids"].tolist(), batch["keys"], finds, strict=True):
                moment = source.moment(index)
                tally.add(moment.things, one, moment.camera)
                keys.append(key)
        scores = [Score(key, split, tally.errors(i), 1.0) for i, key in enumerate(keys)]
        return Evaluation(tally.metrics(), [score for score in scores if np.isfinite(score.errors)])

    def overview(self, models: Mapping[str, nn.Module], folder: Path) -> Overview:
        return overview(self, models, folder)

    def show(self, models: Mapping[str, nn.Module], folder: Path) -> Sequence[Panel]:
        return show(self, models)

    def glimpse(self, role: str, model: nn.Module) -> Sequence[Panel]:
        return glimpse(self, role, model)

    def about(self, role: str, model: nn.Module, folder: Path) -> About:
        return about_detector(load_card(folder, detects=True))

    def export(self, model: nn.Module, folder: Path) -> Mapping[str, Any]:
        return export(model, folder)

    def traps(self, batch: Batch) -> Iterator[Any]:
        """Frames without a thing to find."""
        empty = [key for key, boxes in zip(batch["keys"], batch["boxes"], strict=True) if not len(boxes)]
        if empty:
            said = f"{empty[0]}: nothing to find ({len(empty)} of {len(batch['keys'])} frames)"
            yield "warn", said, "look at data.detection: its range, its classes and the points that a box must hold"

    def describe(self) -> Mapping[str, Any]:
        return {split: self.data(split).describe() for split in ("train", "dev", "test")}


def batches(source: DetectionSource, device: torch.device) -> Iterator[Batch]:
    """All samples of a split in order, as they are."""
    for start in range(0, len(source), source.batch_size):
        made = source.collate([source.clean(i) for i in range(start, min(start + source.batch_size, len(source)))])
        yield made | {"seen": {role: _moved(seen, device) for role, seen in made["seen"].items()}}


def _moved(seen: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in seen.items()}


def _key(role: str) -> str:
    """Where the recipe describes a role."""
    return role.replace("-", "s.")


def _labelled(batch: Batch) -> Tensor:
    """``(b,)`` whether the labels of each frame may be looked at."""
    found: Tensor = batch.get("labelled", torch.ones(len(batch["keys"]), dtype=torch.bool))
    return found


def _seen(role: str, batch: Batch) -> Mapping[str, Any]:
    """What of a batch a role is given."""
    found: Mapping[str, Any] = batch["seen"].get(role) or batch["seen"]["teacher" if is_teacher(role) else "student"]
    return found


def _device(batch: Batch) -> torch.device:
    """Where what is seen lies."""
    return next(part.device for part in batch["seen"]["student"].values() if isinstance(part, Tensor))


def _as_rows(name: str, maps: Tensor, shape: tuple[int, int]) -> Tensor:
    """``(rows, c)`` of maps ``(b, c, h, w)`` of any resolution: the mean of finer cells, the coarser cell's value."""
    if maps.ndim != 4:
        raise UserError(f"module {name!r} gives {tuple(maps.shape)}: a feature of a detector here is (b, c, h, w)")
    if tuple(maps.shape[2:]) != shape:
        finer = maps.shape[2] > shape[0]
        maps = F.adaptive_avg_pool2d(maps, shape) if finer else F.interpolate(maps, size=shape, mode="nearest")
    return rearrange(maps, "b c h w -> (b h w) c")


def _brought(name: str, rows: Tensor, theirs: Ground, ours: Ground, items: int) -> Tensor:
    """A teacher's rows on the student's cells; a box's place is said from the cell's own centre."""
    match = matched(theirs, ours, items).to(rows.device)
    if name == BOXES and rows.shape[1] == CODE:
        each = rows[match.source]
        rows = torch.cat([each[:, :2] + shifts(theirs, ours, match).to(each), each[:, 2:]], dim=1)
        pairs = torch.arange(len(match), device=rows.device)
        match = replace(match, source=pairs, sources=tuple(torch.bincount(match.item, minlength=items).tolist()))
    return match.gather(rows)[0]


__all__ = ["DetectionAdapter", "batches"]
