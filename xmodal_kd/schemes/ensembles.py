"""Online ensembles: students that learn from a mixture of what all of them say, as branches of one network or apart."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from ..adapter.adapter import Batch, Strict
from ..objective.objective import Objective
from ..objective.parts import LossOut, Part
from ..runtime.errors import UserError
from ..signals.signals import OUTPUTS, Signal, Signals, TeacherSignals
from ..training.method import Context, Ema, Roles, Stage
from .base import SCHEMES
from .online import Group, OwnViews
from .rows import dense_rows, mixed, pooled, replaced, terms_of, weighed
from .sharing import share, together


class Branches(Strict):
    """What the online ensembles have in common."""

    on: str
    """Path of the module whose output, averaged over each sample's rows, decides who is listened to."""
    shared: tuple[str, ...] = ()
    """Paths of the modules that all students share (branch form); none: each is a network of its own (network form)."""
    ramp: float = Field(80 / 300, ge=0, le=1)
    """Share of the steps over which the weight of the terms with a teacher rises as exp(-5 (1 - progress)^2)."""


class Ensemble(Group):
    """Base: all students are stepped together, by one optimizer, towards targets made of all of their answers.

    In the branch form the shared modules run once for each student, and their BatchNorm sees a batch as often.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        wrong = [t for t in terms_of(self.objective, with_teacher=True) if not OUTPUTS.issuperset(t.signals("teacher"))]
        if wrong:
            raise UserError(
                f"term {wrong[0].name or wrong[0].loss!r}: an ensemble of answers has no features to learn from: "
                "compare answers, or use the scheme dml"
            )
        #: What weighs the answers; made when the width of its input is known.
        self.mixer: nn.Module | None = None

    def check(self, roles: Mapping[str, nn.Module]) -> None:
        super().check(roles)
        student = roles[self.role]
        self.find(student, [self.params.on])
        share(student, [copy.deepcopy(student)], self.params.shared)

    @abstractmethod
    def mixer_of(self, feature: Signal, answers: Signal) -> nn.Module:
        """Of what a branch says at `on`, and of what it answers."""

    @abstractmethod
    def targets(self, outputs: Mapping[str, Signals]) -> Mapping[str, Signals]:
        """What teaches each learner. The objective cuts it from the graph."""

    @abstractmethod
    def mixing(self, outputs: Mapping[str, Signals], targets: Mapping[str, Signals], ctx: Context) -> LossOut:
        """What trains `mixer`."""

    def begin(self, stage: Stage, roles: Roles, batch: Batch) -> Mapping[str, Optimizer]:
        share(roles[self.role], [roles[peer] for peer in self.peers], self.params.shared)
        if self.mixer is None:
            with torch.no_grad(), self.streams.forked("dry run"):
                said = self.forward_role(self.role, roles, batch)
                feature, answers = said[self.params.on], said[self.adapter.output]
            with self.streams.forked("scheme", "mixer"):
                self.mixer = self.mixer_of(feature, answers).to(dense_rows(feature))
        super().begin(stage, roles, batch)  # builds the objectives
        owners: list[dict[str, nn.Module]] = [
            {"student": roles[role], "objective": self.objectives[role]} for role in self.learners
        ]
        return {self.role: together(self.train.optimizer, [*owners, {"scheme": self.mixer}])}

    def forward_role(self, role: str, roles: Roles, batch: Batch, of: str | None = None) -> Signals:
        batch, features = self.seen_by(role, batch), sorted({*self.objective.features("student"), self.params.on})
        return self.forward_features(role, roles, batch, features)

    def teacher_signals(self, role: str, roles: Roles, batch: Batch, outputs: Signals | None) -> TeacherSignals:
        """For the dry run alone: in `losses` every student speaks once."""
        return self.targets({one: self.forward_role(one, roles, batch) for one in self.learners})[role]

    def losses(self, batch: Batch, roles: Roles, ctx: Context) -> Iterator[tuple[str, LossOut]]:
        with ctx.timer.time("student"):
            outputs = {role: self.forward_role(role, roles, batch) for role in self.learners}
        with ctx.timer.time("teacher"):
            targets = self.targets(outputs)
        with ctx.timer.time("loss"):
            out = self.mixing(outputs, targets, ctx)
            for role in self.learners:
                one = self.taught(role, outputs[role], targets[role], ctx)
                out += one if role == self.role else one.named(role)
        yield self.role, out

    def taught(self, role: str, outputs: Signals, target: Signals, ctx: Context) -> LossOut:
        """What a learner minimises, the terms with a teacher weighed by the ramp."""
        objective = self.objectives[role]
        out = objective(outputs, target, step=ctx.step, ranks=ctx.ranks)
        return weighed(out, objective, with_teacher=self.ramp(ctx))

    def ramp(self, ctx: Context) -> float:
        """exp(-5 (1 - min(t / ramp, 1))^2) with t the share of the steps that are done."""
        end = self.params.ramp * ctx.stage.steps
        progress = 1.0 if end <= 0 else min(1.0, ctx.step / end)
        return math.exp(-5 * (1 - progress) ** 2)

    def modules(self) -> Mapping[str, nn.Module]:
        return {**super().modules(), **({} if self.mixer is None else {"scheme": self.mixer})}


# ---------------------------------------------------------------- ONE


class Gate(nn.Module):
    """Weights of the branches of each item, a softmax of its features: ``(b, c)`` to ``(b, m)``."""

    def __init__(self, width: int, branches: int) -> None:
        super().__init__()
        self.scores = nn.Linear(width, branches)

    def forward(self, features: Tensor) -> Tensor:
        return self.scores(features).softmax(dim=-1)  # type: ignore[no-any-return]


class OneParams(Branches):
    peers: int = Field(2, ge=1)
    """Branches beside the one that is kept."""


@SCHEMES.register("one")
class NativeEnsemble(Ensemble):
    """Branches learn from the labels and from their gated ensemble, which learns from the labels too.

    Lan et al., "Knowledge Distillation by On-the-Fly Native Ensemble", NeurIPS 2018: z_e = sum_i g_i z_i with the gate
    g = softmax(W f) of the shared trunk's features f, and the loss sum_i CE(z_i) + CE(z_e) + T^2 sum_i KL(z_e || z_i).
    The terms of the objective stand for CE and KL (kd at temperature 3); those without a teacher that read the answer
    alone are the ensemble's. Three branches; ramp of 80 of 300 epochs. The student is the branch that is kept.
    """

    Params: ClassVar[type[Strict]] = OneParams
    paper, year = "Knowledge Distillation by On-the-Fly Native Ensemble", 2018
    name: ClassVar[str] = "one"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        alone = [t for t in terms_of(self.objective, with_teacher=False) if OUTPUTS.issuperset(t.signals("student"))]
        if not alone:
            raise UserError(
                f"scheme {self.name}: no term without a teacher reads the answers, so nothing can train their ensemble"
            )
        #: Of the ensemble's own answer.
        self.ensemble = Objective(alone, steps=self.train.steps)

    def mixer_of(self, feature: Signal, answers: Signal) -> nn.Module:
        return Gate(feature.rows.shape[1], len(self.learners))

    def targets(self, outputs: Mapping[str, Signals]) -> Mapping[str, Signals]:
        assert self.mixer is not None
        output, mine = self.adapter.output, outputs[self.role]
        gate = self.mixer(pooled(mine[self.params.on]))
        rows = mixed([dense_rows(outputs[role][output]) for role in self.learners], gate, mine.layout(output).item)
        return dict.fromkeys(self.learners, replaced(mine, {output: rows}))

    def begin(self, stage: Stage, roles: Roles, batch: Batch) -> Mapping[str, Optimizer]:
        found = super().begin(stage, roles, batch)
        if not self.ensemble.built:
            with torch.no_grad(), self.streams.forked("dry run"):
                self.ensemble.build(self.forward_role(self.role, roles, batch), None, self.streams)
        if any(True for _ in self.ensemble.parameters()):
            raise UserError(f"scheme {self.name}: a term without a teacher learns parameters of its own: leave it out")
        return found

    def mixing(self, outputs: Mapping[str, Signals], targets: Mapping[str, Signals], ctx: Context) -> LossOut:
        out: LossOut = self.ensemble(targets[self.role], step=ctx.step, ranks=ctx.ranks)
        return out.named("ensemble")


# ---------------------------------------------------------------- PCL


class CollaborativeParams(OneParams, OwnViews):
    decay: float = Field(0.999, ge=0, lt=1)
    """Of the averages; 0.99 for short trainings."""


@SCHEMES.register("pcl")
class PeerCollaborative(NativeEnsemble):
    """Branches learn from a classifier on the features of them all, and from the averages of their peers' weights.

    Wu & Gong, "Peer Collaborative Learning for Online Knowledge Distillation", AAAI 2021: sum_i CE(z_i) + CE(z_e) + w
    sum_i T^2 (KL(z_e || z_i) + mean over j != i of KL(m_j || z_i)), z_e a linear layer on the features of all branches
    side by side, m_j what the moving average of branch j says, w the ramp. T 3, three branches, 80 of 300 epochs. With
    `own_views`, as published, a branch and its average see an augmentation of their own; the average's decay does not
    grow from 0. The student is the branch that is kept.
    """

    Params: ClassVar[type[Strict]] = CollaborativeParams
    paper, year = "Peer Collaborative Learning for Online Knowledge Distillation", 2021
    name: ClassVar[str] = "pcl"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        #: What the averages say of the batch of a step, by whom they are of.
        self.averages: dict[str, Signals] = {}

    def seen_by(self, role: str, batch: Batch) -> Batch:
        return super().seen_by(role.removeprefix("mean-"), batch)

    def stages(self) -> Sequence[Stage]:
        ema = {mean_of(role): Ema(role, self.params.decay) for role in self.learners}
        return [replace(stage, ema=ema) for stage in super().stages()]

    def mixer_of(self, feature: Signal, answers: Signal) -> nn.Module:
        return nn.Linear(feature.rows.shape[1] * len(self.learners), answers.rows.shape[1])

    def targets(self, outputs: Mapping[str, Signals]) -> Mapping[str, Signals]:
        assert self.mixer is not None
        output, mine = self.adapter.output, outputs[self.role]
        side_by_side = torch.cat([_beside(outputs[role], self.params.on, output) for role in self.learners], dim=1)
        return dict.fromkeys(self.learners, replaced(mine, {output: self.mixer(side_by_side)}))

    def losses(self, batch: Batch, roles: Roles, ctx: Context) -> Iterator[tuple[str, LossOut]]:
        with ctx.timer.time("teacher"), torch.no_grad():
            self.averages = {role: self.forward_role(mean_of(role), roles, batch) for role in self.learners}
        yield from super().losses(batch, roles, ctx)

    def taught(self, role: str, outputs: Signals, target: Signals, ctx: Context) -> LossOut:
        objective = self.objectives[role]
        others = {mean_of(one): said for one, said in self.averages.items() if one != role}
        out = objective(outputs, others, step=ctx.step, ranks=ctx.ranks)
        out = weighed(out, objective, with_teacher=self.ramp(ctx), alone=0.0)
        by_average = LossOut({name: part for name, part in out.parts.items() if "/mean-" in name})
        return super().taught(role, outputs, target, ctx) + by_average


def mean_of(role: str) -> str:
    """The role that is a moving average of another."""
    return f"mean-{role}"


def _beside(said: Signals, on: str, output: str) -> Tensor:
    """Features of each row of the answers: the row's own, or the mean over its item where they lie on other rows."""
    layout = said.layout(output)
    if said.layout(on).same_rows(layout):
        return dense_rows(said[on])
    return pooled(said[on])[layout.item]


# ---------------------------------------------------------------- OKDDip


class Attention(nn.Module):
    """Whom of its peers each listens to: features ``(b, m, d)`` to weights ``(b, m, m)`` that sum to 1 over the last.

    alpha_ab = softmax_b (W_q h_a . W_k h_b), both of them to an eighth of the width and without bias.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        narrow = max(1, width // 8)
        self.query, self.key = (nn.Linear(width, narrow, bias=False) for _ in range(2))

    def forward(self, features: Tensor) -> Tensor:
        scores = self.query(features) @ self.key(features).transpose(1, 2)
        return scores.softmax(dim=-1)  # type: ignore[no-any-return]


class DiverseParams(Branches):
    peers: int = Field(3, ge=1)
    """Auxiliary students; the leader, which is kept, comes on top."""
    temperature: float = Field(3.0, gt=0)
    """Of the loss by which the attention learns: that of the objective's kd."""


@SCHEMES.register("okddip")
class DiversePeers(Ensemble):
    """Peers learn each from a mixture of its own, the leader, which is kept, from the mean of them all.

    Chen et al., "Online Knowledge Distillation with Diverse Peers", AAAI 2020: t_a = sum_b alpha_ab z_b over the peers,
    with the asymmetric attention of `Attention` on features h, and the loss sum_a CE(z_a) + CE(z_L) + w T^2 (sum_a
    KL(t_a || z_a) + KL(mean_a z_a || z_L)) with w the ramp. T 3, three peers and a leader, 80 of 300 epochs.

    In the released code gradients flow through all of a target, which is how W_q and W_k learn. Here the scores in a
    target are held; alpha learns by sum_a T^2 KL(t_a || z_a) with z held, a part of the log called ``attention``.
    """

    Params: ClassVar[type[Strict]] = DiverseParams
    paper, year = "Online Knowledge Distillation with Diverse Peers", 2020

    def mixer_of(self, feature: Signal, answers: Signal) -> nn.Module:
        return Attention(feature.rows.shape[1])

    def targets(self, outputs: Mapping[str, Signals]) -> Mapping[str, Signals]:
        assert self.mixer is not None
        output = self.adapter.output
        answers = [dense_rows(outputs[peer][output]).detach() for peer in self.peers]
        weights = self.mixer(torch.stack([pooled(outputs[peer][self.params.on]) for peer in self.peers], dim=1))
        found = {
            peer: replaced(outputs[peer], {output: mixed(answers, weights[:, a], outputs[peer].layout(output).item)})
            for a, peer in enumerate(self.peers)
        }
        return {**found, self.role: replaced(outputs[self.role], {output: torch.stack(answers).mean(dim=0)})}

    def mixing(self, outputs: Mapping[str, Signals], targets: Mapping[str, Signals], ctx: Context) -> LossOut:
        """sum_a T^2 KL(t_a || z_a) with z held: of the weights in t_a alone."""
        output, t = self.adapter.output, self.params.temperature
        parts = {}
        for peer in self.peers:
            valid = targets[peer].layout(output).mask
            aim = (targets[peer].rows(output)[valid] / t).log_softmax(dim=-1)
            now = (dense_rows(outputs[peer][output]).detach()[valid] / t).log_softmax(dim=-1)
            values = t**2 * F.kl_div(now, aim, reduction="none", log_target=True).sum(dim=-1)
            count = values.new_tensor(float(len(values)))
            parts[f"{peer}/attention"] = Part(values.sum(), count, self.ramp(ctx), f"{output} of {peer}")
        return LossOut(parts)
