"""Joints of figures: heat maps of each, every loss of the core on them; PCK, skeletons on a page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from xmodal_kd.adapter.adapter import Adapter, Batch, Evaluation, Input, Score
from xmodal_kd.adapter.listed import Listed
from xmodal_kd.adapter.panels import Panel
from xmodal_kd.adapter.saved_model import About
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.runtime.registry import Registry
from xmodal_kd.signals.capture import capture, only_call
from xmodal_kd.signals.signals import Layout, Signals

from ..data.keypoints.coco import listed_persons
from ..data.keypoints.source import FiguresSource, Sample, load_figures
from ..data.source import ImagesData
from ..evaluate.joints import SHARES, distances, found_in, metrics
from ..export.card import save_model
from ..export.keypoints_folder import KeypointsCard, about, build, export, load_card, load_model
from ..models import MODELS, HeatMaps, heat_maps
from ..models.rows import add_feature
from ..show.skeletons import glimpse, show


class KeypointsAdapter(Adapter):
    """All roles see the same image of a figure. A row is a joint of an image, its columns the positions of its map.

    So a heat map is what every loss of the core takes for class scores, the class being the position; relations between
    the rows of an item are those between a figure's joints; and a joint that is not labelled is a row that is not
    valid, as releases weigh its map by 0. Of a figure whose labels may not be looked at all joints are valid.

    ``logits`` are heat maps, and so are ``heads.*``; beside them ``labels``, the position that a joint lies in, and
    ``heatmaps``, what a map should show. What is captured on the way has a row a position of its map.
    """

    Data: ClassVar[type[ImagesData]] = ImagesData
    models: ClassVar[Registry[Any]] = MODELS
    metric: ClassVar[tuple[str, bool]] = ("pck", False)
    quick_export: ClassVar[bool] = False

    def __init__(self, data: ImagesData, streams: Streams, batch_size: int) -> None:
        self.config, self.streams, self.batch_size = data, streams, batch_size

    @classmethod
    def files(cls, data: ImagesData) -> Iterable[Listed]:
        """COCO's annotations and the images of their persons; drawn figures have none."""
        return listed_persons(data, data.keypoints.category) if data.sources == "coco" else ()

    def data(self, split: str) -> FiguresSource:
        return FiguresSource(self.config, split, load_figures(self.config, split), self.streams, self.batch_size)

    def class_names(self, role: str) -> Sequence[str]:
        """The positions of a heat map, which are the classes of a joint."""
        height, width = self.data("train").grid
        return [f"{row},{column}" for row in range(height) for column in range(width)]

    def describe(self) -> Mapping[str, Any]:
        return {split: self.data(split).describe() for split in ("train", "dev", "test")}

    @property
    def frames(self) -> int:
        """Of a clip."""
        return load_figures(self.config, "train").frames

    # ---------------------------------------------------------------- models

    def _card(self, model: str, params: Mapping[str, Any]) -> KeypointsCard:
        figures = load_figures(self.config, "train")
        return KeypointsCard(
            format=1, modality="images", task="keypoints", model=model, params=dict(params), shape=figures.shape,
            joints=figures.skeleton.names, edges=figures.skeleton.edges, stride=self.config.keypoints.stride,
        )  # fmt: skip

    def build(self, role: str, model: str, params: Mapping[str, Any]) -> HeatMaps:
        given = MODELS[model].Config.model_validate(params).model_dump(mode="json")
        if getattr(MODELS[model], "video", False) and self.frames < 2:
            raise UserError(
                f"{role}: model {model!r} follows a figure from frame to frame: set data.keypoints.frames to 2 or more"
            )
        try:
            return build(self._card(model, given))
        except UserError as error:
            raise UserError(f"{role}: {error}") from None

    def load(self, role: str, folder: Path) -> HeatMaps:
        card, ours = load_card(folder), self._card("", {})
        for said, theirs, mine in (
            ("sees images of", card.shape, ours.shape), ("knows the joints", card.joints, ours.joints),
            ("has heat maps of stride", card.stride, ours.stride),
        ):  # fmt: skip
            if theirs != mine:
                raise UserError(f"{folder}: this {role} {said} {theirs}, the data {mine}: make them agree")
        return load_model(folder)

    def save(self, role: str, model: nn.Module, folder: Path) -> None:
        save_model(folder, cast(HeatMaps, model), {"role": role})

    def about(self, role: str, model: nn.Module, folder: Path) -> About:
        return about(load_card(folder))

    def export(self, model: nn.Module, folder: Path) -> Mapping[str, Any]:
        return export(cast(HeatMaps, model), folder)

    # ---------------------------------------------------------------- signals

    def signals(self, role: str, model: nn.Module, batch: Batch, features: Sequence[str] = ()) -> Signals:
        """``logits`` and captured heat maps a row a joint, other captured maps a row a position; what is right."""
        with capture(model, features) as taken:
            maps = self.answer(role, model, batch)
        items, joints = maps.shape[:2]
        visible = batch["visible"]
        if "labelled" in batch:
            visible = visible | ~batch["labelled"][:, None]
        item = Layout.dense("region", items, (joints,), maps.device).item
        rows = Layout("region", visible.flatten(), item, items, (joints,))
        out = Signals(batch["ids"]).add("logits", maps.flatten(2), rows)
        out.add("labels", batch["cells"].flatten(), rows).add("heatmaps", batch["heatmaps"].flatten(2), rows)
        for name, calls in taken.items():
            value = only_call(name, calls)
            if name.startswith("heads."):
                out.add(name, value.flatten(2), rows)
            else:
                add_feature(out, name, value)
        return out

    def views_differ(self) -> str | None:
        moves = {"flip": self.config.flip, "shift": self.config.shift} | {
            f"keypoints.{name}": getattr(self.config.keypoints, name) for name in ("rotate", "scale")
        }
        moved = [name for name, value in moves.items() if value]
        return f"data.{moved[0]} moves what a heat map shows: leave it out" if moved else None

    def input(self) -> Input:
        return Input(load_figures(self.config, "train").shape, -1.0, 1.0, key="x")

    def teacher_sees(self, sample: Sample) -> Any:
        return sample.x, sample.visible

    def answer(self, role: str, model: nn.Module, batch: Batch) -> Tensor:
        return heat_maps(model, batch["x"], batch["before"])

    # ---------------------------------------------------------------- evaluation

    @torch.no_grad()
    def evaluate(self, role: str, model: nn.Module, split: str) -> Evaluation:
        """PCK; an image's score is how many of its labelled joints lie too far off."""
        source = self.data(split)
        figures, n = source.figures, len(source)
        right, seen, sizes = (torch.from_numpy(x[:n]) for x in (figures.joints, figures.visible, figures.sizes))
        off, visible = distances(found_in(source, model), right, sizes), seen > 0
        wrong, count = ((off > SHARES[0]) & visible).sum(dim=1).tolist(), visible.sum(dim=1).tolist()
        scores = [Score(key, split, w, of) for key, w, of in zip(figures.keys[:n], wrong, count, strict=True) if of]
        return Evaluation(metrics(off, visible, seen == 1, source.skeleton.names), scores)

    def show(self, models: Mapping[str, nn.Module], folder: Path) -> Sequence[Panel]:
        return show(self.data("test"), models)

    def glimpse(self, role: str, model: nn.Module) -> Sequence[Panel]:
        return glimpse(self.data("dev"), role, model)


__all__ = ["KeypointsAdapter"]
