"""What ``xmodal-kd sample`` does: find the model for a number of steps, sample it, write what came out."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from xmodal_kd.runtime.allocation import bounded
from xmodal_kd.runtime.checkpoint import read_object, write_bytes
from xmodal_kd.runtime.device import make_accelerator
from xmodal_kd.runtime.errors import UserError, nearest
from xmodal_kd.runtime.progress import Bar, bar

from ..data.condition import Condition, moved, rows
from ..export.pipeline import SAMPLER, load_denoiser
from ..models.denoiser import FEW_STEP, Denoiser, Sampling
from ..models.families import INDEX
from ..models.sizes import read_size, resize, sized
from ..show.pictures import pixels_of, write_grid, write_image

#: Samples drawn at once. The noise of a call depends on it, so that it is no option.
BATCH = 64
#: Samples that the grid has at most: the first.
IN_GRID = 256
STAGE = "steps-"
GRID, IMAGES, ARRAYS = "grid.png", "images", "samples.npz"


def draw(
    student: Path, steps: int | None, count: int, seed: int, label: str | None, out: Path, *,
    overwrite: bool = False, device: str = "auto", quiet: bool = False, prompts: Sequence[str] = (),
    guidance: float | None = None, size: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Sample and write; returns what was done. Raises `UserError` for each kind of misuse."""
    check_folder(out, overwrite)
    place, other = stage(student, steps), None if size is None else read_size(size)
    denoiser = load_denoiser(place, quiet=True, image=other)
    if other is not None:
        with bounded(f"--size {size}"):
            torch.empty(min(count, BATCH), denoiser.shape[0], *other, device="meta")
        resize(denoiser, other, place)
    if steps is not None:
        denoiser.sampling = with_steps(denoiser, steps, place)
    if guidance is not None:
        denoiser.guidance = with_guidance(denoiser, guidance, place)
    wanted: Condition | None = labels(denoiser, label, count, place)
    texts = asked(denoiser, prompts, place)
    denoiser.to(make_accelerator(device, "fp32").device)
    if denoiser.parts is not None and texts:
        said = denoiser.parts.prompts(texts, next(denoiser.parameters()).device)
        said = said if other is None else sized(said, other)
        wanted = rows(said, torch.arange(count) % len(texts))
    prepare(out)
    classes = wanted if isinstance(wanted, Tensor) else None
    written, seconds = write(out, run(denoiser, wanted, count, seed, quiet=quiet), classes, is_array(place, denoiser))
    how = denoiser.sampling
    told = {"model": str(place), "count": count, "seed": seed, "label": label, "solver": how.solver, "steps": how.steps}
    made = denoiser.shape if denoiser.parts is None else denoiser.parts.image_shape(denoiser.shape)
    told |= {"prompts": texts, "guidance": denoiser.guidance, "size": list(made[1:])}
    timing = {"nfe": denoiser.nfe, "seconds": seconds, "milliseconds": 1e3 * seconds / count}
    return told | timing | written


def stage(folder: Path, steps: int | None) -> Path:
    """The pipeline for `steps`: of progressive distillation each step count has its own, in ``steps-32`` and so on."""
    stages = {
        int(path.name.removeprefix(STAGE)): path
        for path in folder.glob(f"{STAGE}*")
        if path.name.removeprefix(STAGE).isdigit() and (path / INDEX).is_file()
    }
    if not stages or steps is None:
        return folder if (folder / INDEX).is_file() or not stages else stages[min(stages)]
    if (folder / SAMPLER).is_file():
        stages.setdefault(int(read_object(folder / SAMPLER).get("steps", 0)), folder)
    if steps not in stages:
        there = ", ".join(str(known) for known in sorted(stages, reverse=True))
        raise UserError(f"{folder}: no student of {steps} steps: there are students of {there}")
    return stages[steps]


def with_steps(denoiser: Denoiser, steps: int, place: Path) -> Sampling:
    """The model's own sampler with other steps. Raises `UserError` for more than there are."""
    how = Sampling(denoiser.sampling.solver, steps, denoiser.sampling.original)
    most = how.original if how.solver in FEW_STEP else denoiser.process.T
    if steps > most:
        raise UserError(f"--steps {steps}: {place} takes at most {most}")
    return how


def with_guidance(denoiser: Denoiser, scale: float, place: Path) -> float:
    """Raises `UserError` for a model that takes no scale."""
    if scale != 1 and not denoiser.guidable:
        if denoiser.classes is not None and not (place / SAMPLER).is_file():
            raise UserError(
                f"--guidance {scale:g}: nothing in {place} says which of its {denoiser.classes} classes is none:"
                " guide it by data.sampling.guidance of a recipe, whose data have one class fewer"
            )
        raise UserError(
            f"--guidance {scale:g}: {place} knows no null condition, or was distilled with guidance in it: leave it out"
        )
    return scale


def asked(denoiser: Denoiser, prompts: Sequence[str], place: Path) -> list[str]:
    """The prompts, or those that the model's card names; none for a model that takes none."""
    if not denoiser.prompted:
        if prompts:
            raise UserError(f"--prompt: {place} is not prompted by text: leave it out")
        return []
    card = read_object(place / SAMPLER) if (place / SAMPLER).is_file() else {}
    found = list(prompts) or [str(text) for text in card.get("prompts", ())]
    if not found:
        raise UserError(f"--prompt is missing: {place} is prompted by text: say what it shall show")
    return found


def labels(denoiser: Denoiser, label: str | None, count: int, place: Path) -> Tensor | None:
    """``(count,)`` of the class asked for, or of all in turn; None for an unconditional model."""
    if denoiser.classes is None:
        if label is not None:
            raise UserError(f"--label {label}: {place} is not conditioned on classes: leave it out")
        return None
    if label is None:
        return torch.arange(count) % denoiser.classes
    names = list(denoiser.class_names or ())
    if label in names:
        return torch.full((count,), names.index(label))
    if label.isdecimal() and int(label) < denoiser.classes:
        return torch.full((count,), int(label))
    known = nearest(label, names) if names else ""
    raise UserError(f"--label {label}: {place} has the classes 0 to {denoiser.classes - 1}{known}")


def run(denoiser: Denoiser, wanted: Condition | None, count: int, seed: int, *, quiet: bool) -> Iterator[Tensor]:
    """``(up to 64, *shape)`` on the CPU, `count` in all, images where it has an autoencoder.

    One CPU generator gives all noise, so devices differ by rounding only.

    Up to 64 samples are those of the saved pipeline called with the same generator.
    """
    device = next(denoiser.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    calls = denoiser.sampling.nfe
    total = -(-count // BATCH) * calls
    with bar("sample", total, quiet=quiet or total == calls < BATCH) as shown, _counted(denoiser, shown):
        for start in range(0, count, BATCH):
            part = slice(start, min(start + BATCH, count))
            noise = torch.randn(part.stop - part.start, *denoiser.shape, generator=generator).to(device)
            given = None if wanted is None else moved(rows(wanted, part), device)
            x = denoiser.sample(noise, given, generator=generator).float()
            yield (x if denoiser.parts is None else denoiser.parts.decode(x)).cpu()


class _counted:
    """Each network evaluation moves the bar on by one."""

    def __init__(self, denoiser: Denoiser, shown: Bar) -> None:
        self.net, self.shown, self.done = denoiser.net, shown, 0

    def __enter__(self) -> None:
        self.handle = self.net.register_forward_hook(self.step)

    def step(self, *_: Any) -> None:
        self.done += 1
        self.shown.update(self.done, {})

    def __exit__(self, *_: Any) -> None:
        self.handle.remove()


def is_array(place: Path, denoiser: Denoiser) -> bool:
    """Whether the samples are no images: a recipe's data of arrays, or neither one nor three channels."""
    about = read_object(place / SAMPLER) if (place / SAMPLER).is_file() else {}
    channels = denoiser.shape[0] if denoiser.parts is None else denoiser.parts.channels
    return about.get("facts", {}).get("data") == "arrays" or channels not in (1, 3)


def check_folder(out: Path, overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; name a folder")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise UserError(f"--out {out}: is not empty: name another folder, or add --overwrite")


def prepare(out: Path) -> None:
    """The folder, before any sample is paid for. Raises `UserError` where nothing can be written."""
    try:
        (out / IMAGES).mkdir(parents=True, exist_ok=True)
        write_bytes(out / GRID, b"")
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror}): name another folder") from error
    for old in _earlier(out):
        old.unlink()


def write(
    out: Path, parts: Iterable[Tensor], wanted: Tensor | None, arrays: bool
) -> tuple[dict[str, str], float]:  # fmt: skip
    """The files of a call, each sample's as soon as it is there; their paths by name, and the seconds of sampling."""
    done, seconds, began = 0, 0.0, perf_counter()
    shown: list[Tensor] = []
    kept: list[Tensor] = []
    for samples in parts:
        seconds += perf_counter() - began
        grey = not arrays and samples.shape[1] == 1
        for i, pixels in enumerate(pixels_of(samples, arrays), done):
            write_image(out / IMAGES / f"{i:05d}.png", Image.fromarray(pixels[..., 0] if grey else pixels))
        if done < IN_GRID:
            shown.append(samples[: IN_GRID - done])
        if arrays:
            kept.append(samples)
        done, began = done + len(samples), perf_counter()
    paths = {"grid": str(write_grid(out / GRID, torch.cat(shown), heat=arrays)), "images": str(out / IMAGES)}
    if arrays:
        buffer, x = io.BytesIO(), torch.cat(kept).numpy()
        np.savez(buffer, x=x) if wanted is None else np.savez(buffer, x=x, labels=wanted.numpy())
        write_bytes(out / ARRAYS, buffer.getvalue())
        paths["arrays"] = str(out / ARRAYS)
    return paths, seconds


def _earlier(out: Path) -> Iterator[Path]:
    yield from (path for path in (out / GRID, out / ARRAYS) if path.is_file())
    yield from (path for path in (out / IMAGES).glob("*.png") if path.stem.isdecimal())
