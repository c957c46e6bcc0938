"""MiniLLM: the policy gradient of the reverse KL of whole texts, on texts that student and teacher draw together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from xmodal_kd.adapter.adapter import Batch, Strict
from xmodal_kd.losses.base import full_precision
from xmodal_kd.losses.logits import kl
from xmodal_kd.objective.parts import LossOut, Part
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.training.method import METHODS, Context, Roles
from xmodal_kd.training.modes import evaluating

from .own_texts import OnOwnTexts, OwnTexts


class MiniLLMParams(OwnTexts):
    teacher_share: float = Field(0.2, ge=0, lt=1)
    """Of the teacher's distribution in the one that each token is drawn from."""
    clip: float | None = Field(0.2, gt=0)
    """How far from 1 the ratio of a token's probability to the one that it was drawn with counts; None: any."""
    uses: int = Field(1, ge=1)
    """How often a text is learnt from, each time that its utterance comes, before it is drawn anew."""
    weight: float = Field(1.0, gt=0)
    """Of both parts on drawn texts, beside those of the terms."""
    released: bool = False
    """As the release has it where it differs from the paper: see `MiniLLM`."""


class Drawn(NamedTuple):
    """Texts as they were drawn: ``(b, l)`` log-probabilities of their tokens, 0 where there is none."""

    old: Tensor
    """By the student then."""
    teacher: Tensor


@METHODS.register("minillm")
class MiniLLM(OnOwnTexts):
    """Reverse KL of the texts, ``KL(q || p)``, by policy gradient, beside the terms on the data's texts.

    Gu et al., "MiniLLM: Knowledge Distillation of Large Language Models", ICLR 2024, section 2.2. With the reward
    ``r_t = log p(y_t) - log q(y_t)`` of a token, its gradient parts into the exact one of the step, ``w_t grad KL(q ||
    p)`` (equation 3), and the one of what follows, ``-w_t R_t grad log q(y_t)``, R_t the mean of the rewards behind t
    (equation 6, over as many as there are). Tokens are drawn from ``(1 - a) q + a p`` (equation 4) and weighed by ``w_t
    = q / ((1 - a) q + a p)`` (equation 5); the ratio ``w_t q / q_then`` is clipped as in PPO (algorithm 1). Both are
    means over tokens. The objective is the language-model term: `ce` on the data's texts, and `kd` where the teacher is
    to speak of these, too (the release has both by halves). The published student was fine-tuned before.

    With ``released`` R_t holds the token's own reward, those behind it count 0.95 as much a token, their sum is divided
    by their number and whitened over the micro-batch, padding included, and the exact part has no w. Its scaling of
    rewards is undone by that. The release learns four times from each of 256 texts before it draws others; with
    ``uses`` an utterance's text stays for as many passes. What the generation config suppresses is scored all the same.
    """

    Params: ClassVar[type[Strict]] = MiniLLMParams

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        #: Of an utterance by its number: targets, log-probabilities by student and teacher, and the uses that are left.
        self.kept: dict[int, dict[str, Any]] = {}

    def check(self, roles: Mapping[str, nn.Module]) -> None:
        super().check(roles)
        if differ := self.adapter.other_tokens(self.teacher, "logits"):
            raise UserError(f"method minillm: {differ}: the teacher scores the student's tokens: take one tokenizer")

    def loss(self, role: str, roles: Roles, batch: Batch, ctx: Context) -> LossOut:
        out = super().loss(role, roles, self.given(roles, batch, ctx), ctx)
        own, then = self.own(role, roles, batch, ctx)
        with ctx.timer.time("teacher"), torch.no_grad():
            theirs = self.scores(self.teacher, roles, own)
        with ctx.timer.time("student"):
            ours = self.scores(role, roles, own)
        with ctx.timer.time("loss"):
            after, step = policy_gradient(ours, theirs, self.tokens(own), then, self.params)
        count = float((self.tokens(own) >= 0).sum())
        parts = {"minillm": after.sum(), "minillm_step": step.sum()}
        return out + LossOut({
            name: Part(total, count, self.params.weight, "tokens, own texts") for name, total in parts.items()
        })  # fmt: skip

    def tokens(self, own: Batch) -> Tensor:
        """``(b, l)`` tokens that were drawn, below 0 where there is none."""
        targets: Tensor = own["targets"]
        return targets[:, self.adapter.begins :]  # type: ignore[attr-defined]

    def scores(self, role: str, roles: Roles, own: Batch) -> Tensor:
        """``(b, l, classes)`` logits of these tokens, at the temperature that they are drawn at."""
        rows = self.forward_features(role, roles, own, ()).rows("logits")
        rows = full_precision(rows) / self.params.temperature
        found: Tensor = rows.view(len(own["ids"]), -1, rows.shape[1])[:, self.adapter.begins :]  # type: ignore[attr-defined]
        return found[:, : self.tokens(own).shape[1]]

    def own(self, role: str, roles: Roles, batch: Batch, ctx: Context) -> tuple[Batch, Drawn]:
        """The batch over texts that were drawn now, or at an earlier time and not learnt from often enough."""
        if self.params.uses > 1 and ctx.ranks.world > 1:
            raise UserError("method.params.uses: a process knows its own texts alone: train on one, or leave it out")
        ids = batch["ids"].tolist()
        kept = [self.kept.get(i, {"left": 0}) for i in ids]
        if all(one["left"] for one in kept):
            self.kept |= {i: {**one, "left": one["left"] - 1} for i, one in zip(ids, kept, strict=True)}
            then = (
                pad_sequence([torch.tensor(one[by]) for one in kept], True).to(batch["lengths"].device)
                for by in Drawn._fields
            )
            again: Batch = self.adapter.over(batch, [one["targets"] for one in kept])  # type: ignore[attr-defined]
            return again, Drawn(*then)
        beside = (self.teacher, roles[self.teacher], self.params.teacher_share)
        drawn = self.drawn(role, roles, batch, ctx, beside if self.params.teacher_share else None)
        with torch.no_grad(), evaluating(roles[role]), ctx.timer.time("student"):
            said = Drawn(
                *(log_probability(self.scores(by, roles, drawn), self.tokens(drawn)) for by in (role, self.teacher))
            )
        if self.params.uses > 1:
            for row, i in enumerate(ids):
                count = int((self.tokens(drawn)[row] >= 0).sum())
                targets = drawn["targets"][row]
                told = {by: values[row, :count].tolist() for by, values in said._asdict().items()}
                self.kept[i] = {"targets": targets[targets >= 0].tolist(), **told, "left": self.params.uses - 1}
        return drawn, said

    def state_dict(self) -> Mapping[str, Any]:
        return {"kept": {str(i): one for i, one in self.kept.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.kept = {int(i): dict(one) for i, one in state["kept"].items()}


def log_probability(scores: Tensor, tokens: Tensor) -> Tensor:
    """``(b, l)`` of tokens below scores ``(b, l, classes)``; 0 where there is none."""
    said = scores.log_softmax(dim=-1).gather(-1, tokens.clamp(min=0)[..., None])[..., 0]
    return torch.where(tokens >= 0, said, 0.0)


def policy_gradient(
    student: Tensor, teacher: Tensor, tokens: Tensor, then: Drawn, params: MiniLLMParams
) -> tuple[Tensor, Tensor]:
    """The part of what follows a token, and the exact part of its step: ``(b, l)`` each, 0 where there is no token.

    Args:
        student: ``(b, l, classes)`` scores now.
        teacher: the same, without gradient.
        tokens: ``(b, l)``, below 0 where there is none.
    """
    there = tokens >= 0
    share = params.teacher_share
    w = then.old.exp() / ((1 - share) * then.old.exp() + share * then.teacher.exp())
    returned = (released_returns if params.released else returns)(then.teacher - then.old, there)
    ratio = w * (log_probability(student, tokens) - then.old).exp()
    near = ratio if params.clip is None else ratio.clamp(1 - params.clip, 1 + params.clip)
    after = -torch.minimum(returned * ratio, returned * near)
    step = kl(student.log_softmax(dim=-1), teacher.log_softmax(dim=-1)) * (1 if params.released else w)
    return torch.where(there, after, 0.0), torch.where(there, step, 0.0)


def returns(rewards: Tensor, there: Tensor) -> Tensor:
    """``(b, l)`` mean of the rewards behind a token; 0 of the last one."""
    behind = (rewards * there).flip(1).cumsum(1).flip(1) - rewards * there
    counts = there.flip(1).cumsum(1).flip(1) - there.long()
    return behind / counts.clamp(min=1)


def released_returns(rewards: Tensor, there: Tensor, gamma: float = 0.95) -> Tensor:
    """``(b, l)`` discounted rewards from a token on over their number, whitened over all cells."""
    found, behind = [], torch.zeros_like(rewards[:, 0])
    for reward in (rewards * there).flip(1).unbind(1):
        behind = reward + gamma * behind
        found.append(behind)
    a = torch.stack(found[::-1], dim=1) / there.flip(1).cumsum(1).flip(1).clamp(min=1)
    return (a - a.mean()) * torch.rsqrt(a.var(correction=0) + 1e-8)


__all__ = ["MiniLLM", "MiniLLMParams"]
