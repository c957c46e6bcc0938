"""What the few-step methods share: a student that starts as a copy of its teacher, or learns its features first."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, cast

from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from xmodal_kd.adapter.adapter import Adapter, Batch, Strict
from xmodal_kd.objective.objective import Objective
from xmodal_kd.objective.parts import LossOut
from xmodal_kd.recipe.recipe import Train
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.training.method import Context, Distil, Roles, Stage
from xmodal_kd.training.optim import build_optimizer

from ..models.denoiser import Denoiser

FEATURES = "features"
STUDENT = frozenset({"student"})


class FewStepParams(Strict):
    features: int = Field(0, ge=0)
    """Steps of distillation by the recipe's objective at the teacher's own step count, before the first few-step stage.

    A student of another width, depth or prediction type needs them: the teacher's weights are no start for it.
    """


# docs/decisions/011-diffusion.md
class FewStep:
    """Base of the few-step methods: stages of its own after an optional one of feature distillation."""

    Params: ClassVar[type[Strict]] = FewStepParams
    control: ClassVar[Literal["trained", "teacher"]] = "teacher"

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
        if student.prediction == "epsilon":
            raise UserError(
                "a few-step student cannot predict epsilon: at the last timestep x cannot be told from it. "
                "Set student.params.prediction to v_prediction, and method.params.features if the teacher's differs"
            )
        if self.params.features:
            if not self.distil.objective.needs_teacher:
                raise UserError("method.params.features: no term of the objective compares student and teacher")
        elif not same_network(teacher, student):
            raise UserError(
                "the student's network or prediction type is not the teacher's, so it cannot start as a copy: "
                "set method.params.features to the steps of feature distillation that go before"
            )
        self.stages()

    def stages(self) -> Sequence[Stage]:
        first = [Stage(FEATURES, self.params.features, STUDENT)] if self.params.features else []
        return [*first, *self.own_stages()]

    def begin(self, stage: Stage, roles: Roles, batch: Batch) -> Mapping[str, Optimizer]:
        teacher, student = denoisers(roles)
        if stage.name == self.stages()[0].name and same_network(teacher, student, prediction=False):
            student.load_state_dict(teacher.state_dict())
        if stage.name == FEATURES:
            student.sampling = teacher.sampling
            return self.distil.begin(stage, roles, batch)
        self.prepare(stage, roles)
        return {"student": build_optimizer(self.train.optimizer, {"student": student})}

    def losses(self, batch: Batch, roles: Roles, ctx: Context) -> Iterator[tuple[str, LossOut]]:
        if ctx.stage.name == FEATURES:
            yield from self.distil.losses(batch, roles, ctx)
        else:
            yield "student", LossOut.mean(type(self).__name__.lower(), self.values(batch, roles, ctx))

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

    @abstractmethod
    def values(self, batch: Batch, roles: Roles, ctx: Context) -> Tensor:
        """``(b,)`` losses."""


def denoisers(roles: Mapping[str, nn.Module]) -> tuple[Denoiser, Denoiser]:
    """Teacher and student."""
    return cast(Denoiser, roles["teacher"]), cast(Denoiser, roles["student"])


def same_network(a: Denoiser, b: Denoiser, *, prediction: bool = True) -> bool:
    """Whether the weights of one mean the same in the other."""
    shapes = [{name: value.shape for name, value in model.state_dict().items()} for model in (a, b)]
    return shapes[0] == shapes[1] and (not prediction or a.prediction == b.prediction)
