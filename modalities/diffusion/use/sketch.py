"""A recipe for a diffusion model's folder and samples like those it makes: image size, process, a grid that halves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from diffusers import UNet2DModel

from xmodal_kd.adapter.images.found import Found, shown
from xmodal_kd.adapter.sketch import Given, Looking, Noted, Sketch
from xmodal_kd.runtime.errors import UserError, nearest, with_page

from ..data.captions import METADATA, SUFFIX, has_captions
from ..data.config import ProcessConfig
from ..data.found import HELP, samples
from ..export.bare import bare_unet
from ..export.pipeline import load_denoiser, refuse_few_step
from ..methods.progressive import check_grids
from ..models.denoiser import Denoiser, Sampling
from ..models.process import Process
from .like import like

BATCH = 64
#: Most steps that the teacher is sampled with and steps of the last student, of generated samples for an evaluation.
STEPS, END, GENERATED = (16, 32, 64), (4, 2, 1), (200, 500, 1000)
#: Channels of a level of teachers that are trained here, by size; group norms have eight groups.
WIDTHS, GROUPS = (16, 32, 64), 8
#: Sides at the lowest resolution of such a teacher, and its levels.
LOWEST, LEVELS = 4, 3
#: How many stages long a narrower student learns its teacher's answers, and a teacher is trained.
FEATURES = 4
#: What diffusers' training script trains, for a network beside which no scheduler lies.
UNSAID = {"schedule": "linear", "steps": 1000, "prediction": "epsilon"}
WIDER = "a narrower network than the teacher's learns its answers first (features)"


@dataclass(frozen=True)
class Sampler:
    """What a teacher's folder says of it; `unsaid` where no scheduler lies there."""

    folder: Path
    model: Denoiser
    unsaid: bool


def sketch(given: Given) -> Sketch:
    """The parts of a recipe, or what stands in its way."""
    looking, into_data, teacher, found = Looking(), Looking(), None, None
    if given.data is not None:
        with into_data.on():
            found = samples(given.data)
    if given.teacher is not None:
        with looking.on():
            teacher = _teacher(given.teacher, looking, found)
    with looking.on():
        if given.data is None:
            raise UserError(_needed(teacher))
    looking.problems += into_data.problems
    if teacher is not None and found is not None and given.data is not None:
        looking.problems += _clashes(teacher, found)
        if teacher.model.prompted and not (found.captions or has_captions(given.data)):
            looking.problems.append(
                f"{teacher.folder} is prompted by text, and {given.data} has no captions: write {METADATA} there, or a "
                f"{SUFFIX} beside each image ({HELP})"
            )
    if looking.problems or found is None:
        return Sketch(problems=tuple(looking.problems))
    try:
        sections = _sections(given, teacher, found)
    except UserError as error:
        return Sketch(problems=(with_page(error),))
    said = "a teacher that it trains itself" if teacher is None else str(teacher.folder)
    looking.notes += found.notes
    return Sketch(f"A sampler of few steps of {given.data}, distilled from {said}.", sections, tuple(looking.notes))


def _teacher(folder: Path, looking: Looking, found: Found | None) -> Sampler:
    refuse_few_step(folder)
    place = bare_unet(folder)
    unsaid = place is not None and place[1] is None
    process = Process.linear(UNSAID["steps"])  # type: ignore[arg-type]
    schedule = (process, str(UNSAID["prediction"])) if unsaid else None
    image = None if found is None else found.shape
    model = load_denoiser(folder, sampling=Sampling("ddim", 1), quiet=True, schedule=schedule, image=image)
    if unsaid:
        looking.notes.append(
            f"{folder} has no scheduler, so its schedule and prediction type are those of diffusers' training script "
            "(data.process): the line data of xmodal-kd check says whether another reading denoises better"
        )
    return Sampler(folder, model, unsaid)


def _needed(teacher: Sampler | None) -> str:
    makes = "" if teacher is None else f" of {shown(teacher.model.shape)}, as the teacher makes,"
    return f"--data is missing: a folder of images{makes} an EDM zip or an .npz: {HELP} says how it is laid out"


def _clashes(teacher: Sampler, found: Found) -> list[str]:
    """Where samples are not what the teacher makes, a line each."""
    model, lines = teacher.model, []
    made = model.shape if model.parts is None else model.parts.image_shape(model.shape)
    if made != found.shape:
        lines.append(
            f"{teacher.folder} makes samples of {shown(made)}, the data's are {shown(found.shape)}: resize or "
            "convert them, or bring the teacher of these"
        )
    return lines + _other_classes(model, teacher.folder, found.classes)


def _other_classes(model: Denoiser, folder: Path, have: Sequence[str] | None) -> list[str]:
    """Why a run could not bring a teacher's classes and the data's together; those of one name it does."""
    known, count = model.class_names, model.classes
    if count is None or (have is not None and _last_is_none(model, have)):
        return []
    if have is None or len(have) > count:
        held = "no labels" if have is None else f"{len(have)} classes"
        return [
            f"{folder} is conditioned on {count} classes, the data have {held}: give a subfolder for each class, in "
            f"its order ({HELP})"
        ]
    if known is not None:
        new = [name for name in have if name not in known]
        return [f"{folder} knows no class {new[0]!r}{nearest(new[0], known)}: rename the data's"] if new else []
    if len(have) == count:
        return []
    return [
        f"{folder} knows {count} classes by number, the data have {len(have)}: leave --teacher out, and in that recipe "
        f"set teacher to {{path: {folder}}}, data.conditional to true and say in data.teacher_classes which number "
        f"each folder has, as {{{have[0]}: 0}}"
    ]


def _last_is_none(model: Denoiser, have: Sequence[str]) -> bool:
    """Whether a network of one class more than the data is taken to know that of no class, by which it is guided."""
    return model.null is None and model.class_names is None and model.classes == len(have) + 1


def _sections(given: Given, teacher: Sampler | None, found: Found) -> dict[str, Any]:
    size, batch = given.size, min(BATCH, found.train)
    if teacher is not None:
        process, named = teacher.model.process, f"{teacher.model.prediction} on {teacher.model.process.T} timesteps"
    else:
        process, named = Process.cosine(ProcessConfig().steps), "the cosine process of the teacher that is trained here"
    start = halving(process, STEPS[size.at], END[size.at])
    data: dict[str, Any] = dict(found.section)
    data |= found.splits
    data["conditional"] = _conditional(teacher, found)
    if teacher is not None and teacher.model.prompted:
        data["captions"] = Noted(
            True,
            f"{teacher.folder} is prompted by text: "
            + ("it lies beside each image" if found.captions else "metadata.jsonl, or a .txt beside each image"),
        )
    if teacher is not None and teacher.unsaid:
        data["process"] = Noted(dict(UNSAID), "nothing in the teacher's folder says so: see the head of this file")
    data["samples"] = Noted(GENERATED[size.at], "generated for each evaluation")
    data["draws"] = Noted(3, "evaluations on test, for intervals")
    sampling: dict[str, Any] = {"solver": "ddim", "steps": start}
    if teacher is not None and teacher.model.prompted and teacher.model.parts is not None:
        sampling["guidance"] = teacher.model.parts.family.guidance
    data["sampling"] = Noted(sampling, f"the teacher's ({named}); these steps halve to whole timesteps")
    steps = size.steps(found.train, batch)
    return {
        "data": data,
        **_roles(given, teacher, found, steps, batch),
        **_training(given, teacher, found, steps, batch),
    }


def _conditional(teacher: Sampler | None, found: Found) -> Noted:
    """Whether models are told the class."""
    if teacher is not None and teacher.model.prompted:
        return Noted(False, "captions take the place of classes")
    if teacher is not None:
        classes, takes = teacher.model.classes, f"{teacher.folder} takes {teacher.model.classes or 'no'} classes"
        if found.classes is not None and _last_is_none(teacher.model, found.classes):
            takes += ", the last of which is taken for that of none: data.sampling.guidance may be above 1"
        return Noted(classes is not None, takes)
    if found.classes is None:
        return Noted(False, "no labels were found")
    if len(set(found.shape[1:])) > 1:
        return Noted(False, "no pipeline takes classes for images that are not square")
    return Noted(True, f"on the {len(found.classes)} classes that were found")


def halving(process: Process, most: int, end: int) -> int:
    """The most steps, up to `most`, that halve to `end` with every student's times among its teacher's.

    Raises `UserError` where no grid of the process does.
    """
    good = end
    for k in count(1):
        steps = end * 2**k
        if steps > min(most, process.T):
            break
        try:
            check_grids(process, steps // 2)
        except UserError:
            break
        good = steps
    if good == end:
        raise UserError(f"{process.T} timesteps cannot be halved to {end} steps: take a teacher with more")
    return good


def _roles(given: Given, teacher: Sampler | None, found: Found, steps: int, batch: int) -> dict[str, Any]:
    whole = teacher is not None and not isinstance(teacher.model.net, UNet2DModel)
    channels = [] if whole else _channels(teacher, found, given.size.at)
    if teacher is not None:
        taught: Any = {
            "path": Noted(
                str(teacher.folder), f"as given by --teacher: {teacher.model.prediction}, {shown(found.shape)}"
            )
        }
    else:
        taught = {
            "model": Noted("unet", "no --teacher was given: one is trained here first"),
            "params": Noted({"channels": channels}, f"a level halves the {'x'.join(map(str, found.shape[1:]))} pixels"),
            "train": Noted(
                {"steps": FEATURES * steps, "batch_size": batch, "optimizer": {"name": "adam", "lr": 2e-3},
                 "ema": 0.995, "eval_every": steps},
                "four times as long as a stage of the student",
            ),
        }  # fmt: skip
    student: dict[str, Any] = {"model": Noted("like_teacher", "starts as a copy of it and takes fewer steps")}
    if given.like is not None:
        student = {"model": Noted(given.like.model, given.like.why), "params": dict(given.like.params)}
    elif given.size.at == 0 and not whole:
        narrow = [max(GROUPS, width // 2 // GROUPS * GROUPS) for width in channels]
        student = {"model": Noted("unet", WIDER), "params": Noted({"channels": narrow}, f"half of {channels}")}
    return {"teacher": taught, "student": student}


def _channels(teacher: Sampler | None, found: Found, at: int) -> list[int]:
    """Widths of the teacher's levels, the number of which its images can be halved."""
    if teacher is not None:
        net = teacher.model.net
        assert isinstance(net, UNet2DModel)
        return list(net.config.block_out_channels)
    if len(found.shape) != 3:
        raise UserError(
            f"samples of shape {found.shape}: a network is made for (channels, height, width): reshape them"
        )
    levels = 1
    while levels < LEVELS and all(side % 2**levels == 0 and side // 2**levels >= LOWEST for side in found.shape[1:]):
        levels += 1
    return [WIDTHS[at] * 2**level for level in range(levels)]


def _training(given: Given, teacher: Sampler | None, found: Found, steps: int, batch: int) -> dict[str, Any]:
    end = END[given.size.at]
    whole = teacher is not None and not isinstance(teacher.model.net, UNet2DModel)
    params: dict[str, Any] = {"end": end}
    terms: list[Any] = [Noted({"loss": "denoising", "on": "prediction"}, "what trains a teacher")]
    own = given.like.model != "like_teacher" if given.like is not None else given.size.at == 0 and not whole
    if own:
        params["features"] = FEATURES * steps
        terms.append(Noted({"loss": "hint", "on": "prediction"}, "the teacher's answer, in the stage of features"))
    way = {"name": "progressive", "params": params}, f"halves the steps, stage by stage, to {end}; or consistency, ect"
    if teacher is not None and teacher.model.prompted:
        way = {"name": "lcm", "params": {"steps": 4}}, "its guidance is distilled with it; or progressive, dmd2"
    return {
        "method": Noted(*way),
        "objective": terms,
        "train": {
            "steps": Noted(steps, f"of each stage, the last two twice as long; {given.size.why(found.train, batch)}"),
            "batch_size": Noted(batch, "what an optimizer step sees; accumulate: 2 computes it in halves"),
            "optimizer": {"name": "adam", "lr": 5e-4},
            "schedule": {"kind": "linear"},
            "eval_every": 2 * steps,
        },
    }


__all__ = ["halving", "like", "sketch"]
