"""What is compared: arms from ``--methods`` and ``--axis``, and the recipe of every cell (arm x seed).

A cell is the user's recipe with ``--set`` on top, so that it can be run by hand. Its key is a digest of all that
decides its result: what is finished is found again by content, whatever the arm was called.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from hashlib import blake2b
from itertools import product
from typing import Any

from ..adapter.adapter import ControlSpec, NoControl, NoiseControl, UntrainedControl, adapter_class
from ..losses import LOSSES
from ..objective.objective import Objective, spec_of
from ..recipe.recipe import Loaded, Term, find, load
from ..run.resolved_recipe import resolved
from ..run.roles import changes, control_teaches, starts_taught
from ..runtime.errors import UserError, nearest
from ..signals.signals import OUTPUTS
from ..training.controls import control_spec
from ..training.method import METHODS

#: The arm that is the recipe as it stands.
RECIPE = "recipe"
#: The reference of every arm, where it is among them.
PLAIN = "kd"
#: What a loss can need that a role's answers do not give: `on` must name a module.
FEATURES = frozenset({"features", "attention", "hidden", "embeddings", "qk", "qkv"})
#: Of a recipe's own term of an arm's loss, what says where it stands; weight and parameters are the loss's defaults.
PLACE = {"on", "projector", "regions", "head", "weights", "min_confidence"}
#: Keys that the comparison itself sets.
TAKEN = {"seed": "--seeds says how often each arm is repeated", "control": "the control is always an arm",
         "self_training": "it is no arm: run its recipe by itself",
         "out": "--out says where all cells go", "trackers": "it changes no result"}  # fmt: skip


@dataclass(frozen=True)
class Arm:
    """One thing that is compared.

    Attributes:
        name: ``kd``, ``hint@body=0.3``, ``train.ema=0.9``, ``kd train.ema=0.9``.
        method: its part from ``--methods``, None where only axes are compared.
        axes: its parts from ``--axis``, as ``--set`` arguments.
        sets: all of its ``--set`` arguments, without those of the user.
        term: index in the objective of the loss that ``--methods`` put there; None for a method or the recipe.
        steps: of its student's training where time is equal; None: the recipe's.
        pace: milliseconds of a step of the arm and of its control, by which `steps` was chosen.
    """

    name: str
    method: str | None
    axes: tuple[str, ...]
    sets: tuple[str, ...]
    term: int | None = None
    steps: int | None = None
    pace: tuple[float, float] | None = None

    def weighted(self, weight: float) -> Arm:
        """The same arm with another weight on its loss; its name stays."""
        return replace(self, sets=(*self.sets, f"objective.{self.term}.weight={weight!r}"))


#: What makes any recipe one of the default method and at most one teacher.
_WITHOUT = ("method=distil", "scheme=null", "teachers={}")


@dataclass(frozen=True)
class Cell:
    """One run: a recipe, the ``--set`` arguments that make it, and what it stands on."""

    name: str
    recipe: str
    sets: tuple[str, ...]
    teacher: Cell | None = None
    """Trained before, and loaded by this one."""
    only_teacher: bool = False

    @cached_property
    def loaded(self) -> Loaded:
        return read(self.recipe, self.sets)

    @cached_property
    def key(self) -> str:
        """Digest of the resolved recipe; a teacher that is trained here counts by its own key."""
        content = resolved(self.loaded)
        content.pop("trackers")
        if self.teacher is not None:
            content["teacher"] = self.teacher.key
        content["only_teacher"] = self.only_teacher
        return blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=6).hexdigest()

    @property
    def steps(self) -> int:
        """A measure of its work."""
        return self.loaded.recipe.train.steps


class Plan:
    """The arms of one recipe and the cells they need.

    Raises `UserError` for an arm that is unknown, impossible or equal to another; nothing is trained for that.
    """

    def __init__(
        self, recipe: str, sets: Sequence[str] = (), *, methods: str | None = None, axes: Sequence[str] = (),
        seeds: int = 3, teacher_per_seed: bool = False,
    ) -> None:  # fmt: skip
        self.recipe, self.sets, self.teacher_per_seed = recipe, tuple(sets), teacher_per_seed
        self.base = read(recipe, sets)
        resolved(self.base)  # imports the modality, which registers losses and methods of its own
        first = self.base.recipe.seed
        self.seeds = list(range(first, first + seeds))
        names = _parts(methods or "", "--methods")
        columns = [_axis(axis) for axis in axes]
        if not names and not columns:
            raise UserError("compare: nothing to compare: give --methods kd,dist or --axis train.ema=0.9,0.99")
        methods_: Sequence[str | None] = names or [None]
        self.arms = [self._arm(name, chosen) for name in methods_ for chosen in product(*columns)]
        self._all_differ()

    # ---------------------------------------------------------------- arms

    def _arm(self, method: str | None, axes: tuple[str, ...]) -> Arm:
        sets, term = self._method(method) if method is not None else ((), None)
        name = " ".join(part for part in (method, *axes) if part)
        return Arm(name, method, axes, (*sets, *axes), term)

    def _method(self, text: str) -> tuple[tuple[str, ...], int | None]:
        """``--set`` arguments of one entry of ``--methods``: a loss, a method, or the recipe as it is."""
        rest, equals, weight = text.partition("=")
        name, at, on = rest.partition("@")
        if name == RECIPE and not equals and not at:
            return (), None
        if _is_loss(name):
            return self._loss(text, name, on, weight)
        if at or equals:
            raise UserError(f"--methods {text!r}: {name!r} is no loss{nearest(name, _losses())}")
        if name == "control":
            raise UserError("--methods: the control is always an arm: leave it out")
        if name not in METHODS:
            raise UserError(f"--methods: unknown arm {name!r}{nearest(name, [*_losses(), *METHODS, RECIPE])}")
        if self.base.recipe.method.name == name:
            return (), None
        method = {"name": name} | ({"params": shared} if (shared := self._shared(name)) else {})
        return (f"method={json.dumps(method)}",), None

    def _shared(self, name: str) -> dict[str, Any]:
        """What the recipe's method was told and another of its kind reads as well, by the class both parameters have.

        A student that first learns its teacher's features, as one of another width must, does so under both.
        """
        told, others = self.base.recipe.method, METHODS[name].Params.__mro__
        kind = next(base for base in METHODS[told.name].Params.__mro__ if base in others)
        return {key: value for key, value in told.params.items() if key in getattr(kind, "model_fields", {})}

    def _loss(self, text: str, name: str, on: str, weight: str) -> tuple[tuple[str, ...], int]:
        """The recipe's terms that need no teacher, and this loss in the place of all others."""
        recipe = self.base.recipe
        if recipe.teacher is None:
            raise UserError(f"--methods {text!r}: the recipe has no teacher to learn from")
        if not spec_of(Term(loss=name)).needs_teacher:
            raise UserError(f"--methods {text!r}: {name} needs no teacher, so it belongs to the control as well")
        own = next((t for t in recipe.objective if t.loss == name), None)
        content = own.model_dump(mode="json", include=PLACE, exclude_defaults=True) if own is not None else {}
        content |= {"loss": name, "on": self._on(text, name, on)} | (
            {"weight": _weight(text, weight)} if weight else {}
        )
        alone = [t.model_dump(mode="json", exclude_defaults=True) for t in _alone(recipe.objective)]
        objective = (f"objective={json.dumps([*alone, content])}",)
        return (*objective, *(() if recipe.method.name == "distil" else ("method=distil",))), len(alone)

    def _on(self, text: str, name: str, on: str) -> Any:
        """What a loss compares: what the arm says, what the recipe's own term of that loss does, or any features."""
        if on:
            sides = [side.split("+") if "+" in side else side for side in on.split("/", 1)]
            return {"student": sides[0], "teacher": sides[1]} if len(sides) == 2 else sides[0]
        terms, needs = self.base.recipe.objective, spec_of(Term(loss=name)).needs
        own = [t for t in terms if t.loss == name]
        if not own and not needs & FEATURES and not ("maps" in needs and "logits" not in needs):
            return adapter_class(self.base.recipe.modality).output
        features = own or [t for t in terms if not set(t.signals("student")) & OUTPUTS and t not in _alone(terms)]
        if not features:
            raise UserError(f"--methods {text!r}: say which module's output it compares, as in {name}@encoder.3")
        return features[0].model_dump(mode="json")["on"]

    def _all_differ(self) -> None:
        """Equal content under two names would be compared with itself."""
        seen: dict[str, str] = {}
        for arm in self.arms:
            try:
                key = self.cell(arm, self.seeds[0]).key
            except UserError as error:
                raise UserError(f"{arm.name}: {error}") from None
            if key in seen:
                raise UserError(f"compare: the arms {seen[key]!r} and {arm.name!r} are the same run")
            seen[key] = arm.name

    def reference(self, arm: Arm, chosen: str | None = None) -> Arm | None:
        """What `arm` is measured against beside its control: the chosen arm, or plain ``kd`` on the same axes."""
        if chosen is not None:
            found = next((other for other in self.arms if other.name == chosen), None)
            if found is None:
                raise UserError(f"--reference {chosen!r} is no arm{nearest(chosen, [a.name for a in self.arms])}")
        else:
            found = next((other for other in self.arms if (other.method, other.axes) == (PLAIN, arm.axes)), None)
        return None if found is None or found.name == arm.name else found

    # ---------------------------------------------------------------- cells

    def control_of(self, arm: Arm) -> ControlSpec | UntrainedControl | NoControl:
        return control_spec(read(self.recipe, [*self.sets, *arm.sets, "control=true"]).recipe)

    def cell(self, arm: Arm, seed: int, more: Sequence[str] = ()) -> Cell:
        """The run of an arm: its student only, but for a control that takes no training."""
        inside = self.inside(arm)
        off = self._no_twin(arm)
        budget = () if arm.steps is None else (f"train.steps={arm.steps}",)
        sets = (*self.sets, *arm.sets, *budget, *more, *off, f"seed={seed}", f"control={str(inside).lower()}")
        return Cell(f"{arm.name}, seed {seed}", self.recipe, sets, self.teacher(arm, seed))

    def inside(self, arm: Arm) -> bool:
        """Whether the control is a role of the arm's own run: it is not trained, starts from a teacher's weights,
        teaches, or is trained as the arm's scheme says."""
        spec, loaded = self.control_of(arm), read(self.recipe, [*self.sets, *arm.sets])
        own = starts_taught(loaded.recipe) or control_teaches(loaded.recipe) or changes(loaded, "control")
        return isinstance(spec, UntrainedControl | NoiseControl) or (own and isinstance(spec, ControlSpec))

    def _no_twin(self, arm: Arm) -> tuple[str, ...]:
        """Self-training stands on a control of the same run, and no cell has one."""
        asked = read(self.recipe, [*self.sets, *arm.sets]).recipe.self_training
        return ("self_training=false",) if asked else ()

    def control(self, arm: Arm, seed: int) -> Cell | None:
        """The arm's control as a run of its own: the student without a teacher. None where it is not trained."""
        if self.inside(arm) or not isinstance(self.control_of(arm), ControlSpec):
            return None
        recipe = read(self.recipe, [*self.sets, *arm.sets]).recipe
        clean = recipe.cache is not None and recipe.cache.view == "clean"  # a replay is of its data as well
        sets = (*self.sets, *arm.sets, *self._no_twin(arm), *(["cache=null"] if clean else []), *_WITHOUT,
                f"objective={_written(_alone(recipe.objective))}", "teacher=null",
                f"seed={seed}", "control=false")  # fmt: skip
        return Cell(f"control, seed {seed}", self.recipe, sets)

    def teacher(self, arm: Arm, seed: int) -> Cell | None:
        """The run that trains the arm's teacher, alike for all arms that change nothing of it; None if it is saved."""
        loaded = read(self.recipe, [*self.sets, *arm.sets])
        teacher = loaded.recipe.teacher
        if teacher is None or teacher.path is not None:
            return None
        assert teacher.train is not None
        # not the arm's, which changes nothing of its teacher; but one that sees what the recipe's student does
        student = json.dumps(read(self.recipe, self.sets).recipe.student.model_dump(mode="json", exclude_defaults=True))
        train = json.dumps(teacher.train.model_dump(mode="json", exclude_defaults=True))
        seed = seed if self.teacher_per_seed else self.seeds[0]
        # of the student alone: they change nothing of its teacher
        own = tuple(f"{key}=null" for key in ("labels", "cache") if getattr(loaded.recipe, key) is not None)
        terms = _alone(loaded.recipe.objective)
        without: tuple[str, ...] = _WITHOUT
        if changes(loaded, "teacher"):  # then it stays, and wants a term of a teacher's, the same in all arms
            terms += _taught(read(self.recipe, self.sets).recipe.objective) or _taught(loaded.recipe.objective)
            without = ("teachers={}",)
        sets = (*self.sets, *arm.sets, *self._no_twin(arm), *own, *without, "compress=[]",
                f"objective={_written(terms)}",
                f"student={student}", f"train={train}", f"seed={seed}", "control=false")  # fmt: skip
        return Cell(f"teacher, seed {seed}", self.recipe, sets, only_teacher=True)


def shared_cache(cell: Cell) -> str | None:
    """A name for the teacher's cache that `cell` may share with others; None where it reads none, or has a path."""
    recipe = cell.loaded.recipe
    if recipe.cache is None or recipe.cache.path is not None or recipe.teacher is None or cell.only_teacher:
        return None
    content = resolved(cell.loaded)
    deciding = {key: content[key] for key in ("data", "student", "labels", "cache")}
    deciding |= {"teacher": cell.teacher.key if cell.teacher else content["teacher"]["path"]}
    deciding |= {"precision": recipe.train.precision}
    if recipe.cache.top_k is not None and recipe.cache.temperature is None:
        deciding["objective"] = content["objective"]  # whose temperature decides
    return blake2b(json.dumps(deciding, sort_keys=True).encode(), digest_size=6).hexdigest()


def read(recipe: str, sets: Sequence[str]) -> Loaded:
    """`load`, which parses a file of the same date with the same ``--set`` arguments only once."""
    return _read(recipe, tuple(sets), find(recipe).stat().st_mtime_ns)


@lru_cache(maxsize=4096)
def _read(recipe: str, sets: tuple[str, ...], date: int) -> Loaded:
    return load(recipe, sets)


def _is_loss(name: str) -> bool:
    if name in LOSSES or ":" in name:
        return True
    try:  # an entry point of another package
        return bool(LOSSES[name])
    except UserError:
        return False


def _losses() -> list[str]:
    return [name for name in LOSSES if LOSSES[name].needs_teacher]


def _alone(terms: Sequence[Term]) -> list[Term]:
    """The terms that stand without a teacher."""
    return [t for t in terms if t.weight > 0 and not Objective([t]).needs_teacher]


def _taught(terms: Sequence[Term]) -> list[Term]:
    """The terms that learn from a teacher."""
    return [t for t in terms if spec_of(t).needs_teacher]


def _written(terms: Sequence[Term]) -> str:
    return json.dumps([t.model_dump(mode="json", exclude_defaults=True) for t in terms])


def _weight(text: str, weight: str) -> float:
    try:
        value = float(weight)
    except ValueError:
        raise UserError(f"--methods {text!r}: {weight!r} is no weight: write it as in kd=0.3") from None
    if not 0 < value < float("inf"):
        raise UserError(f"--methods {text!r}: a weight is above 0")
    return value


def _axis(text: str) -> list[str]:
    """``key=v1,v2`` as one ``--set`` argument a value."""
    key, equals, values = text.partition("=")
    if not equals or not key or not values:
        raise UserError(f"--axis {text!r}: write key=value,value, for example train.ema=0.9,0.99")
    if (root := key.split(".")[0]) in TAKEN:
        raise UserError(f"--axis {text!r}: {root} cannot be compared: {TAKEN[root]}")
    return [f"{key}={value}" for value in _parts(values, f"--axis {key}")]


def _parts(text: str, option: str) -> list[str]:
    """Split at commas outside brackets; every part once."""
    found = [part.strip() for part in _split(text)] if text else []
    if "" in found:
        raise UserError(f"{option}: there is nothing between two commas of {text!r}")
    if twice := next((part for part in found if found.count(part) > 1), None):
        raise UserError(f"{option}: {twice!r} is given twice")
    return found


def _split(text: str) -> Iterator[str]:
    depth, start = 0, 0
    for i, letter in enumerate(text):
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and depth == 0:
            yield text[start:i]
            start = i + 1
    yield text[start:]
