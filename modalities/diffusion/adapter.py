"""Diffusion: images or other arrays, denoising networks, few-step samplers saved as diffusers pipelines."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from xmodal_kd.adapter.adapter import Adapter, Batch, Evaluation, Overview, Score, is_teacher
from xmodal_kd.adapter.listed import Listed
from xmodal_kd.adapter.panels import Panel
from xmodal_kd.adapter.saved_model import About
from xmodal_kd.report.statistics import t_interval
from xmodal_kd.runtime.checkpoint import digest, read_object
from xmodal_kd.runtime.errors import RunError, UserError
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.runtime.registry import Registry
from xmodal_kd.signals.signals import Signals
from xmodal_kd.training.method import METHODS

from .data.captions import captions_of
from .data.condition import Condition, Prompts, moved, rows
from .data.config import FEWEST, LAYOUTS, SPLITS, DiffusionData
from .data.listed import listed
from .data.source import DiffusionSource, Encoded, load_split
from .evaluate.answers import Answers
from .evaluate.denoising import trust
from .evaluate.drawn import Drawn, Memory
from .evaluate.encoders import seen_by_others
from .evaluate.guard import guarded
from .evaluate.judge import Judge, judge_of
from .evaluate.metrics import paired_error
from .export.bare import bare_unet, pipeline_of
from .export.card import about
from .export.limits import check_guidance, check_loaded, check_saveable
from .export.onnx_sampler import TABLE
from .export.pipeline import SAMPLER, load_denoiser, refuse_few_step, save_pipeline
from .export.scheduler_lint import lint
from .export.stages import gated
from .losses import denoising  # noqa: F401 - registers the loss
from .methods import every  # noqa: F401 - registers all methods
from .methods.few_step import same_network, tells_x
from .models.denoiser import Denoiser, Sampling
from .models.encoded import encoded, prompts_of, text_of
from .models.lora import merged
from .models.networks import MODELS, built
from .models.parts import Parts, parts_of
from .models.paths import process_of
from .models.process import Process
from .models.said import said
from .models.solvers import SOLVERS, most_steps
from .show.overview import overview
from .show.panels import glimpse, show

#: That a student's card names.
PROMPTS = 4


class DiffusionAdapter(Adapter):
    """All roles see one sample with one noise at one time, drawn by the source, and say its v on the sample's grid."""

    Data: ClassVar[type[DiffusionData]] = DiffusionData
    models: ClassVar[Registry[Any]] = MODELS
    gives: ClassVar[frozenset[str]] = frozenset({"prediction", "regression", "features"})
    metric: ClassVar[tuple[str, bool]] = ("fd_clf", True)
    output: ClassVar[str] = "prediction"
    quick_export: ClassVar[bool] = False
    datasets: ClassVar[Mapping[str, str]] = LAYOUTS

    def __init__(self, data: DiffusionData, streams: Streams, batch_size: int) -> None:
        self.config, self.streams, self.batch_size = data, streams, batch_size
        self.teacher: Denoiser | None = None
        self.loaded: Denoiser | None = None
        """A teacher of somebody else's, which `check` looks at."""
        self.changes_prediction = False
        """Whether the student that was built last is the teacher's network, but predicts something else."""
        self.tested: dict[str, dict[str, Any]] = {}
        """Test metrics of the roles that were evaluated so far, for the student's card."""
        self._judges: dict[tuple[str, str], Judge] = {}
        self._memory, self._answers = Memory(), Answers()
        self._encoded: dict[str, Encoded] = {}

    @classmethod
    def files(cls, data: DiffusionData) -> Iterator[Listed]:
        return listed(data)

    def data(self, split: str) -> DiffusionSource:
        images = load_split(self.config, split)
        seen = None if self.parts is None else partial(self.encoded, split)
        return DiffusionSource(self.config, split, images, self.streams, self.batch_size, seen)

    def rehearsing(self, items: int) -> DiffusionAdapter:
        """Judged by as few generated samples as can be; the splits are judged against as they are."""
        made = copy.copy(self)
        made.config = self.config.model_copy(update={"samples": max(items, FEWEST), "draws": 1})
        made.tested, made._judges, made._memory, made._answers = {}, {}, Memory(), Answers()
        for split in SPLITS:
            self.data(split)
        return made

    # ---------------------------------------------------------------- models

    @property
    def parts(self) -> Parts | None:
        """What stands beside the teacher's network in its pipeline; None where its samples are the data's own."""
        if self.teacher is not None:
            return self.teacher.parts
        folder = self.teachers["teacher"].path if "teacher" in self.teachers else None
        return None if folder is None else parts_of(folder)

    def encoded(self, split: str) -> Encoded:
        """The split as the networks of the teacher's pipeline see it."""
        if split not in self._encoded:
            assert self.parts is not None
            said = captions_of(self.config, split) if self.config.captions else None
            images, flip = load_split(self.config, split), self.config.flip and split == "train"
            self._encoded[split] = encoded(self.parts, images, said, self.config.cache.expanduser(), flip=flip)
        return self._encoded[split]

    @property
    def prompts(self) -> Prompts | None:
        """The captions of the training samples, by their numbers."""
        return prompts_of(self.encoded("train")) if self.config.captions else None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what networks see."""
        images = tuple(load_split(self.config, "train").x.shape[1:])
        return images if self.parts is None else self.parts.latent_shape(images)

    @property
    def class_labels(self) -> tuple[str, ...] | None:
        """Names of the classes that models are conditioned on."""
        if not self.config.conditional:
            return None
        names = load_split(self.config, "train").class_names
        assert names is not None
        return names

    def build(self, role: str, model: str, params: Mapping[str, Any]) -> Denoiser:
        config = MODELS[model].Config.model_validate(params)
        if model == "like_teacher" and (self.teacher is None or is_teacher(role)):
            raise UserError(f"{role}.model: like_teacher is a student's, and needs a teacher in the recipe")
        if is_teacher(role) and self.config.captions:
            raise UserError("data.captions: a teacher that the recipe trains takes no text: give teacher.path")
        names = self.class_labels
        null = None if self.teacher is None else self.teacher.null_class
        made = Denoiser(
            built(model, config, self.shape, names, self.teacher), self._process(),
            config.prediction or self._prediction(role), self.shape, classes=None if names is None else len(names),
            class_names=names, sampling=self._sampling(), null=null, parts=self.parts,
        )  # fmt: skip
        if role == "student" and self.teacher is not None:
            same = same_network(self.teacher, made, prediction=False)
            self.changes_prediction = same and self.teacher.prediction != made.prediction
        return self._known(role, made)

    def _sampling(self) -> Sampling:
        return Sampling(self.config.sampling.solver, self.config.sampling.steps)

    def _prediction(self, role: str) -> str:
        """A student predicts what its teacher does, but v for epsilon where its method cannot tell x from that."""
        if is_teacher(role) or self.teacher is None:
            return self.config.process.prediction or self._process().natural
        keeps = getattr(METHODS[self.method], "keeps_epsilon", False) and tells_x(self.teacher.process)
        return "v_prediction" if self.teacher.prediction == "epsilon" and not keeps else self.teacher.prediction

    def _process(self) -> Process:
        if self.teacher is not None:
            return self.teacher.process
        wanted = self.config.process
        if wanted.schedule in ("edm", "flow"):
            return process_of({"kind": wanted.schedule, "steps": wanted.steps})
        return Process.cosine(wanted.steps) if wanted.schedule == "cosine" else Process.linear(wanted.steps)

    def load(self, role: str, folder: Path) -> Denoiser:
        if is_teacher(role):
            refuse_few_step(folder)
        own = self.config.process if "process" in self.config.model_fields_set else None
        schedule = (self._process(), own.prediction or self._process().natural) if own is not None else None
        image, how = load_split(self.config, "train").x.shape[1:], self._sampling() if is_teacher(role) else None
        model = load_denoiser(folder, sampling=how, schedule=schedule, image=image)
        check_loaded(model, role, folder, self.config, self.class_labels)
        if is_teacher(role):
            check_guidance(model, self.config.sampling.guidance)
            model.guidance, self.loaded = self.config.sampling.guidance, model
        return self._known(role, model)

    def traps(self, batch: Batch) -> Iterator[tuple[Literal["pass", "warn", "fail"], str, str]]:
        """Of a teacher that was loaded: whether it denoises the data, and better so than otherwise."""
        if self.loaded is not None:
            yield from trust(self.loaded, batch)
        if self.changes_prediction and self.teacher is not None:
            told = f"the teacher predicts {self.teacher.prediction}, the student v_prediction: matching it comes first"
            yield "pass", f"{told}, for train.steps steps unless method.params.features says otherwise", ""

    def _known(self, role: str, model: Denoiser) -> Denoiser:
        """What would only be refused after the training is refused now."""
        check_saveable(model, self.config)
        if is_teacher(role):
            self.teacher = model
        return model

    def class_names(self, role: str) -> Sequence[str]:
        return self.class_labels or ("sample",)

    # ---------------------------------------------------------------- signals

    def signals(self, role: str, model: nn.Module, batch: Batch, features: Sequence[str] = ()) -> Signals:
        """As `said`: v said and true, and captured features."""
        return said(cast(Denoiser, model), batch, features)

    def views_differ(self) -> str | None:
        return "each has a noise and a time of its own, which decide what is predicted: choose ema_teacher"

    def answer(self, role: str, model: nn.Module, batch: Batch) -> Tensor:
        """A sample at the role's own budget, from the batch's noise."""
        return self.finished(cast(Denoiser, model).sample(batch["noise"], batch.get("labels")))

    # ---------------------------------------------------------------- evaluation

    def judge(self, split: str, device: torch.device) -> Judge:
        """Of samples against the images of `split`."""
        key = (split, str(device))
        if key not in self._judges:
            self._judges[key] = judge_of(self.config, split, device)
        return self._judges[key]

    def evaluate(self, role: str, model: nn.Module, split: str) -> Evaluation:
        """Means over draws of `samples` samples each (one draw on dev), and seconds of computing an image."""
        found = self.measure(cast(Denoiser, model), split)
        if role == "student" and self.teacher is not None:
            guard = guarded(self, self.teacher, cast(Denoiser, model))
            found = replace(found, metrics={**found.metrics, **guard})
        if split == "test":
            # as the card tells them: what a clock says differs from run to run, and is the report's
            told = {k: v for k, v in found.metrics.items() if k != "seconds_per_image"}
            self.tested[role] = {k: v for k, v in told.items() if isinstance(v, int | float)}
        return found

    def measure(self, model: Denoiser, split: str, against: Sequence[Tensor] = ()) -> Evaluation:
        """As `evaluate`; `against` are a teacher's samples of each draw, for ``paired_error``."""
        draws = self.config.draws if split == "test" else 1
        found, seconds = [], 0.0
        for draw in range(draws):
            drawn = self._drawn(model, draw)
            seconds += drawn.seconds
            one = drawn.measured(split, partial(self._judged, split))
            found.append(one | ({"paired_error": paired_error(drawn.samples, against[draw])} if against else {}))
        metrics: dict[str, Any] = {key: sum(m[key] for m in found) / draws for key in found[0]}
        how = model.sampling
        metrics |= {"nfe": model.nfe, "solver": how.solver, "steps": how.steps, "parameter_evaluations": model.price}
        metrics["seconds_per_image"] = seconds / draws / self.config.samples
        _, low, high = t_interval([m[self.metric[0]] for m in found])
        if low is not None:
            metrics |= {f"{self.metric[0]}_interval": [low, high], f"{self.metric[0]}_interval_over": "draws of noise"}
        scores = [Score(f"draw-{draw}", split, m[self.metric[0]], 1.0) for draw, m in enumerate(found)]
        return Evaluation(metrics, scores)

    def _judged(self, split: str, samples: Tensor) -> dict[str, float]:
        found = self.judge(split, samples.device).measure(samples, self.labels(samples.device))
        return found | seen_by_others(self.config, split, samples)

    def noise(self, draw: int) -> Tensor:
        """The same for every role: ``(samples, *shape)`` on the CPU."""
        generator = self.streams.torch("evaluation noise", draw)
        return torch.randn(self.config.samples, *self.shape, generator=generator)

    def labels(self, device: torch.device | str = "cpu") -> Tensor | None:
        """Class of each sample: as many of every one, or those of the images whose captions are the prompts."""
        names, count = self.class_labels, torch.arange(self.config.samples, device=device)
        if names is not None:
            return count % len(names)
        known = load_split(self.config, "dev").labels if self.config.captions else None
        return None if known is None else torch.from_numpy(known).to(device)[count % len(known)]

    def conditions(self, part: slice, device: torch.device | str) -> Condition | None:
        """What samples `part` are told: their classes, or the captions of the dev images in turn."""
        if not self.config.captions:
            labels = self.labels(device)
            return None if labels is None else rows(labels, part)
        found = self.encoded("dev")
        assert found.index is not None
        return moved(text_of(found, np.arange(part.start, part.stop) % len(found.index)), device)

    def finished(self, x: Tensor) -> Tensor:
        """Images of what a network made, or the samples themselves; all but latents clamped."""
        x = x if self.parts is None else self.parts.decode(x)
        return x if self.config.latents else x.clamp(-1, 1)

    def sample(self, model: Denoiser, draw: int = 0, count: int | None = None) -> Tensor:
        """The first `count` samples of a draw, on the model's device; all but latents clamped."""
        if count is None:
            return self._drawn(model, draw).samples
        return self._memory.first(model, draw, lambda: self._sample(model, draw, count), count)

    def _drawn(self, model: Denoiser, draw: int) -> Drawn:
        return self._memory.of(model, draw, lambda: self._sample(model, draw))

    def _sample(self, model: Denoiser, draw: int, count: int | None = None) -> tuple[Tensor, float]:
        device = next(model.parameters()).device
        noise = self.noise(draw)[:count]
        made, ask = list[Tensor](), self._answers.of(model)
        start, spared = perf_counter(), self._answers.spared
        for part in _slices(len(noise), self.config.batch):
            generator = self.streams.torch("evaluation steps", draw, part.start)
            given = self.conditions(part, device)
            z = noise[part].to(device)
            made.append(self.finished(model.sample(z, given, generator=generator, predict=ask(given, part.start))))
        samples = torch.cat(made)
        samples.sum().item()  # the clock stops when the device is done
        # what was asked before counts as it took
        return samples, perf_counter() - start + self._answers.spared - spared

    def untrained_control(self, teacher: nn.Module, student: nn.Module) -> Denoiser:
        """The teacher at the student's number of evaluations, by the solver that does best on dev."""
        control = copy.copy(cast(Denoiser, teacher))
        best: tuple[float, Sampling] | None = None
        for solver in SOLVERS:
            steps = most_steps(solver, max(1, cast(Denoiser, student).nfe // control.cost))
            control.sampling = Sampling(solver, steps)
            score = self.evaluate("control", control, "dev").metrics[self.metric[0]]
            if best is None or score < best[0]:
                best = (score, control.sampling)
        assert best is not None
        control.sampling = best[1]
        return control

    def overview(self, models: Mapping[str, nn.Module], folder: Path) -> Overview:
        return overview(self, {role: cast(Denoiser, model) for role, model in models.items()}, folder)

    def show(self, models: Mapping[str, nn.Module], folder: Path) -> Sequence[Panel]:
        return show(self, {role: cast(Denoiser, model) for role, model in models.items()}, folder)

    def glimpse(self, role: str, model: nn.Module) -> Sequence[Panel]:
        return glimpse(self, role, cast(Denoiser, model))

    # ---------------------------------------------------------------- files

    def save(self, role: str, model: nn.Module, folder: Path) -> None:
        """A diffusers pipeline folder. Raises `RunError` where what is read back is not what was trained."""
        self._save(cast(Denoiser, model), folder, {"role": role})
        back = load_denoiser(folder, quiet=True)
        if digest(back.net.state_dict().items()) != digest(merged(cast(Denoiser, model).net).state_dict().items()):
            raise RunError(f"{folder}: the weights read back are not those that were trained")

    def _save(self, model: Denoiser, folder: Path, facts: Mapping[str, Any]) -> None:
        known: dict[str, Any] = {"data": self.config.sources, "seed": self.streams.seed}
        known["parameters"] = model.saved_parameters
        if facts["role"] == "student" and self.teacher is not None:
            theirs = sum(p.numel() for p in self.teacher.parameters())
            known["teacher"] = (
                f"{self.teacher.nfe} evaluations by {self.teacher.sampling.solver}, {theirs:,} parameters"
            )
        if self.config.captions:
            known["prompts"] = list(dict.fromkeys(captions_of(self.config, "dev")))[:PROMPTS]
        if self.config.license is not None:
            known["license"] = self.config.license
        save_pipeline(model, folder, {**facts, **known})

    def about(self, role: str, model: nn.Module, folder: Path) -> About:
        as_onnx = read_object(folder / TABLE) if role == "student" and (folder / TABLE).is_file() else None
        return about(read_object(folder / SAMPLER), as_onnx)

    def export(self, model: nn.Module, folder: Path) -> Mapping[str, Any]:
        """The reload gate of the student and of every stage beside it, and ONNX files where the data ask for them."""
        if self.tested:
            self._save(cast(Denoiser, model), folder, {"role": "student", "metrics": self.tested})
        return gated(folder, cast(Denoiser, model), as_onnx=self.config.onnx)

    def lint(self, folder: Path) -> Iterator[tuple[Literal["warn", "fail"], str, str]]:
        """Traps of the teacher's scheduler in diffusers' own hands: our samplers do not fall into them."""
        place = bare_unet(folder)
        scheduler = folder if place is None else place[1]
        for finding in lint(folder if place is None else pipeline_of(scheduler)) if scheduler is not None else ():
            yield "warn", finding.what, finding.advice

    def declared(self, folder: Path) -> Mapping[str, Any]:
        """Of the role that ``sampler.json`` says the model was."""
        path = folder / SAMPLER
        facts = read_object(path).get("facts", {}) if path.is_file() else {}
        metrics: Mapping[str, Any] = facts.get("metrics", {})
        own: Mapping[str, Any] = metrics.get(facts.get("role", ""), metrics)
        return own

    def describe(self) -> Mapping[str, Any]:
        return {split: self.data(split).describe() for split in ("train", "dev", "test")}


def _slices(total: int, size: int) -> Iterator[slice]:
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))
