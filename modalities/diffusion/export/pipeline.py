"""A denoiser as a diffusers pipeline folder, written and read. Nothing is pickled, nothing unpickled.

A saved student needs diffusers and nothing of this package: ``model_index.json``, ``unet/``, ``scheduler/``. Beside
them lie ``sampler.json``, which says how many steps it was made for (diffusers has no field for that), and a card.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import ConsistencyModelPipeline, DDPMPipeline, DiTTransformer2DModel, UNet2DModel
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from xmodal_kd.runtime import leftovers
from xmodal_kd.runtime.checkpoint import disk_errors, read_json, read_object, write_bytes, write_json
from xmodal_kd.runtime.errors import RunError, UserError
from xmodal_kd.runtime.progress import console

from ..models.asked import is_told
from ..models.denoiser import LCM, TCD, Denoiser, Sampling
from ..models.families import INDEX, components
from ..models.lora import merged, write_adapters
from ..models.parts import Parts, parts_of
from ..models.paths import path_of, process_of
from ..models.process import Process
from .bare import bare_unet, pipeline_of, without_scheduler
from .card import card
from .foreign import foreign_parts, foreign_schedule, instead
from .network import PLAIN, read_network
from .scheduler_lint import lint
from .schedulers import saveable, scheduler_for

SAMPLER, README = "sampler.json", "README.md"
UNET, SCHEDULER = "unet", "scheduler"
#: Our samplers of the schedulers of few-step models.
FEW_STEP_SCHEDULERS = {"LCMScheduler": LCM, "TCDScheduler": TCD, "FlowMatchLCMScheduler": LCM}
#: What changes the times that a network is asked at or their noise, each with its value where it changes nothing.
PLAIN_TIMES = {"timestep_type": "discrete", "snr_shift_scale": 1.0}
#: alpha^2 at the last timestep of a schedule that leaves none there: solvers divide by it (diffusers' own remedy).
FLOOR = 2.0**-24


class Card(BaseModel):
    """What ``sampler.json`` says. Further keys are kept."""

    model_config = ConfigDict(extra="allow", frozen=True)

    format: int = Field(1, ge=1, le=1)
    solver: str
    steps: int = Field(ge=1)
    original: int = Field(0, ge=0)
    timesteps: tuple[int, ...]
    """Those that the network is asked at."""
    nfe: int = Field(ge=1)
    prediction: str
    shape: tuple[int, ...]
    classes: int | None = None
    class_names: tuple[str, ...] | None = None
    T: int = Field(ge=2)
    guidance: float = 1.0
    """Scale of classifier-free guidance that it is sampled at; what was distilled with guidance in it has 1."""
    pipeline: str | None = None
    """Its class, where it has more parts than a network and a scheduler."""
    absent: tuple[str, ...] = ()
    """Its parts that are not there, which diffusers must be told when it loads them."""
    size: tuple[int, int] | None = None
    """Height and width of its images, where its pipeline must be told them."""
    prompts: tuple[str, ...] = ()
    """Of a model that is prompted by text: some that it was made with."""
    process: dict[str, Any] = Field(default_factory=dict)
    """Of EDM and flow matching, whose scheduler is bent to the steps; see `Process.config`."""
    facts: dict[str, Any] = Field(default_factory=dict)

    @property
    def sampling(self) -> Sampling:
        """How it was measured: not as diffusers will sample it where that has no such solver (Heun's method)."""
        if measured := self.facts.get("measured_with"):
            return Sampling(measured["solver"], measured["steps"])
        return Sampling(self.solver, self.steps, self.original)


# ---------------------------------------------------------------- writing


def save_pipeline(denoiser: Denoiser, folder: Path | str, facts: Mapping[str, Any] | None = None) -> Path:
    """Write a folder that ``diffusers.DiffusionPipeline.from_pretrained`` and `load_denoiser` read.

    Whatever else lies in the folder stays. While it is written over it has no ``model_index.json``, so a half-written
    folder is no pipeline.

    Args:
        facts: how the model came to be, for ``sampler.json`` and the card (see `card`); JSON values.

    Raises:
        UserError: the network is no `UNet2DModel`, or the process has no signal left at its last timestep.
        RunError: the written pipeline would not sample as the trainer does (see `lint`).
    """
    folder, net = Path(folder), merged(denoiser.net)
    if denoiser.parts is None and not isinstance(net, UNet2DModel):
        raise UserError(f"{folder}: only a UNet2DModel can be saved as a diffusers pipeline, not {type(net).__name__}")
    saved = saveable(denoiser.sampling, denoiser.process)
    about = describe(denoiser, saved, facts or {})
    place = folder.absolute()
    temporary = leftovers.temporary(place)
    with disk_errors(folder):
        for rest in place.parent.glob(f".{place.name}.*.tmp"):  # of a killed process
            shutil.rmtree(rest, ignore_errors=True)
        try:
            given = denoiser.parts is not None and denoiser.parts.family.packed
            scheduler = scheduler_for(denoiser.process, denoiser.prediction, saved, given=given)
            if denoiser.parts is None:
                _write_plain(denoiser, net, scheduler, temporary)
            else:
                _write_whole(net, scheduler, denoiser.parts, temporary)
                write_adapters(denoiser.net, temporary)
            write_json(temporary / SAMPLER, about.model_dump())
            write_bytes(temporary / README, card(about.model_dump()).encode())
            if found := [finding for finding in lint(temporary) if finding.status == "fail"]:
                raise RunError(f"{folder}: the saved pipeline would sample otherwise: {found[0]}")
            _publish(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _write_plain(denoiser: Denoiser, net: Any, scheduler: Any, folder: Path) -> None:
    """Of a network that stands alone."""
    square = denoiser.shape[-2] == denoiser.shape[-1]
    if square and not isinstance(net.config.sample_size, int):  # pipelines for consistency models want one number
        net.register_to_config(sample_size=denoiser.shape[-1])
    # DDPMPipeline keeps the scheduler, but knows no classes; the other one wants to know where flow matching starts
    kind = DDPMPipeline if denoiser.process.kind == "flow" or not square else ConsistencyModelPipeline
    kind(net, scheduler).save_pretrained(folder, safe_serialization=True)


def _write_whole(net: Any, scheduler: Any, parts: Parts, folder: Path) -> None:
    """A pipeline of the class that the parts are of, with copies of them."""
    made = {parts.family.place: net, "scheduler": scheduler}
    index = read_object(parts.folder / INDEX) | {name: ["diffusers", type(one).__name__] for name, one in made.items()}
    if "steps_offset" in scheduler.config:  # of leading spacing alone; pipelines warn where it is not this
        scheduler.register_to_config(steps_offset=1)
    parts.copy_to(folder)
    net.save_pretrained(folder / parts.family.place, safe_serialization=True)
    scheduler.save_pretrained(folder / SCHEDULER)
    write_json(folder / INDEX, index)


def describe(denoiser: Denoiser, sampling: Sampling, facts: Mapping[str, Any]) -> Card:
    """The card of a denoiser that is saved to be sampled so."""
    told, parts = {key: value for key, value in facts.items() if key != "prompts"}, denoiser.parts
    size = parts.image_shape(denoiser.shape)[1:] if parts is not None and parts.family.called else None
    if sampling != denoiser.sampling:  # Heun's method
        told["measured_with"] = {"solver": denoiser.sampling.solver, "steps": denoiser.sampling.steps}
    return Card(
        solver=sampling.solver, steps=sampling.steps, original=sampling.original,
        nfe=sampling.nfe * denoiser.cost, guidance=denoiser.guidance,
        pipeline=None if parts is None else parts.kind, size=size,
        absent=() if parts is None else parts.absent, prompts=tuple(facts.get("prompts", ())),
        timesteps=sampling.times(denoiser.process)[:-1], prediction=denoiser.prediction, shape=denoiser.shape,
        classes=denoiser.classes, class_names=denoiser.class_names, T=denoiser.process.T,
        process=denoiser.process.config(), facts=told,
    )  # fmt: skip


def _publish(temporary: Path, folder: Path) -> None:
    """Move a complete pipeline to its place; over an older one the index, which makes it a pipeline, comes last."""
    if not folder.exists():
        temporary.rename(folder)
        return
    (folder / INDEX).unlink(missing_ok=True)
    for name in sorted((path.name for path in temporary.iterdir()), key=lambda name: name == INDEX):
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
        (temporary / name).replace(folder / name)


# ---------------------------------------------------------------- reading


def load_denoiser(
    folder: Path | str, *, sampling: Sampling | None = None, quiet: bool = False,
    schedule: tuple[Process, str] | None = None, image: Sequence[int] | None = None,
) -> Denoiser:  # fmt: skip
    """The denoiser of a diffusers pipeline folder, ours or another's, on the CPU in eval mode, in float32.

    Args:
        sampling: how it is to be sampled; None: as its ``sampler.json`` says, else by DDIM with 64 steps, a few-step
            model of another's (LCMScheduler, TCDScheduler) with 4.
        quiet: say nothing of the scheduler's traps (see `lint`).
        schedule: process and prediction type of a UNet that no scheduler lies beside, as in a training checkpoint.
        image: ``(..., H, W)`` of those that it is to make, where no ``sampler.json`` says it: of a network that makes
            any, and of a scheduler whose shift hangs on it.

    Raises:
        UserError: one line about what is missing, damaged, or cannot be distilled.
    """
    folder = Path(folder)
    parts = parts_of(folder)
    place = UNET if parts is None else parts.family.place
    unet, scheduler = bare_unet(folder) or (folder / place, folder / SCHEDULER)
    if unet == folder / place and scheduler == folder / SCHEDULER:
        _check_index(folder, parts)
    own, config = _own_card(folder), dict[str, Any]()
    latent = () if parts is None else own.shape if own else parts.latent_shape(image)
    counted = latent if parts is None or own or image is None else parts.latent_sides(image)
    if scheduler is not None:
        process, prediction, config = _process(scheduler, None if parts is None else parts.tokens(counted))
    elif schedule is not None:
        process, prediction = schedule
    else:
        raise UserError(without_scheduler(unet))
    if parts is not None and process.kind != parts.family.kind:
        raise UserError(
            f"{folder}: its scheduler is of {process.kind}, that of such a pipeline must be of {parts.family.kind}: "
            "save it so"
        )
    net = read_network(unet, process, PLAIN if parts is None else parts.family)
    if own and own.process and process.kind != "vp":
        process = _own_process(folder, own, process)
    if own and (own.T, own.prediction) != (process.T, prediction):
        raise UserError(
            f"{folder}: {SAMPLER} says {own.prediction} on {own.T} timesteps, its scheduler {prediction} on {process.T}"
        )
    if parts is not None and parts.family.packed:
        shape = latent
    else:
        size, channels = net.config.sample_size, net.config.in_channels
        shape = (channels, size, size) if isinstance(size, int) else (channels, *size)
    classes, null = _classes(net, own)
    names = own.class_names if own and own.classes == classes else None
    try:
        how = sampling or (own.sampling if own else _sampling(config, process))
        how.times(process)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error
    steps = how.steps if own else None
    if not quiet and scheduler is not None and (found := lint(pipeline_of(scheduler), steps=steps)):
        text = f"{folder}: in diffusers' own hands: {'; '.join(map(str, found))}"
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    usual = (PLAIN if parts is None else parts.family).guidance if is_told(net) else 1.0
    return Denoiser(
        net, process, prediction, shape, classes=classes, class_names=names, sampling=how, null=null,
        guidance=own.guidance if own else usual, parts=parts,
    ).eval()  # fmt: skip


def _classes(net: Any, own: Card | None) -> tuple[int | None, torch.Tensor | None]:
    """How many classes a network knows, and the number that stands for none of them, if there is one."""
    if isinstance(net, DiTTransformer2DModel):
        count = int(net.config.num_embeds_ada_norm)
        tables = [module.num_embeddings for name, module in net.named_modules() if name.endswith("embedding_table")]
        return count, torch.tensor([count]) if tables and tables[0] == count + 1 else None
    count = net.config.get("num_class_embeds")
    if own is not None and own.classes is not None and count == own.classes + 1:
        return own.classes, torch.tensor([own.classes])
    return count, None


def network_folder(folder: Path) -> Path:
    """Where the weights of a saved pipeline's network lie."""
    parts = parts_of(folder)
    return folder / (UNET if parts is None else parts.family.place)


def few_step(folder: Path) -> str | None:
    """The scheduler's class where a folder holds a model for few steps, of ours or another's; None for others."""
    place = bare_unet(folder)
    path = ((place[1] if place else None) or folder / SCHEDULER) / "scheduler_config.json"
    name = str(_object(path).get("_class_name")) if path.is_file() else ""
    return name if name in FEW_STEP_SCHEDULERS else None


def refuse_few_step(folder: Path) -> None:
    """Raises `UserError` for a folder of a model for few steps, which is no teacher."""
    if (few := few_step(folder)) is not None:
        raise UserError(
            f"{folder}: a few-step model ({few}), which jumps where a teacher of many steps goes: "
            "give the model that it was distilled from as the teacher (xmodal-kd sample draws from this one as it is)"
        )


def _check_index(folder: Path, parts: Parts | None) -> None:
    if not folder.is_dir():
        what = "a file" if folder.is_file() else "no such folder"
        raise UserError(
            f"{folder}: {what}: "
            + (
                instead(folder)
                or f"a diffusers pipeline is a folder with {INDEX}, nothing is fetched (hf download NAME --local-dir "
                "FOLDER brings a published one)"
            )
        )
    if not (folder / INDEX).is_file():
        held = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "nothing"
        what = instead(folder) or "save one there with pipeline.save_pretrained(folder)"
        raise UserError(f"{folder}: not a diffusers pipeline: it has no {INDEX}, it holds {held}: {what}")
    there = components(_object(folder / INDEX))
    if parts is None and (refusal := foreign_parts(there)):
        raise UserError(f"{folder / INDEX}: {refusal}")
    if "scheduler" not in there:
        raise UserError(f"{folder / INDEX}: names no scheduler: the noise schedule is unknown")


def _own_card(folder: Path) -> Card | None:
    path = folder / SAMPLER
    if not path.is_file():
        return None
    try:
        return Card.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UserError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def _own_process(folder: Path, own: Card, there: Process) -> Process:
    """The one that the model was trained on. Raises `UserError` where the scheduler is of another kind."""
    try:
        process = process_of(own.process)
    except UserError as error:
        raise UserError(f"{folder / SAMPLER}: {error}") from error
    if process.kind != there.kind:
        raise UserError(f"{folder}: {SAMPLER} says {process.kind}, its scheduler is of {there.kind}")
    return process


def _process(scheduler: Path, tokens: int | None = None) -> tuple[Process, str, dict[str, Any]]:
    """The process, the prediction type and the configuration of a scheduler's folder; `tokens` as `path_of`."""
    path = scheduler / "scheduler_config.json"
    config = _object(path)
    # before diffusers 0.8 a scheduler said it so
    usual = "sample" if config.get("predict_epsilon") is False else "epsilon"
    prediction = config.get("prediction_type", usual)
    if strange := next((key for key, plain in PLAIN_TIMES.items() if config.get(key, plain) != plain), None):
        raise UserError(f"{path}: {strange} is {config[strange]!r}, which is not understood: use a teacher without it")
    try:
        found = path_of(config, tokens)
    except (UserError, TypeError, ValueError) as error:
        raise UserError(f"{path}: {error}") from error
    if found is not None:
        return *found, config
    if refusal := foreign_schedule(str(config.get("_class_name", ""))):
        raise UserError(f"{path}: {refusal}")
    if config.get("use_flow_sigmas") or prediction == "flow_prediction":
        raise UserError(f"{path}: flow matching by a scheduler with betas: save FlowMatchEulerDiscreteScheduler")
    if prediction not in Process.predictions:
        known = ", ".join(Process.predictions)
        raise UserError(f"{path}: prediction_type {prediction!r} is not one of {known}: use a teacher of one of these")
    try:
        process = Process.from_scheduler(config)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: its schedule is damaged: {error}") from error
    if (steps := int(config["num_train_timesteps"])) != process.T:
        raise UserError(
            f"{path}: trained_betas holds {process.T:,} and num_train_timesteps is {steps:,}: they must be as many: "
            "correct the one that is wrong"
        )
    table = process.alphas_cumprod
    if float(table[-1]) == 0:
        if prediction == "epsilon":
            raise UserError(
                f"{path}: cannot be distilled: epsilon prediction with zero terminal SNR: at the last timestep nothing "
                "is known of x; use a teacher with v_prediction or sample"
            )
        last = table[-1:].clone().fill_(min(FLOOR, float(table[-2]) / 4))
        process = Process(torch.cat([table[:-1], last]))
    return process, prediction, config


def _sampling(config: Mapping[str, Any], process: Process) -> Sampling:
    if (solver := FEW_STEP_SCHEDULERS.get(str(config.get("_class_name")))) is not None:
        original = int(config.get("original_inference_steps", 64 if process.kind == "flow" else 50))
        return Sampling(solver, min(4, original), original)
    return Sampling("ddim", min(64, process.T))


def _object(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: a JSON object belongs here, not {type(content).__name__}")
    return content


__all__ = ["Card", "few_step", "load_denoiser", "network_folder", "refuse_few_step", "save_pipeline"]
