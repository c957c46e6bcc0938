"""Images that others were made of: smaller ones, noisy ones; every loss of the core on pixels and maps; PSNR, SSIM."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

from einops import rearrange
from torch import Tensor, nn

from xmodal_kd.adapter.adapter import Adapter, Batch, Evaluation, Input, Overview, Score
from xmodal_kd.adapter.images.listed import listed_images
from xmodal_kd.adapter.listed import Listed
from xmodal_kd.adapter.panels import Panel
from xmodal_kd.adapter.saved_model import About
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.runtime.registry import Registry
from xmodal_kd.signals.capture import capture, only_call
from xmodal_kd.signals.signals import Layout, Signals

from ..data.restoration.degraded import as_bytes, as_seen, enlarged
from ..data.restoration.pictures import load_pictures
from ..data.restoration.source import RestorationSource, Sample
from ..data.source import ImagesData
from ..evaluate.restored import compared, metrics
from ..export.card import save_model
from ..export.restoration_folder import RestorationCard, about, build, export, load_card, load_model
from ..models import MODELS, Restorer
from ..models.restoration import restored
from ..models.rows import add_feature
from ..show.restored import glimpse, show


class RestorationAdapter(Adapter):
    """All roles see the same degraded image. A row is a pixel of what is made of it, its columns the colours.

    So losses by rows compare colours, and losses of maps see the whole image: ``prediction`` is its signal, ``labels``
    the image that is right, on the same rows. What is captured on the way has a row a position of its own map, which is
    the input's for all networks here: there losses of features have their place, as in the literature.
    """

    Data: ClassVar[type[ImagesData]] = ImagesData
    models: ClassVar[Registry[Any]] = MODELS
    metric: ClassVar[tuple[str, bool]] = ("psnr", False)
    output: ClassVar[str] = "prediction"
    gives: ClassVar[frozenset[str]] = frozenset({"prediction", "regression", "features"})
    quick_export: ClassVar[bool] = False

    def __init__(self, data: ImagesData, streams: Streams, batch_size: int) -> None:
        self.config, self.streams, self.batch_size = data, streams, batch_size

    @classmethod
    def files(cls, data: ImagesData) -> Iterable[Listed]:
        return listed_images(data, any_size=True)

    def data(self, split: str) -> RestorationSource:
        pictures = load_pictures(self.config, split)
        return RestorationSource(self.config, split, pictures, self.streams, self.batch_size)

    def class_names(self, role: str) -> Sequence[str]:
        """Of the columns of a row."""
        return ("grey",) if load_pictures(self.config, "train").channels == 1 else ("red", "green", "blue")

    def describe(self) -> Mapping[str, Any]:
        return {split: self.data(split).describe() for split in ("train", "dev", "test")}

    # ---------------------------------------------------------------- models

    def _card(self, model: str, params: Mapping[str, Any]) -> RestorationCard:
        asked = self.config.restoration
        return RestorationCard(
            format=1, modality="images", task="restoration", model=model, params=dict(params),
            shape=self.input().shape, scale=asked.scale, noise=asked.noise,
        )  # fmt: skip

    def build(self, role: str, model: str, params: Mapping[str, Any]) -> Restorer:
        given = MODELS[model].Config.model_validate(params).model_dump(mode="json")
        try:
            return build(self._card(model, given))
        except UserError as error:
            raise UserError(f"{role}: {error}") from None

    def load(self, role: str, folder: Path) -> Restorer:
        card, ours = load_card(folder), self._card("", {})
        for said, theirs, mine in (
            ("sees images of channels", card.shape[0], ours.shape[0]), ("enlarges by", card.scale, ours.scale),
        ):  # fmt: skip
            if theirs != mine:
                raise UserError(f"{folder}: this {role} {said} {theirs}, the data say {mine}: make them agree")
        return load_model(folder)

    def save(self, role: str, model: nn.Module, folder: Path) -> None:
        save_model(folder, cast(Restorer, model), {"role": role})

    def about(self, role: str, model: nn.Module, folder: Path) -> About:
        return about(load_card(folder))

    def export(self, model: nn.Module, folder: Path) -> Mapping[str, Any]:
        return export(cast(Restorer, model), folder)

    # ---------------------------------------------------------------- signals

    def signals(self, role: str, model: nn.Module, batch: Batch, features: Sequence[str] = ()) -> Signals:
        """``prediction`` and ``labels`` a row a pixel of the image that is made; captured maps a row a position."""
        with capture(model, features) as taken:
            made: Tensor = model(batch["x"])
        rows = Layout.dense("pixel", len(made), tuple(made.shape[2:]), made.device)
        out = Signals(batch["ids"])
        for name, maps in (("prediction", made), ("labels", batch["target"])):
            out.add(name, rearrange(maps, "b c h w -> (b h w) c"), rows)
        for name, calls in taken.items():
            add_feature(out, name, only_call(name, calls))
        return out

    def views_differ(self) -> str | None:
        return "data.restoration.crop: each view of an image is another part of it"

    def input(self) -> Input:
        side = self.config.restoration.side(self.config.sources) // self.config.restoration.scale
        return Input((load_pictures(self.config, "train").channels, side, side), -1.0, 1.0, key="x")

    def teacher_sees(self, sample: Sample) -> Tensor:
        return sample.x

    def answer(self, role: str, model: nn.Module, batch: Batch) -> Tensor:
        return model(batch["x"])  # type: ignore[no-any-return]

    # ---------------------------------------------------------------- evaluation

    def evaluate(self, role: str, model: nn.Module, split: str) -> Evaluation:
        """PSNR and SSIM of whole images; an image's score is its PSNR below zero, so that less is better."""
        source, scale, found = self.data(split), self.config.restoration.scale, []
        for index in range(len(source)):
            small, target = source.whole(index)
            found.append(compared(as_bytes(restored(cast(Restorer, model), as_seen(small))), target, scale))
        scores = [Score(key, split, -psnr, 1.0) for key, (psnr, _) in zip(source.pictures.keys, found, strict=True)]
        return Evaluation(metrics(found), scores)

    def overview(self, models: Mapping[str, nn.Module], folder: Path) -> Overview:
        """Bicubic sampling on the test images: what one has without a network."""
        source, scale = self.data("test"), self.config.restoration.scale
        whole = (source.whole(index) for index in range(len(source)))
        found = metrics([compared(enlarged(small, scale), target, scale) for small, target in whole])
        return Overview([{"role": "bicubic", "metrics": found}])

    def show(self, models: Mapping[str, nn.Module], folder: Path) -> Sequence[Panel]:
        return show(self.data("test"), models)

    def glimpse(self, role: str, model: nn.Module) -> Sequence[Panel]:
        return glimpse(self.data("dev"), role, model)


__all__ = ["RestorationAdapter"]
