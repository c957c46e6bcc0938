"""A UNet that lies elsewhere than in a pipeline's ``unet``: in a training's checkpoint, or beside its scheduler, as the
first published pipelines keep it; and the ``unet`` of a pipeline named by itself."""

from __future__ import annotations

from pathlib import Path

from xmodal_kd.runtime.checkpoint import read_object
from xmodal_kd.runtime.errors import UserError

#: Where a folder without ``model_index.json`` keeps its network; averaged weights are the better ones.
PLACES = ("unet_ema", "unet", ".")
NETWORK, SCHEDULE, INDEX = "config.json", "scheduler_config.json", "model_index.json"
#: Beside every pipeline that this package wrote.
OWN = "sampler.json"


def bare_unet(folder: Path) -> tuple[Path, Path | None] | None:
    """Folders of the network and of its scheduler, which may lie beside or above it; None for a pipeline with a folder
    for each.

    Raises:
        UserError: the folder only holds checkpoints, of which one must be named.
    """
    flat = _flat(folder)
    if not folder.is_dir() or (not flat and any((folder / name).is_file() for name in (INDEX, OWN))):
        return None  # with ours alone it is a pipeline half written
    for place in PLACES:
        unet = folder / place
        if (unet / NETWORK).is_file() and "_class_name" in read_object(unet / NETWORK):  # which diffusers writes
            return unet, _scheduler(folder)
    checkpoints = [path for path in folder.glob("checkpoint-*") if _number(path) >= 0 and bare_unet(path)]
    if checkpoints:
        newest = max(checkpoints, key=_number)
        raise UserError(
            f"{folder}: no pipeline, but {len(checkpoints)} checkpoint(s) of a training: name one, as {newest}"
        )
    return None


def _flat(folder: Path) -> bool:
    """Whether network and scheduler lie in the pipeline's folder itself."""
    places = (folder / "unet", folder / "scheduler", folder / NETWORK, folder / SCHEDULE, folder / INDEX)
    return [place.exists() for place in places] == [False, False, True, True, True]


def pipeline_of(scheduler: Path) -> Path:
    """The folder of the pipeline that a scheduler's is of."""
    return scheduler if _flat(scheduler) else scheduler.parent


def _scheduler(folder: Path) -> Path | None:
    """Of the folder itself, or of the pipeline around it: diffusers' training script puts its checkpoints into one."""
    if _flat(folder):
        return folder
    around = (folder / "scheduler", folder.parent / "scheduler", folder.parent.parent / "scheduler")
    return next((place for place in around if (place / SCHEDULE).is_file()), None)


def _number(path: Path) -> int:
    text = path.name.rpartition("-")[2]
    return int(text) if text.isdecimal() else -1


def without_scheduler(unet: Path) -> str:
    return (
        f"{unet}: a UNet without a scheduler, so its schedule and prediction type are unknown: set data.process to "
        "what it was trained with (diffusers' training script: {schedule: linear, steps: 1000, prediction: epsilon}), "
        f"or name a pipeline folder ({INDEX})"
    )


__all__ = ["NETWORK", "bare_unet", "pipeline_of", "without_scheduler"]
