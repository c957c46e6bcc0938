"""What adapters share whose rows lie along the text of an utterance: of transducers and of decoders."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import nn

from xmodal_kd.adapter.adapter import Adapter, Batch, is_teacher
from xmodal_kd.adapter.panels import Panel
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.runtime.registry import Registry

from ..data.corpora import SpeechData
from ..data.decoder_source import DecoderSource
from ..data.text_source import TextSource
from ..models import MODELS
from ..show.written import Written, glimpse, show


class TextAdapter(Adapter):
    """Every training utterance has its text, and a role writes one."""

    Data: ClassVar[type[SpeechData]] = SpeechData
    models: ClassVar[Registry[Any]] = MODELS
    gives: ClassVar[frozenset[str]] = frozenset({"logits", "labels", "features"})
    metric: ClassVar[tuple[str, bool]] = ("wer", True)
    quick_export: ClassVar[bool] = False
    #: Its value of ``data.task``, what a model of it is called, what is not without texts, and the models that fit.
    task: ClassVar[str]
    noun: ClassVar[str]
    along: ClassVar[str]
    fitting: ClassVar[str]

    def __init__(self, data: SpeechData, streams: Streams, batch_size: int) -> None:
        self.config, self.streams, self.batch_size = data, streams, batch_size
        self.metric = (data.metric, True)  # type: ignore[misc]

    def begin(self, role: str, labelled: Sequence[int]) -> None:
        if len(labelled) < len(self.data("train")):
            raise UserError(
                f"labels: {self.along} the text of every utterance, so none is without: leave labels out, and write "
                "the teacher's texts over those that shall not be seen (xmodal-kd pseudolabel)"
            )

    def kind(self, role: str, model: str) -> Any:
        """The class of a model of this task. Raises `UserError` for one of another."""
        if getattr(MODELS[model], "task", "ctc") != self.task:
            key = role.replace("-", "s.") if is_teacher(role) else "student"
            raise UserError(
                f"{role}: model {model!r} is no {self.noun}: set {key}.model to {self.fitting}, or change data.task"
            )
        return MODELS[model]

    def check_live(self, role: str, folder: Path) -> None:
        """Raises `UserError` where the recipe has logits by frame in the place of a teacher."""
        if (spec := self.teachers.get(role)) is not None and spec.signals is not None:
            raise UserError(
                f"teacher.signals: {folder}: logits by frame are of CTC: give the {self.noun}'s folder as path"
            )

    def view(self, role: str, model: nn.Module) -> Literal["clean", "features"]:
        """A frozen teacher hears the clean features, unless ``data.teacher_view`` says otherwise."""
        teaches = role != "student" and not model.training
        return "clean" if teaches and self.config.teacher_view == "clean" else "features"

    @abstractmethod
    def data(self, split: str) -> TextSource | DecoderSource: ...

    @abstractmethod
    def written(self, role: str, model: nn.Module, batch: Batch) -> list[str]:
        """What a role writes of each utterance, greedily."""

    @abstractmethod
    def shown(self, split: str) -> Written:
        """What a run's page shows texts of."""

    def answer(self, role: str, model: nn.Module, batch: Batch) -> list[str]:
        return self.written(role, model, batch)

    def show(self, models: Mapping[str, nn.Module], folder: Path) -> Sequence[Panel]:
        return show(self.shown("test"), models)

    def glimpse(self, role: str, model: nn.Module) -> Sequence[Panel]:
        return glimpse(self.shown("dev"), role, model)

    def describe(self) -> Mapping[str, Any]:
        return {split: self.data(split).describe() for split in ("train", "dev", "test")}


__all__ = ["TextAdapter"]
