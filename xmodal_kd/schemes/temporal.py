"""A student that goes on learning along a sequence of frames, of which its teacher looks at some."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any, ClassVar

import numpy as np
import torch
from accelerate.utils import send_to_device
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from ..adapter.adapter import Adapter, Batch, Source, Strict
from ..objective.parts import LossOut, safe
from ..recipe.recipe import Recipe
from ..runtime.errors import UserError
from ..signals.signals import Signals
from ..training.label_budget import LabelBudget
from ..training.method import Context, Roles, Stage
from .base import SCHEMES, Scheme

#: Per cent of the frames that are key frames, at first.
ALWAYS = 100.0


class Following(Strict):
    every: int | None = Field(None, gt=0)
    """Every so many steps a key frame, the first among them; None: drawn, at a rate that follows the loss."""
    times: int = Field(3, gt=0)
    """Gradient steps on a key frame."""
    drop: float = Field(0.1, ge=0)
    """By how much the loss has to fall from key frame to key frame for the next one to come sooner."""
    rise: float = Field(1.0, ge=0)
    """By how much it has to rise for that."""
    least: float = Field(10.0, ge=0, le=ALWAYS)
    """Per cent of the frames that are key frames where nothing changes."""


def next_rate(rate: float, loss: float, before: float | None, params: Following) -> float:
    """Per cent of the frames that are key frames, after one with this loss: up where it changed, down by 1 where not.

    Args:
        before: the loss of the key frame before; None: there was none.
    """
    if before is None or loss < before - params.drop or loss > before + params.rise:
        return 2 * rate if rate < 50 else rate + 10 if rate < 90 else rate
    return rate - 1 if rate > params.least else rate


@SCHEMES.register("tkd")
class Temporal(Scheme):
    """The student predicts every frame of a sequence, and learns on key frames, which alone its teacher looks at.

    Farhadi, Yang, "TKD: Temporal Knowledge Distillation for Active Perception", WACV 2020. The training frames are the
    sequence, in their order and once; the student starts as a trained one (``compress: pretrained``) and ends with its
    last weights. On a key frame it takes a few steps on what the teacher says of it (the loss `tkd`; the paper moves
    the decoder alone: ``lr_scale``). A step whose gradient is 0, as within that loss's bound, is none, whatever the
    optimizer remembers. Key frames are every so many, or drawn at the release's rate, which rises where the loss
    changes; the paper's LSTM that tells them is not built. The report has how often the teacher ran, and where rows
    have labels how well each frame was predicted before it was learnt from, beside the student as it was and the
    teacher, of the rows of all frames together.
    """

    Params: ClassVar[type[Strict]] = Following
    paper, year, family = "TKD: Temporal Knowledge Distillation for Active Perception", 2020, "continual"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        #: What a resume needs: frames seen, key frames, steps taken, the rate, the last key frame's loss, and
        #: ``(c, c)`` rows by label and by what the student predicted.
        self.state: dict[str, Any] = {
            "steps": 0, "frames": 0, "key_frames": 0, "updates": 0, "rate": ALWAYS, "loss": None, "confusion": None,
            "seconds": {"student": 0.0, "teacher": 0.0, "learning": 0.0},
        }  # fmt: skip
        self.frozen: nn.Module | None = None

    @classmethod
    def refuse(cls, recipe: Recipe) -> None:
        super().refuse(recipe)
        if recipe.labels is not None:
            raise UserError("scheme tkd: a sequence is followed with all its labels or none: leave labels out")
        if recipe.train.accumulate > 1:
            raise UserError("scheme tkd: the frames of a step are seen together: leave train.accumulate out")
        if recipe.train.ema is not None:
            raise UserError("scheme tkd: the student that predicts is the one that is saved: leave train.ema out")

    @classmethod
    def source(cls, params: Any, source: Source, adapter: Adapter) -> Source:
        if isinstance(source, LabelBudget):
            raise UserError(
                "scheme tkd: a term reads labels, which some frames of the sequence do not have: leave the term out"
            )
        return InOrder(source, adapter.batch_size)

    def check(self, roles: Mapping[str, nn.Module]) -> None:
        super().check(roles)
        frames, size = len(self.adapter.data("train")), self.train.batch_size
        if self.train.steps > (most := -(-frames // size)):
            raise UserError(
                f"train.steps: {self.train.steps} steps of {size} frames, and the sequence has {frames}, which are "
                f"seen once: give at most {most}"
            )

    def stages(self) -> Sequence[Stage]:
        return [Stage(self.role, self.train.steps, frozenset(self.learners), last=True)]

    def begin(self, stage: Stage, roles: Roles, batch: Batch) -> Mapping[str, Optimizer]:
        optimizers = super().begin(stage, roles, batch)
        self.frozen = copy.deepcopy(roles[self.role]).eval().requires_grad_(False)
        optimizers[self.role].register_step_pre_hook(self._unless_still)
        return optimizers

    def _unless_still(self, optimizer: Optimizer, *_: Any) -> None:
        """Leave an optimizer nothing to do where the gradient is 0."""
        learning = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if any(bool(p.grad.any()) for p in learning):
            self.state["updates"] += 1
            return
        for parameter in learning:
            parameter.grad = None

    # ---------------------------------------------------------------- a step

    def losses(self, batch: Batch, roles: Roles, ctx: Context) -> Iterator[tuple[str, LossOut]]:
        with self._timed("student", ctx):
            predicted = self._predicted(batch, self.role, roles[self.role])
        out = LossOut()
        if self._is_key(ctx):
            with self._timed("teacher", ctx), ctx.timer.time("teacher"):
                teaching = self._teaching(self.role, roles, batch)
            with self._timed("learning", ctx):
                for _ in range(self.params.times):
                    with ctx.timer.time("student"):
                        outputs = self.forward_role(self.role, roles, batch)
                    with ctx.timer.time("loss"):
                        out = self.objective(outputs, teaching, step=ctx.step, ranks=ctx.ranks)
                    yield self.role, out
        if not self._over(ctx):
            self._note(ctx, predicted, len(batch["ids"]), out)
        self.settle(roles, ctx)

    def _over(self, ctx: Context) -> bool:
        """Whether somebody probes a step that was taken."""
        return bool(ctx.step < self.state["steps"])

    @contextmanager
    def _timed(self, what: str, ctx: Context) -> Iterator[None]:
        begun = perf_counter()
        yield
        self.state["seconds"][what] += 0.0 if self._over(ctx) else perf_counter() - begun

    def _is_key(self, ctx: Context) -> bool:
        if self.params.every is not None:
            return bool(ctx.step % self.params.every == 0)
        return ctx.step == 0 or 100 * ctx.streams.numpy("key frame", ctx.step).random() < self.state["rate"]

    def _note(self, ctx: Context, predicted: Tensor | None, frames: int, out: LossOut) -> None:
        """What a step adds to the state: of all ranks, the same on each. Without parts it was no key frame."""
        state, parts = self.state, {name: part for name, part in out.parts.items() if part.weight}
        sums = [(float(part.total.detach()), float(part.count)) for part in parts.values()]
        everyone = ctx.ranks.gather((frames, predicted, sums))
        frames = sum(each for each, _, _ in everyone)
        state["steps"], state["frames"] = ctx.step + 1, state["frames"] + frames
        for _, matrix, _ in everyone:
            if matrix is not None:
                before = state["confusion"]
                state["confusion"] = (matrix if before is None else matrix + torch.tensor(before)).tolist()
        if parts:
            means = np.sum([each for _, _, each in everyone], axis=0)
            loss = float(sum(p.weight * t / safe(n) for p, (t, n) in zip(parts.values(), means, strict=True)))
            state["key_frames"] += frames
            state["rate"] = next_rate(state["rate"], loss, state["loss"], self.params)
            state["loss"] = loss

    @torch.no_grad()
    def _predicted(self, batch: Batch, role: str, model: nn.Module) -> Tensor | None:
        """``(c, c)`` rows by label and by what a model says of them; None where rows have no classes for labels."""
        training = model.training
        said = self.adapter.signals(role, model.eval(), batch)
        model.train(training)
        return confusion(said, self.adapter.output)

    def state_dict(self) -> Mapping[str, Any]:
        return copy.deepcopy(self.state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.state = copy.deepcopy(dict(state))

    # ---------------------------------------------------------------- the report

    def facts(self, roles: Mapping[str, nn.Module], batch: Batch) -> Mapping[str, Any]:
        assert self.frozen is not None
        state = self.state
        teacher = {"frames": state["frames"], "teacher ran on": state["key_frames"], "updates": state["updates"]}
        name, _ = self.adapter.metric
        before = self.adapter.evaluate(self.role, self.frozen, "test").metrics[name]
        found: dict[str, Any] = {
            "sequence": teacher | {"teacher's share": state["key_frames"] / max(1, state["frames"])},
            "seconds": dict(state["seconds"]),
            "test, as it was": {name: before},
        }
        if state["confusion"] is None:
            return found
        matrices = {
            "as it was": self._over_all(self.role, self.frozen), "student": torch.tensor(state["confusion"]),
            "teacher": self._over_all(self.teacher, roles[self.teacher]),
        }  # fmt: skip
        return found | {
            "accuracy, before learning": {who: accuracy(one) for who, one in matrices.items()},
            "miou, before learning": {who: mean_iou(one) for who, one in matrices.items()},
        }

    def _over_all(self, role: str, model: nn.Module) -> Tensor:
        """`_predicted` of the frames of the sequence that were seen, by a model that does not change."""
        source, device, found = self.adapter.data("train"), next(model.parameters()).device, []
        for index in range(self.state["frames"]):
            batch = send_to_device(source.collate([source.sample(index, 0)]), device)
            found.append(self._predicted(batch, role, model))
        return torch.stack([one for one in found if one is not None]).sum(dim=0)


class InOrder:
    """The samples of a source in their order, so many a batch."""

    def __init__(self, inner: Source, size: int) -> None:
        self.inner, self.size = inner, size

    def __len__(self) -> int:
        return len(self.inner)

    def plan(self, epoch: int) -> list[list[int]]:
        samples = list(range(len(self)))
        return [samples[i : i + self.size] for i in range(0, len(self), self.size)]

    def sample(self, index: int, epoch: int) -> Any:
        return self.inner.sample(index, epoch)

    def collate(self, samples: Sequence[Any]) -> Batch:
        return self.inner.collate(samples)


def confusion(said: Signals, output: str) -> Tensor | None:
    """``(c, c)`` int64 on the CPU: valid rows by label and by answer; None where none has a class for a label."""
    if output != "logits" or "labels" not in said:
        return None
    (answers, layout), (labels, known) = said[output], said["labels"]
    if labels.ndim != 1 or len(labels) != len(answers) or not known.same_rows(layout):
        return None
    both = layout.mask & known.mask & (labels >= 0)
    if not both.any():
        return None
    classes = answers.shape[1]
    pairs = labels[both] * classes + answers[both].argmax(dim=1)
    return torch.bincount(pairs.cpu(), minlength=classes**2).reshape(classes, classes)


def accuracy(matrix: Tensor) -> float:
    """The share of rows that are given their label."""
    return float(matrix.diagonal().sum() / matrix.sum())


def mean_iou(matrix: Tensor) -> float:
    """Mean of ``TP / (TP + FP + FN)`` over the classes that are labelled or predicted."""
    hit = matrix.diagonal().double()
    union = matrix.sum(dim=0) + matrix.sum(dim=1) - hit
    return float((hit / union)[union > 0].mean())
