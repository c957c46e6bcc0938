"""The contract of a modality: the only place that knows what a batch holds."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Protocol, cast

from torch import Tensor, nn

from ..runtime.checkpoint import read_object
from ..runtime.discovery import modality
from ..runtime.errors import UserError
from ..runtime.random_streams import Streams
from ..runtime.registry import Registry, import_object
from ..signals.signals import Signals
from .listed import Few, Listed
from .panels import Panel
from .roles import is_teacher
from .saved_model import CARD, About, folder_of
from .source import Batch, Source, Strict

#: Where a batch holds what a teacher's cache has of it, by the name of the signal.
CACHED = "cached_teacher"


@dataclass(frozen=True)
class Score:
    """One test item's share of the main metric, for intervals and paired comparisons.

    The metric over items is sum(errors) / sum(units): words for a WER, pixels for an accuracy.

    >>> Score("utterance-7", group="anna", errors=1, units=4).errors
    1
    """

    item: str
    group: str
    errors: float
    units: float


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one role on one split, the main one first scored by item.

    The main metric of a teacher that answers nothing, of which only layers are compared, is None.

    >>> Evaluation({"wer": 0.25}, [Score("utterance-7", "anna", 1, 4)]).metrics["wer"]
    0.25
    """

    metrics: dict[str, Any]
    scores: Sequence[Score] = ()
    #: Anything worth showing in the report: transcripts, paths of pictures.
    examples: Sequence[Mapping[str, Any]] = field(default_factory=tuple)


@dataclass(frozen=True)
class Overview:
    """What takes several roles or several budgets to see.

    Attributes:
        curve: a role measured at one budget each: ``{"role", the budget's name, "metrics"}``, for example at
            ``"nfe": 4`` or ``"beams": 16``.
        facts: what one must know to read the metrics: of the judge, not of a role.
        pictures: files by caption.
    """

    curve: Sequence[Mapping[str, Any]] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    pictures: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class NoControl:
    """Why no control can exist."""

    reason: str


@dataclass(frozen=True)
class ControlSpec:
    """The control: same student, initial weights, data and steps, trained with the terms that need no teacher."""

    terms: tuple[str, ...]


@dataclass(frozen=True)
class NoiseControl(ControlSpec):
    """The control of methods without data: same student, weights, teacher, terms and steps, taught on plain noise."""


# docs/decisions/004-stages-and-controls.md
@dataclass(frozen=True)
class UntrainedControl:
    """The control is the teacher itself within the student's budget: what its user has without distillation."""


@dataclass(frozen=True)
class Input:
    """What a model is given of a sample, as a map whose values may be set.

    Attributes:
        shape: ``(channels, height, width)``.
        low, high: range of its values.
        key: where a batch holds it, for whoever moves what was recorded; None where roles are given different things.

    >>> Input((3, 32, 32), -1.0, 1.0, key="x").shape
    (3, 32, 32)
    """

    shape: tuple[int, int, int]
    low: float
    high: float
    key: str | None = None


class Adapter(Protocol):
    """What the core asks of a modality. Built from its own part of a recipe, checked against `Data`.

    A class that names this one as its base inherits the answers of a modality that has no budgets.
    """

    #: pydantic models of the recipe's ``data`` section and of whatever else this modality declares.
    Data: ClassVar[type[Strict]]
    #: Models by name, each a class with a ``Config`` (pydantic) built as ``cls(config, **shapes)``.
    models: ClassVar[Registry[Any]]
    #: What its data section can read, by name, with a line each.
    datasets: ClassVar[Mapping[str, str]]
    #: Main metric and whether less is better: ``("wer", True)``.
    metric: ClassVar[tuple[str, bool]]
    #: The signal that says what a role answers, one of `signals.OUTPUTS`.
    output: ClassVar[str] = "logits"
    #: What its signals can give a loss, for ``list losses --for``: ``logits``, ``labels`` (a class each row of them),
    #: ``item_labels`` (classes of an item), ``features``, ``prediction``, ``regression`` (real labels).
    gives: ClassVar[frozenset[str]] = frozenset({"logits", "labels", "item_labels", "features"})
    #: The class that stands for no label (CTC), where there is one.
    blank: ClassVar[int | None] = None
    #: Whether `export` takes a second at most: else a run rehearses it only where its trainings take long.
    quick_export: ClassVar[bool] = True
    #: Whether what it saves and exports may have layers of two factors (`compress.low_rank`).
    saves_low_rank: ClassVar[bool] = False
    #: Roles that answer another task than the data's, in classes of their own: a scheme's, on the adapter that it made.
    elsewhere: frozenset[str] = frozenset()
    #: What it was built with.
    streams: Streams
    batch_size: int
    #: What the recipe says of its teachers, by role; set by whoever builds the adapter.
    teachers: Mapping[str, Any] = MappingProxyType({})
    #: The recipe's method by name; set as `teachers` is.
    method: str = "distil"

    def __init__(self, data: Any, streams: Streams, batch_size: int) -> None: ...

    @classmethod
    def of(cls, data: Any) -> type[Adapter]:
        """The adapter of runs with this checked data section: another one where a modality has several tasks."""
        return cls

    @classmethod
    def metric_of(cls, data: Mapping[str, Any]) -> tuple[str, bool]:
        """The main metric of runs with this ``data`` section."""
        return cls.metric

    def data(self, split: str) -> Source:
        """``train``, ``dev`` or ``test``."""
        ...

    @classmethod
    def files(cls, data: Any) -> Iterable[Listed]:
        """The files that the samples of a checked data section stand on, listed without opening them.

        Raises `UserError` where they cannot be listed.
        """
        return ()

    def rehearsing(self, items: int) -> Adapter:
        """This adapter for a dress rehearsal: dev and test are cut to their first `items` samples.

        It shares what was read and made of the data, and nothing that hangs on a model: what it is told and builds
        must not reach this one.
        """
        made = copy.copy(self)
        few = {split: Few(self.data(split), items) for split in ("dev", "test")}
        made.data = lambda split: cast(Source, few[split] if split in few else self.data(split))  # type: ignore[method-assign]
        return made

    def shared(self) -> Any:
        """What of the other roles' models decides how one is trained, as JSON: a grid that all of them are brought to.

        Asked when all roles have been built once.
        """
        return None

    def begin(self, role: str, labelled: Sequence[int]) -> None:
        """Told before a role is trained: which, and the train samples whose labels may be looked at (class weights)."""

    def build(self, role: str, model: str, params: Mapping[str, Any]) -> nn.Module:
        """A fresh model of a role; initial weights come from the global torch generator, seeded by the caller."""
        ...

    def load(self, role: str, folder: Path) -> nn.Module:
        """A saved model, checked against this data: sample rate, features, class order, blank."""
        ...

    def signals(self, role: str, model: nn.Module, batch: Batch, features: Sequence[str] = ()) -> Signals:
        """What `role` says about `batch`: `output`, ``labels``, and one signal for each captured module path."""
        ...

    def input(self) -> Input | None:
        """What a model is given, where its values may be set: robust schemes move it, methods without data make it."""
        return None

    def given(self, x: Tensor) -> Batch:
        """A batch of nothing but inputs ``(b, *shape)``, as `input` has it, the same for all roles, without labels."""
        raise UserError("samples of this modality cannot be made of their input alone: choose another method")

    def teacher_sees(self, sample: Any) -> Any:
        """What of a sample decides a frozen teacher's signals, the rows that they lie on included.

        A cache finds them by its content. All of the sample, unless the modality knows that a part is enough.
        """
        return sample

    def views_differ(self) -> str | None:
        """Why row i of a training sample is not the same thing in two augmentations; None where it is."""
        return None

    def answer(self, role: str, model: nn.Module, batch: Batch) -> Any:
        """What whoever uses `model` computes for `batch`, all of it: the report gives its latency for one sample."""
        return self.signals(role, model, batch)

    def class_names(self, role: str) -> Sequence[str]:
        """What each output of `role` means, in order; `check` compares teacher and data."""
        ...

    def other_tokens(self, role: str, signal: str) -> str | None:
        """How the vocabulary of a teacher differs whose rows of `signal` are tokens of its own; None where none are.

        Row i is then the i-th of its text, which only losses with the property ``other_tokens`` may compare.
        """
        return None

    def evaluate(self, role: str, model: nn.Module, split: str) -> Evaluation: ...

    def untrained_control(self, teacher: nn.Module, student: nn.Module) -> nn.Module:
        """The teacher as its user would run it within the student's budget, for methods whose control that is."""
        raise UserError("this modality has no budget that a teacher could be held to: choose another method")

    def overview(self, models: Mapping[str, nn.Module], folder: Path) -> Overview:
        """Measured once, when all roles of the run in `folder` are there; pictures go into it."""
        return Overview()

    def show(self, models: Mapping[str, nn.Module], folder: Path) -> Sequence[Panel]:
        """What to look at or listen to on the page of the run in `folder`: a few samples, and nothing is measured."""
        return ()

    def glimpse(self, role: str, model: nn.Module) -> Sequence[Panel]:
        """What `role` makes of a few dev samples, the same at every evaluation while it learns, for who watches it.

        It must take a small part of the time that an evaluation takes, and draw nothing that training draws from.
        """
        return ()

    def save(self, role: str, model: nn.Module, folder: Path) -> None:
        """Write a folder that `load` reads: safetensors and JSON."""
        ...

    def about(self, role: str, model: nn.Module, folder: Path) -> About:
        """What the card of the saved model in `folder` says beside what the run knows: what it is, how it is used."""
        return About(role.capitalize())

    def export(self, model: nn.Module, folder: Path) -> Mapping[str, Any]:
        """Make the saved student in `folder` deployable; returns what was measured on it, for the report."""
        ...

    def lint(self, folder: Path) -> Iterable[tuple[Literal["warn", "fail"], str, str]]:
        """Traps in the folder of a saved teacher, for `check`: status, what it is, what to do."""
        return ()

    def traps(self, batch: Batch) -> Iterable[tuple[Literal["pass", "warn", "fail"], str, str]]:
        """What only this modality looks for in a training batch, for `check`: status, what it is, what to do."""
        return ()

    def declared(self, folder: Path) -> Mapping[str, Any]:
        """Metrics on test that the card of a saved model declares, for ``check --gate``."""
        card = folder_of(folder) / CARD
        return read_object(card).get("metrics", {}) if card.is_file() else {}

    def describe(self) -> Mapping[str, Any]:
        """Facts about the data for the report: hours, speakers, what was left out and why."""
        ...


def adapter_class(name: str) -> type[Adapter]:
    """The adapter of a modality folder, or of an allowed import path ``package.module:Class``."""
    if ":" in name:
        return import_object(name, "modality")  # type: ignore[return-value]
    path: str = modality(name).ADAPTER
    module, _, attribute = path.partition(":")
    try:
        found = importlib.import_module(f"xmodal_kd.modalities.{name}.{module}")
    except ModuleNotFoundError as error:
        if error.name and error.name.startswith("xmodal_kd"):
            raise
        raise UserError(f"modality {name!r} needs {error.name!r}: pip install 'xmodal-kd[{name}]'") from error
    return getattr(found, attribute)  # type: ignore[no-any-return]


__all__ = [
    "CACHED",
    "Adapter",
    "Batch",
    "ControlSpec",
    "Evaluation",
    "Input",
    "NoControl",
    "NoiseControl",
    "Overview",
    "Score",
    "Source",
    "Strict",
    "UntrainedControl",
    "adapter_class",
    "is_teacher",
]
