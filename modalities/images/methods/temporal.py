"""Dynamic kernel distillation: a critic of how heat maps change between frames beside what the objective compares."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from xmodal_kd.adapter.adapter import Batch, Strict
from xmodal_kd.losses.base import frozen
from xmodal_kd.objective.parts import LossOut, Part
from xmodal_kd.runtime.distributed import Ranks
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.training.method import METHODS, Context, Distil, Roles, Stage
from xmodal_kd.training.optim import build_optimizer, scaling

from ..models.classifier import Convolution


class TemporalParams(Strict):
    weight: float = Field(1e-3, ge=0)
    """Of the critic's word, beside the objective."""
    gamma: float = Field(0.5, ge=0, le=1)
    """What error of the student's changes the critic holds to, in errors of the true ones."""
    rate: float = Field(1e-3, ge=0)
    """By which kappa follows that."""
    hidden: int = Field(16, ge=1, le=1024)
    """Channels of the critic."""


class Critic(nn.Module):
    """An auto-encoder of changes of heat maps, which is told the two images, and the balance of its game."""

    kappa: Tensor
    sums: Tensor

    def __init__(self, joints: int, channels: int, hidden: int) -> None:
        super().__init__()
        self.inward = nn.Sequential(
            Convolution(joints + 2 * channels, hidden), nn.ReLU(), Convolution(hidden, hidden, 2), nn.ReLU()
        )
        self.outward = nn.Sequential(Convolution(hidden, hidden), nn.ReLU(), nn.Conv2d(hidden, joints, 1))
        self.register_buffer("kappa", torch.zeros((), dtype=torch.float64))
        #: Of the step at work: errors of true changes and of the student's, and how many of either.
        self.register_buffer("sums", torch.zeros(3, dtype=torch.float64))

    def forward(self, changes: Float[Tensor, "m j h w"], images: Float[Tensor, "m d h w"]) -> Float[Tensor, " m"]:
        """The mean squared error of each change as it is made again."""
        small = self.inward(torch.cat([changes, images], dim=1))
        again = self.outward(F.interpolate(small, size=changes.shape[2:], mode="nearest"))
        return (again - changes).square().mean(dim=(1, 2, 3))  # type: ignore[no-any-return]

    @torch.no_grad()
    def note(self, real: Tensor, fake: Tensor, ranks: Ranks) -> None:
        """Errors of a micro-batch, of all ranks."""
        self.sums += ranks.sum(torch.stack([real.sum(), fake.sum(), real.new_tensor(len(real))]).to(self.sums))

    @torch.no_grad()
    def balance(self, gamma: float, rate: float) -> None:
        """``kappa + rate (gamma R - F)``, between 0 and 1, by the mean errors of the step before."""
        if self.sums[2] > 0:
            real, fake = self.sums[:2] / self.sums[2]
            self.kappa.copy_((self.kappa + rate * (gamma * real - fake)).clamp(0, 1))
            self.sums.zero_()


@METHODS.register("dkd_pose")
class TemporalPlay(Distil):
    """Clips of figures: heat maps learn from the objective, and their changes from a critic that makes them again.

    Nie et al., "Dynamic Kernel Distillation for Efficient Pose Estimation in Videos", ICCV 2019, with a student
    `DynamicKernels`: ``sum_t MSE(h_t) + 1e-3 F``, F the error with which an auto-encoder, which is told both images,
    makes ``h_{t+1} - h_t`` again; it learns ``R - kappa F``, R its error on the true changes, and kappa follows ``gamma
    R - F`` (Berthelot et al., BEGAN, 2017, which the paper cites). The paper's equations were not at hand: the game,
    its constants and the critic's layers are a design of ours. Here errors are means over frames, where the paper sums
    over a clip's. A term with a teacher stands beside them. Joints that are not labelled in both frames change by 0.
    """

    Params: ClassVar[type[Strict]] = TemporalParams
    cacheable: ClassVar[bool] = False
    shards: ClassVar[bool] = False

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        #: Made when the sizes of heat maps and images are known.
        self.critic: Critic | None = None

    def check(self, roles: Mapping[str, nn.Module]) -> None:
        super().check(roles)
        if getattr(self.adapter, "frames", 1) < 2:
            raise UserError(
                "method dkd_pose compares heat maps of frames: set data.task to keypoints, and data.keypoints.frames "
                "to 2 or more"
            )

    def begin(self, stage: Stage, roles: Roles, batch: Batch) -> Mapping[str, Optimizer]:
        found = super().begin(stage, roles, batch)
        if self.critic is None:
            joints, channels = batch["heatmaps"].shape[1], batch["x"].shape[1]
            with self.streams.forked("dkd_pose"):
                self.critic = Critic(joints, channels, self.params.hidden)
            self.critic.to(batch["x"].device)
        alone = scaling(self.train.optimizer, lambda _: False)
        return {**found, "critic": build_optimizer(alone, {"critic": self.critic})}

    def modules(self) -> Mapping[str, nn.Module]:
        return {**super().modules(), **({} if self.critic is None else {"critic": self.critic})}

    def losses(self, batch: Batch, roles: Roles, ctx: Context) -> Iterator[tuple[str, LossOut]]:
        assert self.critic is not None
        if ctx.micro < ctx.ranks.world:  # the first micro-batch of a step
            self.critic.balance(self.params.gamma, self.params.rate)
        with ctx.timer.time("teacher"):
            teacher = self._teaching(self.role, roles, batch)
        with ctx.timer.time("student"):
            outputs = self.forward_role(self.role, roles, batch)
        with ctx.timer.time("loss"):
            out: LossOut = self.objectives[self.role](outputs, teacher, step=ctx.step, ranks=ctx.ranks)
            maps = outputs.rows("logits").reshape(batch["heatmaps"].shape).float()
            later, images = pairs(batch["before"]), shrunk(batch["x"], batch["before"], maps.shape[2:])
            known = seen_twice(batch, later)
            fake, real = (changes(some, batch["before"], later) * known for some in (maps, batch["heatmaps"]))
            said: Tensor = frozen(self.critic, fake, images)
            count = float(len(later))
            out += LossOut({"changes": Part(said.sum(), count, self.params.weight, "changes")})
        yield self.role, out
        with ctx.timer.time("loss"):
            true, made = self.critic(real, images), self.critic(fake.detach(), images)
            kappa = float(self.critic.kappa)
            self.critic.note(true, made, ctx.ranks)
        yield "critic", LossOut({
            "critic/true": Part(true.sum(), count, 1.0, "changes"),
            "critic/made": Part(made.sum(), count, -kappa, "changes"),
        })  # fmt: skip
        self.settle(roles, ctx)


def pairs(before: Int[Tensor, " b"]) -> Int[Tensor, " m"]:
    """The frames whose frame before is there too."""
    return (before >= 0).nonzero().flatten()


def changes(maps: Float[Tensor, "b j h w"], before: Tensor, later: Tensor) -> Float[Tensor, "m j h w"]:
    """From the frame before to each of `later`."""
    return maps[later] - maps[before[later]]


def seen_twice(batch: Batch, later: Tensor) -> Float[Tensor, "m j 1 1"]:
    """1 for joints that are labelled in both frames, and whose labels may be looked at."""
    known: Tensor = batch["visible"]
    if "labelled" in batch:
        known = known & batch["labelled"][:, None]
    return (known[later] & known[batch["before"][later]]).float()[:, :, None, None]


def shrunk(x: Float[Tensor, "b c h w"], before: Tensor, size: tuple[int, ...]) -> Float[Tensor, "m d i k"]:
    """Each image and the one before it, as small as heat maps."""
    small, later = F.interpolate(x.float(), size=size, mode="area"), pairs(before)
    return torch.cat([small[later], small[before[later]]], dim=1)


__all__ = ["Critic", "TemporalParams", "TemporalPlay", "changes", "pairs", "seen_twice", "shrunk"]
