"""A bench for few-step methods: a mixture of Gaussians teaches a tiny network, and the truth judges it.

No teacher is trained, no image is read, and a method runs in seconds: what it misses it misses by itself. Distances are
told over the sampling floor, what as many true points have among themselves: 1 is as good as the truth. All methods
start from one network, which has learnt what the exact teacher says.

    bench = Bench()
    students = bench.distil(ARMS["progressive"], Path("runs/bench"))
    bench.distance(students[1])
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from xmodal_kd.adapter.adapter import Batch
from xmodal_kd.objective.objective import Objective
from xmodal_kd.recipe.recipe import Optimizer, Term, Train
from xmodal_kd.recipe.schedules import Schedule
from xmodal_kd.runtime.device import make_accelerator
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.signals.signals import Signals
from xmodal_kd.training.engine import Engine
from xmodal_kd.training.method import METHODS, Stage

from ..methods import every  # noqa: F401 - registers all methods
from ..methods.intervals import Intervals
from ..models.denoiser import FEW_STEP, Denoiser, Sampling
from ..models.mixture import ExactDenoiser, Mixture, PointNet
from ..models.process import Process
from ..models.said import said
from .metrics import sliced_wasserstein

#: Points of a set, and sets that the floor is a mean over.
POINTS, FLOORS = 2000, 4
#: Steps in which what a guided teacher makes is taken for the truth.
FINE = 64
#: Steps of the teacher's sampler, and the learning rate at which a student learns what it says.
STEPS = 64
MATCHING_LR = 4e-3
#: Evaluations that students are measured at.
BUDGETS = (1, 2, 4)
#: The student's module that a discriminator reads.
LAST = "net.blocks.1"
#: And the one that embeds the time.
TIMES = "net.times"


class Arm(NamedTuple):
    """A method as it is measured: steps of each of its stages, ``method.params``, and its students' evaluations."""

    method: str
    steps: int
    params: Mapping[str, Any] = {}
    lr: float = 1e-3
    ema: float | None = None
    budgets: tuple[int, ...] = BUDGETS
    told: int | None = None
    """Width at which the student is told the scale of guidance; see `Bench`."""


#: Most methods in 3 to 18 CPU seconds, `rdd`, whose relations are of a classifier's features, in 46 (the cells of
#: benchmarks/results/mixture.json say of each). Noise levels are drawn as the papers have it, whose data spread half as
#: far: log 2 is added to their mean.
ARMS = {
    "progressive": Arm("progressive", 120),
    "rdd": Arm("rdd", 120),
    "lightning": Arm("lightning", 80, {"critic": 3, "critic_lr": 3.0, "lr": 0.3, "at": LAST}, ema=0.95),
    "lightning, squares": Arm("lightning", 110, {"mse": 4, "at": LAST}, ema=0.95),
    "consistency": Arm("consistency", 500, {"grid": 8, "decay": 0.8}),
    "lcm": Arm("lcm", 500, {"grid": 8, "decay": 0.8}),
    "ect": Arm("ect", 500, {"mean": -0.4}),
    "ict": Arm("ict", 500, {"mean": -0.4}),
    "scm": Arm("scm", 500, {"mean": -0.3}, lr=3e-4, ema=0.98),
    "dmd2": Arm("dmd2", 250, {"steps": 1, "critic": 3}, ema=0.95, budgets=(1,)),
    "dmd2, GAN": Arm(
        "dmd2", 250, {"steps": 1, "critic": 3, "gan": 1.0, "gan_critic": 0.3, "at": LAST}, ema=0.95, budgets=(1,)
    ),
    "dmd2, f-distill": Arm(
        "dmd2",
        250,
        {"steps": 1, "critic": 3, "gan": 1.0, "gan_critic": 0.3, "at": LAST, "divergence": "jensen_shannon"},
        ema=0.95,
        budgets=(1,),
    ),
    "sid": Arm("sid", 250, {}, lr=3e-4, ema=0.95, budgets=(1,)),
    "moment_matching": Arm("moment_matching", 250, {"steps": 1}, ema=0.95, budgets=(1,)),
    "moment_matching, 2 steps": Arm("moment_matching", 250, {"steps": 2}, ema=0.95, budgets=(2,)),
    "meanflow": Arm("meanflow", 500, {"steps": 1, "at": TIMES}, ema=0.98),
    "shortcut": Arm("shortcut", 500, {"steps": 1, "at": TIMES}, ema=0.98),
    "reflow": Arm("reflow", 500, {"distil": 0.0}),
    "reflow, 2 rounds": Arm("reflow", 300, {"distil": 0.0, "rounds": 2}),
    "reflow, distilled": Arm("reflow", 250, {}, budgets=(1,)),
    "pcm, 1 phase": Arm("pcm", 500, {"steps": 1, "grid": 16, "decay": 0.8}, budgets=(1,)),
    "pcm, 2 phases": Arm("pcm", 500, {"steps": 2, "grid": 16, "decay": 0.8}, budgets=(2,)),
    "pcm, 4 phases": Arm("pcm", 500, {"steps": 4, "grid": 16, "decay": 0.8}, budgets=(4,)),
    "tcd": Arm("tcd", 500, {"grid": 16, "decay": 0.8}),
    "ctm": Arm("ctm", 400, {"steps": 1, "at": TIMES, "dsm": 0.1}, ema=0.98),
    "ladd": Arm(
        "ladd",
        250,
        {"steps": 1, "critic": 3, "critic_lr": 3.0, "at": [LAST], "mean": -1.0},
        lr=3e-4,
        ema=0.95,
        budgets=(1,),
    ),
    "add": Arm("add", 250, {"steps": 1, "critic": 3, "critic_lr": 3.0, "distil": 0.5}, lr=3e-4, ema=0.95, budgets=(1,)),
    "dmd2, regression": Arm("dmd2", 250, {"steps": 1, "critic": 3, "regression": 0.25}, ema=0.95, budgets=(1,)),
    "dmd2, 4 steps": Arm("dmd2", 250, {"steps": 4, "critic": 3}, lr=5e-4, ema=0.95),
}
#: Of a guided teacher, scale 2, on the mixture's classes; of a student that is told the scale it is one of many.
GUIDED = {
    "consistency": ARMS["consistency"],
    "lcm": ARMS["lcm"],
    "lcm, huber": ARMS["lcm"]._replace(params={**ARMS["lcm"].params, "distance": "huber"}),
    "lcm, told the scale": ARMS["lcm"]._replace(params={**ARMS["lcm"].params, "guidance": (1.0, 3.0)}, told=16),
    "dmd2": ARMS["dmd2"],
    "dmd2, GAN": ARMS["dmd2, GAN"]._replace(params={**ARMS["dmd2, GAN"].params, "gan": 0.1}),
    "dmd2, 4 steps": ARMS["dmd2, 4 steps"]._replace(budgets=(4,)),
}
SCALE = 2.0


def plane() -> Mixture:
    """Five parts of unequal weight, width and direction in the plane, of two classes; about unit variance."""
    return Mixture(
        [0.3, 0.25, 0.2, 0.15, 0.1],
        [[-1.2, -0.6], [0.1, 1.1], [1.2, 0.2], [0.3, -1.1], [-1.1, 1.0]],
        [[[0.04, 0.02], [0.02, 0.03]], [[0.09, 0.0], [0.0, 0.01]], [[0.02, 0.0], [0.0, 0.12]],
         [[0.05, -0.03], [-0.03, 0.04]], [[0.01, 0.0], [0.0, 0.01]]],
        classes=[0, 1, 0, 1, 0],
    )  # fmt: skip


def unlabelled(mixture: Mixture) -> Mixture:
    """The same points, and models that know no classes."""
    made = copy.deepcopy(mixture)
    made.classes = None
    return made


class Points:
    """Batches of a mixture's points, as `DiffusionSource` gives those of images; a sample of it is a whole batch."""

    def __init__(self, mixture: Mixture, streams: Streams, batch_size: int, batches: int = 64) -> None:
        self.mixture, self.streams, self.batch_size, self.batches = mixture, streams, batch_size, batches

    def __len__(self) -> int:
        return self.batches

    def plan(self, epoch: int) -> list[list[int]]:
        return [[i] for i in range(self.batches)]

    def sample(self, index: int, epoch: int) -> dict[str, Any]:
        generator = self.streams.torch("points", epoch, index)
        x, labels = self.mixture.draw(self.batch_size, generator)
        noise = torch.randn(x.shape, generator=generator)
        u = torch.rand(self.batch_size, generator=generator)
        batch = {"ids": torch.arange(self.batch_size), "x": x.float(), "noise": noise, "u": u}
        return batch | ({} if labels is None else {"labels": labels})

    def collate(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return samples[0]


class PointSet:
    """Points ``(n, d)`` without labels, as a split's images."""

    labels = class_names = None

    def __init__(self, x: Tensor) -> None:
        self.x = x.float().numpy()

    def tensor(self, indexes: Any) -> Tensor:
        return torch.from_numpy(self.x[indexes])


class _Adapter:
    """As much of an adapter as few-step methods ask for."""

    def __init__(self, sampling: Sampling, mixture: Mixture) -> None:
        self.config, self.mixture = SimpleNamespace(sampling=sampling), mixture

    def data(self, split: str) -> Any:
        return SimpleNamespace(images=PointSet(self.mixture.draw(POINTS, Streams(0).torch(split, "points"))[0]))

    def signals(self, role: str, model: nn.Module, batch: Batch, features: Sequence[str] = ()) -> Signals:
        return said(cast(Denoiser, model), batch, features)


@dataclass(frozen=True)
class Bench:
    """A mixture, a process and what the teacher and the student predict.

    Args:
        prediction: None: the process's natural one.
        conditional: whether models are conditioned on the mixture's classes.
        guidance: scale at which the teacher is guided; the truth is then what it makes in many steps.
        told: width at which the student is told the scale; None: it is not.
        steps: of the teacher's DDIM sampler, from which progressive distillation starts.
        batch: points that a step sees.
        matching: steps by which a student learns what the teacher says, before any method.
    """

    mixture: Mixture = field(default_factory=plane)
    process: Process = field(default_factory=lambda: Process.cosine(1024))
    prediction: str | None = None
    conditional: bool = False
    guidance: float = 1.0
    told: int | None = None
    steps: int = STEPS
    batch: int = 256
    matching: int = 800
    width: int = 64
    _matched: dict[int, Denoiser] = field(default_factory=dict, repr=False, compare=False)

    @property
    def predicted(self) -> str:
        return self.prediction or self.process.natural

    @cached_property
    def _mixture(self) -> Mixture:
        return self.mixture if self.conditional else unlabelled(self.mixture)

    @property
    def teacher(self) -> ExactDenoiser:
        sampling = Sampling("ddim", self.steps)
        made = ExactDenoiser(
            self._mixture, self.process, self.predicted, guidance=self.guidance, sampling=sampling
        )  # fmt: skip
        return made.eval()

    def student(self, seed: int) -> Denoiser:
        """With fresh weights."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            net = PointNet(self.mixture.dimension, self.width, classes=self._mixture.classes, guidance_width=self.told)
        if self.told is not None:
            nn.init.zeros_(net.scale.weight)
        return Denoiser(net, self.process, self.predicted, (self.mixture.dimension,), classes=self._mixture.classes)

    def matched(self, seed: int) -> Denoiser:
        """A student that says what the teacher says unguided, as nearly as it can: where every method starts."""
        if seed not in self._matched:
            student, teacher, source = self.student(seed), self.teacher, self.points(Streams(seed))
            teacher.guidance = 1.0
            optimizer = torch.optim.Adam(student.parameters(), lr=MATCHING_LR, fused=True)
            for step in range(self.matching):
                optimizer.param_groups[0]["lr"] = MATCHING_LR * (1 - step / self.matching)
                batch = source.sample(step, -1)
                t, labels = (batch["u"] * self.process.T).long(), batch.get("labels")
                z = self.process.add_noise(batch["x"], batch["noise"], t)
                loss = (student(z, t, labels) - teacher(z, t, labels)).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            self._matched[seed] = student.eval()
        return copy.deepcopy(self._matched[seed])

    def points(self, streams: Streams) -> Points:
        return Points(self._mixture, streams, self.batch)

    def distil(self, arm: Arm, folder: Path, seed: int = 1) -> dict[int, Denoiser]:
        """Students by number of evaluations: of progressive distillation one each, of others the same for 1, 2, 4.

        Args:
            folder: for the training's log and checkpoints.
        """
        streams, kind = Streams(seed), METHODS[arm.method]
        train = Train(
            steps=arm.steps, batch_size=self.batch, optimizer=Optimizer(name="adam", lr=arm.lr), ema=arm.ema,
            schedule=Schedule(kind="linear"), checkpoint_every=1_000_000,
        )  # fmt: skip
        roles: dict[str, nn.Module] = {"teacher": self.teacher, "student": self.matched(seed)}
        terms = Objective([Term(loss="hint", on="prediction")])
        adapter = _Adapter(self.teacher.sampling, self._mixture)
        trains = kind(adapter, terms, train, streams, params=kind.Params(**arm.params))
        found: dict[int, Denoiser] = {}

        def keep(stage: Stage, model: nn.Module) -> None:
            made = cast(Denoiser, copy.deepcopy(model))
            if isinstance(trains, Intervals):
                found.update((n, trains.of_steps(made, n)) for n in BUDGETS)
                return
            for how in _budgets(made.sampling, arm):
                found[how.nfe] = copy.copy(made)
                found[how.nfe].sampling = how

        Engine(
            trains, self.points(streams), roles, train, streams=streams, quiet=True, folder=folder, finished=keep,
            accelerator=make_accelerator("cpu", "fp32"),
        ).fit()  # fmt: skip
        return found

    # ---------------------------------------------------------------- the truth

    def truth(self, draw: int, count: int = POINTS) -> Tensor:
        """Points ``(count, d)``; of a conditional bench the class stands beside them, in a column of its own.

        Of a guided teacher they are those of its ODE, since no density has its guided scores.
        """
        x, labels = self._mixture.draw(count, Streams(0).torch("truth", draw))
        if self.guidance != 1:
            noise = torch.randn(x.shape, generator=Streams(0).torch("truth noise", draw), dtype=torch.float64)
            x = self.teacher.sample(noise, labels, Sampling("heun", FINE))
        return _beside(x, labels)

    @cached_property
    def floor(self) -> float:
        """Sliced Wasserstein distance of true points from others, a mean over independent draws."""
        return sum(sliced_wasserstein(self.truth(2 * i + 1), self.truth(2 * i + 2)) for i in range(FLOORS)) / FLOORS

    def distance(self, model: Denoiser, sampling: Sampling | None = None, draws: int = 1) -> float:
        """Sliced Wasserstein distance of the model's points from the truth over `floor`, a mean over draws of noise."""
        found = []
        for draw in range(draws):
            generator = Streams(0).torch("bench noise", draw)
            noise = torch.randn(POINTS, self.mixture.dimension, generator=generator)
            labels = self._mixture.draw(POINTS, Streams(0).torch("truth", -1 - draw))[1]
            made = model.sample(noise, labels, sampling, generator).double()
            found.append(sliced_wasserstein(_beside(made, labels), self.truth(0)) / self.floor)
        return sum(found) / draws


def _budgets(sampling: Sampling, arm: Arm) -> list[Sampling]:
    """Those that a student is measured at: its own, or 1, 2 and 4 where one network serves any number."""
    if sampling.solver not in FEW_STEP and arm.method not in ("reflow", "tcd"):
        return [sampling]
    return [Sampling(sampling.solver, steps, sampling.original) for steps in BUDGETS]


def _beside(x: Tensor, labels: Tensor | None) -> Tensor:
    return x if labels is None else torch.cat([x, labels[:, None].double()], dim=1)


__all__ = ["ARMS", "GUIDED", "SCALE", "Arm", "Bench", "Points", "plane", "unlabelled"]
