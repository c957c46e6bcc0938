"""One YAML file that is complete in itself, read strictly.

Reading has two phases: the core's keys here, then the modality's own (``data``, the parameters of models and losses)
against the pydantic models that these declare. Either way a misspelt key is answered with its line and the nearest
known name. A recipe is data: it executes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import AfterValidator, BaseModel, Field, ValidationError, field_validator, model_validator

from ..adapter.adapter import Strict
from ..runtime.bounded_files import read_text
from ..runtime.discovery import shipped
from ..runtime.errors import UserError, nearest
from .alerts_spec import Alerts
from .balance_spec import Balance
from .cache_spec import CacheSpec
from .fingerprint import fingerprint
from .schedules import Schedule
from .yaml_reader import Path_, marks, read_yaml
from .yaml_reader import override as put

M = TypeVar("M", bound=BaseModel)


Share = Annotated[float, Field(ge=0, lt=1)]


class Optimizer(Strict):
    name: Literal["adamw", "adam", "radam", "sgd"] = "adamw"
    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    """Matrices and kernels only; biases and norms are never decayed."""
    betas: tuple[Share, Share] = (0.9, 0.999)
    """Of Adam; SGD takes the first as its momentum."""
    lr_scale: dict[str, float] = Field(default_factory=dict)
    """Glob over parameter names (``student.head.*``) to a factor on its learning rate; the first match counts."""


class EarlyStop(Strict):
    patience: int = Field(gt=0)
    """Evaluations on dev without improvement before training stops."""
    min_delta: float = 0.0


class Train(Strict):
    """How a role is trained.

    >>> Train(steps=100, optimizer={"name": "sgd", "lr": 0.1}).optimizer.name
    'sgd'
    """

    steps: int = Field(gt=0, le=10**12)
    batch_size: int = Field(32, gt=0, le=10**7)
    """Samples an optimizer step sees, over all ranks and micro-batches."""
    accumulate: int = Field(1, gt=0, le=10**6)
    """Micro-batches a step is computed in; the result is the same, the memory smaller."""
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule(kind="cosine", warmup=0.05)
    clip: float | None = Field(1.0, gt=0)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    ema: float | None = Field(None, gt=0, lt=1)
    """Decay of an average of the weights, which is then what is evaluated and kept."""
    eval_every: int | None = Field(None, gt=0)
    """Steps between evaluations on dev, by which the best checkpoint is chosen; None: a tenth of the steps."""
    checkpoint_every: int | None = Field(None, gt=0)
    """Steps between checkpoints; None: with every evaluation."""
    keep: int = Field(2, gt=0)
    early_stop: EarlyStop | None = None
    workers: int = Field(0, ge=0, le=1024)
    ahead: bool = True
    """Without workers, make the next step's samples in a thread while this step is computed; they are the same."""
    compile: Literal["none", "default"] = "none"
    """Whether teacher and students are compiled by torch while they are trained; for terms on their answers alone."""
    sharding: Literal["none", "fsdp"] = "none"
    """Of several processes, whether each holds a part of what learns: weights, gradients, the optimizer's state."""
    frozen: Literal["whole", "sharded", "cpu"] = "whole"
    """Where weights of what does not learn are meanwhile: on each device, cut over all, or on the CPU until used."""
    recompute: bool = False
    """Compute the blocks of what learns again in the backward pass, in place of keeping what is within them."""


class ModelSpec(Strict):
    """A model by registered name; its remaining keys are checked by the model itself."""

    model: str
    params: dict[str, Any] = Field(default_factory=dict)


class MethodSpec(Strict):
    """A method by registered name; its parameters are checked by the method itself. A name alone will do."""

    name: str
    params: dict[str, Any] = Field(default_factory=dict)


class SchemeSpec(MethodSpec):
    """Who teaches whom, by registered name; its parameters are checked by the scheme itself. A name alone will do."""


class CompressSpec(MethodSpec):
    """One way to make the student smaller, by registered name, with its parameters. A name alone will do."""


def _labels(wanted: int | str) -> int | str:
    if re.fullmatch(r"\d+(\.\d+)?%" if isinstance(wanted, str) else r"[1-9]\d*", str(wanted)):
        return wanted
    raise ValueError(f"a number of samples is expected, or a share of all as in 10%, got {wanted!r}")


#: Of all samples that have labels: how many, or ``"10%"``. The smaller choice is always part of the larger.
Labels = Annotated[int | str, AfterValidator(_labels)]


class Teacher(Strict):
    """A model and how to train it, or a saved teacher's folder, which wins where a recipe (or ``--set``) gives both."""

    path: Path | None = None
    model: str | None = None
    params: dict[str, Any] = Field(default_factory=dict)
    train: Train | None = None
    labels: Labels | None = None
    """Whose labels a teacher that is trained here looks at; None: all."""
    signals: Path | None = None
    """A folder of what a teacher that ran elsewhere said of each sample, in place of the teacher itself."""
    on_missing: Literal["error", "skip"] = "error"
    """What a sample means of which `signals` holds nothing: an error, or no row of the terms with a teacher."""

    @model_validator(mode="before")
    @classmethod
    def _ran_elsewhere(cls, content: Any) -> Any:
        """A folder of signals is loaded as a saved teacher is: its adapter looks at what the folder holds."""
        if isinstance(content, Mapping) and content.get("signals") is not None:
            if content.get("path") not in (None, content["signals"]):
                raise ValueError("give path (a saved teacher) or signals (what it said), not both")
            return {**content, "path": content["signals"]}
        return content

    @model_validator(mode="after")
    def _one_way(self) -> Teacher:
        if self.path is None and self.model is None:
            raise ValueError("give path (a saved teacher), or model and train, or signals (what one said)")
        if self.path is None and self.train is None:
            raise ValueError("a teacher that is not loaded from a path needs train")
        return self


Paths = Annotated[tuple[str, ...], Field(min_length=1)]


class On(Strict):
    """The compared signals where their names differ between the roles."""

    student: str | Paths
    teacher: str | Paths


class Term(Strict):
    """One weighted loss of the objective.

    >>> Term(loss="hint", on="body", weight=0.5).signals("teacher")
    ('body',)
    """

    loss: str
    on: str | Paths | On = "logits"
    """``logits``, or the path of a module whose output is compared (globs allowed; ``<path>:input`` for its input).

    A list, or a glob of several modules, where the loss compares several at once."""
    weight: float = Field(1.0, ge=0)
    schedule: Schedule = Schedule()
    projector: Literal["auto", "linear", "none"] = "auto"
    """Linear map of the student's rows to the teacher's width: where widths differ, always, or never."""
    resample: Literal["auto", "average", "linear", "nearest", "knn", "none"] = "auto"
    """How the teacher's rows are brought to the student's; auto: features whose rows differ, as fits them."""
    labels: str = "labels"
    """Signal of the student that holds the labels, of losses that read them."""
    regions: str = "labels"
    """Signal of the student that numbers the region of each row: classes, instances, superpoints."""
    weights: str | None = None
    """Signal of a weight a row: the term is ``sum w l / sum w``, and a row of weight 0 is no row of it.

    The teacher's where the loss compares with a teacher that gives it, else the student's."""
    min_confidence: float | None = Field(None, gt=0, le=1)
    """Rows of which the teacher's most probable class is less probable than this are no rows of the term."""
    head: str | Paths | On | None = None
    """Path of the module from features to scores, for losses that run features through that of teacher or student.

    A list where several modules do it, one after another: ``[norm, head]``."""
    name: str | None = None
    """For the log; the loss's name unless two terms share it."""
    params: dict[str, Any] = Field(default_factory=dict)

    def signals(self, role: str) -> tuple[str, ...]:
        """What is compared of `role` ("student" or "teacher"), as written: names, paths, globs."""
        on = getattr(self.on, role) if isinstance(self.on, On) else self.on
        return (on,) if isinstance(on, str) else on


class Recipe(Strict):
    """A run: who teaches whom, on what, and how it is measured.

    >>> recipe = Recipe(modality="speech", data={}, student={"model": "conv"}, train={"steps": 100})
    >>> recipe.method.name, recipe.train.batch_size, recipe.control
    ('distil', 32, True)
    """

    modality: str
    seed: int = Field(1, ge=0)
    threads: int = Field(1, gt=0, le=4096)
    """CPU threads of torch; more are seldom faster for small models and change the last bits of a result."""
    data: dict[str, Any]
    teacher: Teacher | None = None
    teachers: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], Teacher] = Field(default_factory=dict)
    """Further teachers by name, for schemes with several; the role of one is ``teacher-<name>``."""
    student: ModelSpec
    method: MethodSpec = MethodSpec(name="distil")
    scheme: SchemeSpec | None = None
    """Who teaches whom where it is not the teacher the student: ``list schemes``."""
    compress: tuple[CompressSpec, ...] = ()
    """What makes the student smaller, in order: ``list compress``. Its control is made as small."""
    objective: tuple[Term, ...] = ()
    """What trains a teacher, and the student of the methods that have no loss of their own."""
    balance: Balance = Balance()
    """Whether the weights of the terms are learned; a name alone will do."""
    train: Train
    cache: CacheSpec | None = None
    """The teacher's signals on disk, read instead of running it at every step."""
    labels: Labels | None = None
    """Whose labels student and control look at; None: all. A student with a teacher also sees the other samples."""
    control: bool = True
    self_training: bool | None = None
    """Whether the control teaches the student's twin, as a second control; None: where labels are scarce."""
    out: Path | None = None
    trackers: tuple[str, ...] = ("tensorboard",)
    """Any tracker that Accelerate knows, by its name."""
    on: Alerts = Alerts()
    """Who is told that it is done, failed, met NaN or gets no better: webhooks and commands, by event."""

    @field_validator("method", "scheme", "balance", mode="before")
    @classmethod
    def _named(cls, spec: Any) -> Any:
        return {"name": spec} if isinstance(spec, str) else spec

    @field_validator("compress", mode="before")
    @classmethod
    def _several(cls, specs: Any) -> Any:
        several = specs if isinstance(specs, list | tuple) else [] if specs is None else [specs]
        return [cls._named(spec) for spec in several]

    @model_validator(mode="after")
    def _one_way(self) -> Recipe:
        if self.scheme is not None and self.method.name != "distil":
            raise ValueError(f"the method {self.method.name!r} has no scheme: leave one of the two out")
        if self.teachers and (self.teacher is None or self.scheme is None):
            raise ValueError("teachers: they stand beside a teacher, and a scheme says how they share the teaching")
        return self

    def taught_by(self) -> dict[str, Teacher]:
        """The teachers that the recipe names, by role."""
        first = {} if self.teacher is None else {"teacher": self.teacher}
        return first | {f"teacher-{name}": teacher for name, teacher in self.teachers.items()}

    @field_validator("objective")
    @classmethod
    def _names(cls, terms: tuple[Term, ...]) -> tuple[Term, ...]:
        names = [term.name or term.loss for term in terms]
        if doubled := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"two terms are called {', '.join(sorted(doubled))}: give each its own name")
        if terms and not any(term.weight for term in terms):
            raise ValueError("every term has weight 0: nothing to learn")
        return terms

    def fingerprint(self) -> str:
        """Of all that decides the result; where it is written, by whom it is tracked and read ahead, does not."""
        content = self.model_dump(mode="json", exclude={"out": True, "trackers": True, "on": True, "cache": {"path"}})
        return fingerprint(content)


@dataclass(frozen=True)
class Loaded:
    """A recipe with what error messages and the report need to know of its source."""

    recipe: Recipe
    source: Path
    lines: Mapping[Path_, int]
    overrides: Mapping[str, Any] = field(default_factory=dict)

    def validate(self, model: type[M], content: Any, at: Path_) -> M:
        """Second phase: `content`, found in the recipe at `at`, against the model that declares it."""
        return validate(model, content, at=at, source=self.source, lines=self.lines)


def validate(model: type[M], content: Any, *, at: Path_, source: Path, lines: Mapping[Path_, int]) -> M:
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise UserError(_explain(model, error, at, source, lines)) from None


def _explain(
    model: type[BaseModel], error: ValidationError, at: Path_, source: Path, lines: Mapping[Path_, int]
) -> str:
    """One line for the first thing that is wrong: file, line, key, reason, and the nearest names."""
    errors = error.errors(include_url=False)
    # a misspelt key is also a missing one, and in a union fails the other members: say that it is unknown
    unknown = [e for e in errors if e["type"] == "extra_forbidden"]
    meant = [e for e in errors if not (isinstance(e["input"], Mapping) and e["type"].endswith("_type"))]
    first = (unknown or meant or errors)[0]
    path = at
    for i, part in enumerate(first["loc"]):
        is_key = i + 1 == len(first["loc"]) and first["type"] == "extra_forbidden"
        if is_key or (*path, part) in lines or not _is_tag(part):
            path = (*path, part)
    key = ".".join(map(str, path)) or "the recipe"
    line = next((lines[path[:n]] for n in range(len(path), -1, -1) if path[:n] in lines), 1)
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        known = _fields(model, first["loc"][:-1])
        reason = f"unknown key {key!r}{nearest(str(first['loc'][-1]), known)}"
    elif first["type"] == "missing":
        reason = f"key {key!r} is missing"
    else:
        shown = "" if first["type"] == "value_error" else f", got {first['input']!r:.80}"
        message = _YAML_WORDS.get(first["type"], first["msg"].removeprefix("Value error, "))
        reason = f"{key}: {message}{shown}"
    return f"{source}:{line}: {reason}{more}"


#: What pydantic says in Python's words, in YAML's.
_YAML_WORDS = {
    "tuple_type": "a list is expected, as in [a, b]",
    "model_type": "a section with keys of its own is expected",
    "dict_type": "a section with keys of its own is expected",
}


def _is_tag(part: str | int) -> bool:
    """Whether pydantic put the name of a union's member into an error's path (``On``, ``tuple[...]``)."""
    return isinstance(part, str) and (part in {"str", "On", "int", "float"} or "[" in part or "-" in part)


def _fields(model: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    """Known keys of the sub-model that `path` leads to."""
    for part in path:
        if (info := model.model_fields.get(str(part))) is not None:
            model = next(_models(info.annotation), model)
    return list(model.model_fields)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The pydantic models inside an annotation: ``tuple[Term, ...] | None`` holds ``Term``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)


def find(name: str) -> Path:
    """A recipe's file, given by path or by the name of one that ships with the package (``speech/fsdd``)."""
    path = Path(name)
    if path.is_file():
        return path
    known = shipped()
    if (short := name.removeprefix("recipes/").removesuffix(".yaml")) in known:
        return known[short]
    raise UserError(f"no recipe {name!r}: neither a file nor one of those shipped{nearest(short, known)}")


def load(name: str, overrides: Sequence[str] = ()) -> Loaded:
    """Read a recipe and apply ``a.b=value`` overrides (values are YAML). Raises `UserError` naming file, line, key."""
    source = find(name)
    try:
        content, node = read_yaml(read_text(source))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        raise UserError(f"{source}:{mark.line + 1 if mark else 1}: not YAML: {error.problem}") from None
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"{source}: cannot be read: {' '.join(str(error).split())[:300]}") from None
    if content is None:
        raise UserError(f"{source}: the file is empty")
    if not isinstance(content, dict):
        raise UserError(f"{source}:1: a recipe is a mapping of keys, not {type(content).__name__}")
    for key in ("method", "scheme"):  # so that --set finds their parameters
        if isinstance(content.get(key), str):
            content[key] = {"name": content[key]}
    applied = {}
    for override in overrides:
        key, value = put(content, override)
        applied[key] = value
    lines = dict(marks(node)) if node is not None else {}
    return Loaded(validate(Recipe, content, at=(), source=source, lines=lines), source, lines, applied)
