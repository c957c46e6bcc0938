"""A UNet that is no pipeline: of a training's checkpoint, or the ``unet`` of a pipeline named by itself."""

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
    """Folders of the network and of its scheduler, which may lie beside or above it; None for a pipeline.

    Raises:
        UserError: the folder only holds checkpoints, of which one must be named.
    """
    if not folder.is_dir() or any((folder / name).is_file() for name in (INDEX, OWN)):
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


def _scheduler(folder: Path) -> Path | None:
    """Of the folder itself, or of the pipeline around it: diffusers' training script puts its checkpoints into one."""
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


__all__ = ["NETWORK", "bare_unet", "without_scheduler"]
