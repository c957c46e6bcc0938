"""Students that write by a decoder and learn on texts that they have drawn from themselves: GKD, DistiLLM-2."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from accelerate.utils import send_to_device
from pydantic import Field
from torch import nn
from torch.nn.functional import cross_entropy

from xmodal_kd.adapter.adapter import Batch, Strict
from xmodal_kd.losses import LossSpec
from xmodal_kd.objective.loss_inputs import reads_labels
from xmodal_kd.objective.parts import LossOut
from xmodal_kd.recipe.recipe import Term
from xmodal_kd.runtime.errors import UserError, nearest
from xmodal_kd.training.compiled import uncompiled
from xmodal_kd.training.method import METHODS, Context, Distil, Roles
from xmodal_kd.training.modes import evaluating


class OwnTexts(Strict):
    temperature: float = Field(1.0, gt=0)
    """At which the student draws its texts, token by token."""
    longest: int = Field(128, ge=1)
    """Tokens of such a text, the end among them; never more than the decoder has positions for."""
    teacher_texts: bool = False
    """Whether the teacher draws the other texts, too, as the student draws its own, in the place of the data's."""


class OnOwnTexts(Distil):
    """Base: texts of the student's own, which it draws in eval mode and without gradient; its teacher scores them.

    They are a function of the seed, the step and the micro-batch. No label belongs to them.
    """

    cacheable: ClassVar[bool] = False
    shards: ClassVar[bool] = False
    #: What the terms are on follows the student, so that one may rise on a batch that stays.
    moving: ClassVar[bool] = True

    def check(self, roles: Mapping[str, nn.Module]) -> None:
        super().check(roles)
        name = f"method {self.adapter.method}"
        if not hasattr(self.adapter, "own_texts"):
            raise UserError(f"{name} learns on texts that the student writes: it needs data.task seq2seq")
        if self.teacher not in roles:
            raise UserError(f"{name}: a teacher scores the student's own texts, and there is none: give one")
        if self.objective.asked.name != "fixed":
            raise UserError(f"{name}: balance {self.objective.asked.name} knows one text an utterance: leave it out")

    def drawn(
        self, role: str, roles: Roles, batch: Batch, ctx: Context, beside: tuple[str, nn.Module, float] | None = None
    ) -> Batch:  # fmt: skip
        """The batch over texts that `role` draws now.

        Args:
            beside: another role, its model, and the share of its distribution in the one that tokens are drawn from.
        """
        with (
            ctx.timer.time("teacher" if role == self.teacher else "student"),
            uncompiled(),
            self.streams.forked("texts", role, ctx.stage.name, ctx.step, ctx.micro),
        ):
            out: Batch = self.adapter.own_texts(  # type: ignore[attr-defined]
                role, roles[role], batch, self.params.temperature, self.params.longest, beside
            )
        return out

    def given(self, roles: Roles, batch: Batch, ctx: Context) -> Batch:
        """The batch over the texts that are not the student's own: the data's, or what its teacher draws."""
        return self.drawn(self.teacher, roles, batch, ctx) if self.params.teacher_texts else batch

    def compared(self, role: str, roles: Roles, batch: Batch, ctx: Context, only: Collection[str]) -> LossOut:
        """`Distil.loss` of these terms alone."""
        with ctx.timer.time("teacher"):
            teacher = self._teaching(role, roles, batch)
        with ctx.timer.time("student"):
            outputs = self.forward_role(role, roles, batch)
        with ctx.timer.time("loss"):
            out: LossOut = self.objectives[role](outputs, teacher, step=ctx.step, ranks=ctx.ranks, only=only)
        return out


def wants_labels(term: Term, spec: LossSpec) -> bool:
    """Whether a term reads what a text of the student's own lacks: labels, not the tokens that stand there."""
    return reads_labels(term, spec) and "labels" in (term.labels, term.regions if "regions" in spec.inputs else None)


#: By how much a share of own texts that rises does so at once.
RISE = 0.1


class GKDParams(OwnTexts):
    share: float = Field(0.5, ge=0, le=1)
    """Probability of a step on the student's own texts; the others are on the texts of the data."""
    rising: float | None = Field(None, ge=0)
    """Where given, that probability begins at 0 and rises by a tenth, up to `share`, whenever the cross entropy on dev
    is this much above what it was at the last rise, or at the start (nats a token)."""
    replay: bool = False
    """Whether such a step takes the texts that its utterances had last, with a probability that rises from 0 to 1."""


@METHODS.register("gkd")
class GKD(OnOwnTexts):
    """On-policy distillation: some steps are on texts that the student draws itself, and its teacher scores.

    Agarwal et al., "On-Policy Distillation of Language Models", ICLR 2024, algorithm 1: with probability ``share`` (the
    paper's lambda) a step's texts are drawn from the student, else they are those of the data. The terms are the same
    (`gjsd`, `kd`, `skew_kl`, ... by token), but for those that read labels, of which there are none then. No gradient
    goes through the drawing. Texts of the teacher in the place of the data's are drawn with ``teacher_texts``, or
    written once and before (``xmodal-kd pseudolabel --as-written``), as for sequence-level distillation.

    With ``replay`` texts are drawn anew with probability 1 - step / steps, else taken from those that were, as in Ko et
    al., "DistiLLM", ICML 2024; there of any utterances, here of the step's own, which have one each. With ``rising``
    (0.1 in its release, with a ``share`` of 1) own texts come as the data's are learnt by heart, as there; dev is
    looked at as often as it is evaluated.
    """

    Params: ClassVar[type[Strict]] = GKDParams

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        #: Targets that an utterance had last of its own, by its number, where they are to be used again.
        self.kept: dict[int, list[int]] = {}
        #: A share that rises, the loss that it rose at last, and the step in which dev was looked at.
        self.risen, self.level, self.looked = 0.0, math.nan, -1
        #: Terms that need no label.
        self.unlabelled = {one.name for one in self.objective if not wants_labels(one.term, one.spec)}

    def check(self, roles: Mapping[str, nn.Module]) -> None:
        super().check(roles)
        if not any(one.spec.needs_teacher and one.name in self.unlabelled for one in self.objective):
            raise UserError("method gkd: no term with a teacher does without labels, which own texts lack: add gjsd")

    def is_own(self, ctx: Context, share: float) -> bool:
        """Whether the step is on the student's own texts, for all of its micro-batches."""
        return bool(self.streams.numpy("whose texts", ctx.stage.name, ctx.step).random() < share)

    def share(self, role: str, roles: Roles, ctx: Context) -> float:
        """Of own texts now: in a step in which dev is looked at, the first micro-batch does."""
        if self.params.rising is None:
            return float(self.params.share)
        if ctx.step > self.looked and ctx.step % ctx.stage.evaluated_every(self.train) == 0:
            found, self.looked = self.on_dev(role, roles, ctx), ctx.step
            if math.isnan(self.level):
                self.level = found
            elif found >= self.level + self.params.rising:
                self.risen, self.level = min(self.risen + RISE, self.params.share), found
        return self.risen

    @torch.no_grad()
    def on_dev(self, role: str, roles: Roles, ctx: Context) -> float:
        """The student's cross entropy on dev, in nats a token."""
        source, model = self.adapter.data("dev"), roles[role]
        device, total, count = next(model.parameters()).device, 0.0, 0
        with ctx.timer.time("student"), evaluating(model), uncompiled():
            for part in source.plan(0):
                batch = send_to_device(source.collate([source.sample(i, 0) for i in part]), device)
                said = self.forward_features(role, roles, batch, ())
                scores, layout = said["logits"]
                lost = cross_entropy(scores.float()[layout.mask], said.rows("labels")[layout.mask], reduction="sum")
                total, count = total + float(lost), count + int(layout.mask.sum())
        return total / count

    def loss(self, role: str, roles: Roles, batch: Batch, ctx: Context) -> LossOut:
        if not self.is_own(ctx, self.share(role, roles, ctx)):
            return super().loss(role, roles, self.given(roles, batch, ctx), ctx)
        return self.compared(role, roles, self.own(role, roles, batch, ctx), ctx, self.unlabelled)

    def own(self, role: str, roles: Roles, batch: Batch, ctx: Context) -> Batch:
        """The batch over texts of the student's own: of now, or with ``replay`` of an earlier step."""
        if not self.params.replay:
            return self.drawn(role, roles, batch, ctx)
        if ctx.ranks.world > 1:
            raise UserError("method.params.replay: a process knows its own texts alone: train on one, or leave it out")
        ids = batch["ids"].tolist()
        again = self.streams.numpy("replay", ctx.stage.name, ctx.step).random() < ctx.step / self.train.steps
        if again and self.kept.keys() >= set(ids):
            out: Batch = self.adapter.over(batch, [self.kept[i] for i in ids])  # type: ignore[attr-defined]
            return out
        drawn = self.drawn(role, roles, batch, ctx)
        targets = [row[row >= 0].tolist() for row in drawn["targets"].cpu()]
        self.kept |= dict(zip(ids, targets, strict=True))
        return drawn

    def state_dict(self) -> Mapping[str, Any]:
        kept = {str(i): targets for i, targets in self.kept.items()}
        level = None if math.isnan(self.level) else self.level
        return {"kept": kept, "risen": self.risen, "level": level, "looked": self.looked}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.kept = {int(i): list(targets) for i, targets in state["kept"].items()}
        level = state.get("level")
        self.level = math.nan if level is None else float(level)
        self.risen, self.looked = float(state.get("risen", 0.0)), int(state.get("looked", -1))


class PairParams(OwnTexts):
    own: tuple[str, ...] = Field(("skew_rkl",), min_length=1)
    """Names of the terms on the student's own texts; the others are on the texts of the data."""
    gradual: bool = False
    """Whether the own texts' terms grow to 1.5 times their weight over the first half of the steps, while the others
    with a teacher fall to half of theirs."""


@METHODS.register("distillm2")
class ContrastivePair(OnOwnTexts):
    """DistiLLM-2: skewed KL on the teacher's texts, skewed reverse KL on the student's own, in every step.

    Ko et al., "DistiLLM-2: A Contrastive Approach Boosts the Distillation of LLMs", ICML 2025: (2 - b) SKL on y_t + b
    SRKL on y_s, b = 1, or with ``gradual`` 1 + min(1, 2 step / steps) / 2 as in its release. The objective is `skew_kl`
    and `skew_rkl`, as the release has it with ``weights: by_text`` and ``held: true``, or `distillm2_skl` and
    `distillm2_srkl`, whose alpha moves (``labels: tokens``); terms on labels stand beside them. The data's texts are to
    be the teacher's (``teacher_texts``, or ``xmodal-kd pseudolabel --as-written`` before). The release draws both texts
    once before each training, at 0.8; here the student's are drawn at each step.
    """

    Params: ClassVar[type[Strict]] = PairParams

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.of_given = {one.name for one in self.objective} - set(self.params.own)

    def check(self, roles: Mapping[str, nn.Module]) -> None:
        super().check(roles)
        known = {one.name: one for one in self.objective}
        for name in self.params.own:
            if name not in known:
                raise UserError(f"method.params.own: no term is called {name!r}{nearest(name, known)}")
            if wants_labels(known[name].term, known[name].spec):
                raise UserError(f"method.params.own: term {name!r} reads labels, which own texts lack: leave it out")
        if not any(known[name].spec.needs_teacher for name in self.of_given):
            raise UserError("method distillm2: no term with a teacher is on the data's texts: add skew_kl")

    def loss(self, role: str, roles: Roles, batch: Batch, ctx: Context) -> LossOut:
        beta = 1 + min(1.0, 2 * ctx.step / self.train.steps) / 2 if self.params.gradual else 1.0
        needs = {one.name: one.spec.needs_teacher for one in self.objective}
        out = self.compared(role, roles, self.given(roles, batch, ctx), ctx, self.of_given)
        own = self.compared(role, roles, self.drawn(role, roles, batch, ctx), ctx, self.params.own)
        parts = {
            name: replace(part, weight=part.weight * (2 - beta if needs[name] else 1))
            for name, part in out.parts.items()
        }
        return LossOut(parts) + LossOut({
            name: replace(part, weight=part.weight * beta, unit=f"{part.unit}, own texts")
            for name, part in own.parts.items()
        })  # fmt: skip


__all__ = ["GKD", "ContrastivePair", "GKDParams", "PairParams"]
