"""What the few-step methods share: a student that starts as a copy of its teacher, or learns its features first."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from xmodal_kd.adapter.adapter import Adapter, Batch, Strict
from xmodal_kd.objective.objective import Objective
from xmodal_kd.objective.parts import LossOut, Part
from xmodal_kd.recipe.recipe import Train
from xmodal_kd.runtime.errors import RunError, UserError
from xmodal_kd.runtime.progress import console
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.training.method import Context, Distil, Roles, Stage
from xmodal_kd.training.optim import build_optimizer

from ..data.condition import Prompts
from ..models.asked import is_told, told_guidance
from ..models.blocks import start
from ..models.denoiser import LCM, Denoiser, Sampling, consistency_grid
from ..models.lora import plain_names
from ..models.process import LITTLE_SIGNAL, Process, expand

FEATURES = "features"
STUDENT = frozenset({"student"})
#: alpha at which an epsilon teacher's velocity counts as much as the sample's own.
TRUST = 0.1
#: The weights by which a network is told the scale of guidance: diffusers', and the bench's.
TOLD = ("time_embedding.cond_proj.weight", "net.scale.weight")
#: Stages of features that are so many times as long as train.steps are worth a word: one of the two was forgotten.
LONG = 10
#: Of a grid that the recipe does not choose.
MOST_TIMES = 64


class FewStepParams(Strict):
    features: int | None = Field(None, ge=0)
    """Steps of distillation by the recipe's objective at the teacher's own step count, before the first few-step stage.

    A student of another width, depth or prediction type needs them: the teacher's weights are no start for it. Unless
    said, ``train.steps`` where only the prediction type differs, as of an epsilon teacher's student, else none. Where
    no term of the objective compares student and teacher, a student of the teacher's shape learns its velocity.
    """


# docs/decisions/011-diffusion.md
class FewStep:
    """Base of the few-step methods: stages of its own after an optional one of feature distillation."""

    Params: ClassVar[type[Strict]] = FewStepParams
    control: ClassVar[Literal["trained", "teacher"]] = "teacher"
    #: Whether a student may predict epsilon where the schedule leaves enough signal at its last timestep.
    keeps_epsilon: ClassVar[bool] = False

    def __init__(
        self, adapter: Adapter, objective: Objective, train: Train, streams: Streams, role: str = "student",
        params: Strict | None = None,
    ) -> None:  # fmt: skip
        self.adapter, self.train = adapter, train
        self.params: Any = params or self.Params()
        self.distil = Distil(adapter, objective, train, streams, role)

    def check(self, roles: Mapping[str, nn.Module]) -> None:
        """Raises `UserError` for a teacher and a student that this method cannot bring together."""
        if "teacher" not in roles:
            raise UserError("a few-step student needs a teacher: give the recipe one")
        teacher, student = denoisers(roles)
        if student.prediction == "epsilon" and not (self.keeps_epsilon and tells_x(student.process)):
            raise UserError(
                "a few-step student cannot predict epsilon: at the last timestep x cannot be told from it. "
                "Set student.params.prediction to v_prediction, and method.params.features if the teacher's differs"
            )
        if self.features:
            own = same_network(teacher, student, prediction=False) and teacher.prediction != student.prediction
            if not self.distil.objective.needs_teacher and not own:
                raise UserError("method.params.features: no term of the objective compares student and teacher")
        elif not same_network(teacher, student):
            raise UserError(
                "the student's network or prediction type is not the teacher's, so it cannot start as a copy: "
                "set method.params.features to the steps of feature distillation that go before"
            )
        self.stages()

    def stages(self) -> Sequence[Stage]:
        first = [Stage(FEATURES, self.features, STUDENT)] if self.features else []
        return [*first, *self.own_stages()]

    @property
    def features(self) -> int:
        """Steps of the feature stage: as the recipe says, else as many as a student of another prediction needs."""
        if self.params.features is not None:
            return int(self.params.features)
        return self.train.steps if getattr(self.adapter, "changes_prediction", False) else 0

    def prompts(self) -> Prompts | None:
        """The captions of the training samples, where models are prompted."""
        found: Prompts | None = getattr(self.adapter, "prompts", None)
        return found

    def begin(self, stage: Stage, roles: Roles, batch: Batch) -> Mapping[str, Optimizer]:
        teacher, student = denoisers(roles)
        if stage.name == self.stages()[0].name:
            if same_network(teacher, student, prediction=False):
                copy_weights(teacher, student)
            else:
                start(teacher.net, student.net)
        if stage.name == FEATURES:
            student.sampling = teacher.sampling
            if self.params.features is None:
                tell(
                    f"the teacher predicts {teacher.prediction}, the student {student.prediction}: "
                    f"{self.features} steps of matching come first (method.params.features)"
                )
            elif self.features > LONG * self.train.steps:
                tell(
                    f"method.params.features: {self.features:,} steps come before stages of {self.train.steps:,} "
                    "(train.steps), which they do not follow: set both"
                )
            if self.distil.objective.needs_teacher:
                return self.distil.begin(stage, roles, batch)
            return {"student": build_optimizer(self.train.optimizer, {"student": student})}
        self.prepare(stage, roles)
        return {"student": build_optimizer(self.train.optimizer, {"student": student})}

    def losses(self, batch: Batch, roles: Roles, ctx: Context) -> Iterator[tuple[str, LossOut]]:
        if ctx.stage.name == FEATURES and self.distil.objective.needs_teacher:
            yield from self.distil.losses(batch, roles, ctx)
        elif ctx.stage.name == FEATURES:
            yield "student", LossOut.mean("velocity", velocity_error(batch, roles))
        else:
            yield from self.turns(batch, roles, ctx)

    def modules(self) -> Mapping[str, nn.Module]:
        return self.distil.modules()

    def state_dict(self) -> Mapping[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...

    # ---------------------------------------------------------------- what a method says of itself

    @abstractmethod
    def own_stages(self) -> Sequence[Stage]: ...

    @abstractmethod
    def prepare(self, stage: Stage, roles: Roles) -> None:
        """Roles at the start of one of `own_stages`."""

    def turns(self, batch: Batch, roles: Roles, ctx: Context) -> Iterator[tuple[str, LossOut]]:
        """The losses of a step of `own_stages`: the student's alone, unless others learn before it.

        Samples whose loss is not finite are left out and counted.
        """
        name, values = type(self).__name__.lower(), self.values(batch, roles, ctx)
        yield "student", masked(name, values)

    @abstractmethod
    def values(self, batch: Batch, roles: Roles, ctx: Context) -> Tensor:
        """``(b,)`` losses of the student, of methods that have no `turns` of their own."""


class MultistepParams(FewStepParams):
    grid: int | None = Field(None, ge=2)
    """Times N among which the student's sampler chooses its own; must divide T.

    Unless said, the most up to 64 that do: 64 of 1,024 timesteps, 50 of 1,000, as LCM has it.
    """
    steps: int = Field(2, ge=1)
    """Of the sampler by which the student is evaluated and saved."""


class Multistep(FewStep):
    """Students that see the clean sample at once and add noise again for each further step (LCM's sampler)."""

    keeps_epsilon: ClassVar[bool] = True
    Params: ClassVar[type[Strict]] = MultistepParams

    def check(self, roles: Mapping[str, nn.Module]) -> None:
        """Also of the grid: a teacher's training is too long to find afterwards that its timesteps do not suit."""
        super().check(roles)
        process = denoisers(roles)[0].process
        grid, steps, T = self.grid(process), self.params.steps, process.T
        if T % grid:
            near = min((n for n in range(2, T + 1) if T % n == 0), key=lambda n: abs(n - grid))
            raise UserError(f"method.params.grid: {grid} does not divide the teacher's {T} timesteps: take {near}")
        if self.sampling(process).solver == LCM:
            check_saveable(process, steps)
        if steps > grid:
            raise UserError(f"method.params.steps: {steps} is more than method.params.grid ({grid})")

    def grid(self, process: Process) -> int:
        """The recipe's, or the process's own."""
        return int(self.params.grid or 0) or max(n for n in range(1, MOST_TIMES + 1) if process.T % n == 0)

    def sampling(self, process: Process) -> Sampling:
        """How its student is sampled."""
        return Sampling(LCM, self.params.steps, self.grid(process))

    def prepare(self, stage: Stage, roles: Roles) -> None:
        teacher, student = denoisers(roles)
        consistency_grid(teacher.process, self.grid(teacher.process))
        student.sampling = self.sampling(teacher.process)
        student.sampling.times(student.process)


@cache
def tell(text: str) -> None:
    """On the console, once."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def tells_x(process: Process) -> bool:
    """Whether x can be told from epsilon at the last timestep: its error is enlarged by sigma / alpha."""
    return float(process.alpha(process.T - 1)) >= LITTLE_SIGNAL


def masked(name: str, values: Tensor, weight: float = 1.0) -> LossOut:
    """The mean of those ``(b,)`` that are finite, and beside it how many are not.

    Raises:
        RunError: none is.
    """
    sound = values.detach().isfinite()
    if not bool(sound.any()):
        raise RunError(f"{name}: no sample of the batch is finite: lower train.optimizer.lr")
    count, lost = sound.sum().to(values.dtype), (~sound).sum().to(values.dtype)
    parts = {name: Part(values[sound].sum(), count, weight, f"finite {name}")}
    return LossOut(parts | {f"{name}_masked": Part(lost, 1.0, 0.0, f"masked {name}")})


def check_saveable(process: Process, steps: int) -> None:
    """Raises `UserError` where no diffusers scheduler samples a consistency model in so many steps."""
    if process.kind == "edm" and steps > 1:
        raise UserError(
            f"method.params.steps: {steps}: no diffusers scheduler adds noise between the steps of an EDM student: "
            "set it to 1, or take progressive"
        )
    if process.kind == "flow" and process.T % steps:
        raise UserError(f"method.params.steps: {steps} does not divide {process.T}: take a power of 2")


def velocity_error(batch: Batch, roles: Mapping[str, nn.Module]) -> Tensor:
    """``(b,)`` squared errors of the student's velocity, at uniform times.

    What an epsilon teacher says of v is its own error enlarged by 1 / alpha. So its part in the target falls with
    alpha, as alpha^2 / (alpha^2 + 0.1^2); the other part is the true v of the sample, which has the same mean given z.
    """
    (teacher, student), labels = denoisers(roles), batch.get("labels")
    process, x, noise = teacher.process, batch["x"], batch["noise"]
    t = (batch["u"] * process.T).long().clamp(max=process.T - 1)
    z, aim = process.add_noise(x, noise, t), process.truth(process.natural, x, noise, t)
    with torch.no_grad():
        said = teacher.predict(process.natural, z, t, labels)
    squares = process.alpha(t).square()
    share = squares / (squares + TRUST**2) if teacher.prediction == "epsilon" else torch.ones_like(squares)
    aim = torch.lerp(aim, said, expand(share, aim))
    return (student.predict(process.natural, z, t, labels) - aim).flatten(1).square().mean(dim=1)


def denoisers(roles: Mapping[str, nn.Module]) -> tuple[Denoiser, Denoiser]:
    """Teacher and student."""
    return cast(Denoiser, roles["teacher"]), cast(Denoiser, roles["student"])


def same_network(a: Denoiser, b: Denoiser, *, prediction: bool = True) -> bool:
    """Whether the weights of `a` mean the same in `b`, which alone may be told guidance or have adapters."""
    theirs, names = a.state_dict(), plain_names(b.state_dict())
    shapes = [{name: value.shape for name, value in theirs.items()}, {}]
    shapes[1] = {name: b.state_dict()[own].shape for name, own in names.items()}
    if told_guidance(a.net) is None:
        shapes[1] = {name: shape for name, shape in shapes[1].items() if not name.endswith(TOLD)}
    return shapes[0] == shapes[1] and (not prediction or a.prediction == b.prediction)


def copy_weights(teacher: Denoiser, student: Denoiser) -> None:
    """The teacher's into a student of the same network; what it has beside these stays.

    Where both are told the scale of guidance the student is told the teacher's.
    """
    own = student.state_dict()
    if is_told(teacher.net) and is_told(student.net):
        student.guidance = teacher.guidance
    names = plain_names(own)
    student.load_state_dict({**own, **{names[name]: value for name, value in teacher.state_dict().items()}})
