"""Again, on what a run left: evaluate, export."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..adapter import panels
from ..adapter.adapter import Adapter, Evaluation
from ..recipe import recipe
from ..recipe.recipe import Loaded
from ..runtime.device import make_accelerator
from ..runtime.errors import RunError, UserError
from ..runtime.random_streams import Streams
from ..runtime.run_lock import RunLock
from .roles import compressions, make_adapter, saved, shown
from .run_folder import RECIPE, STATE, read_state


def saved_run(folder: Path, sets: Sequence[str] = ()) -> tuple[Loaded, dict[str, Any]]:
    """The resolved recipe, with other keys, and the state of a run folder."""
    if not (folder / STATE).is_file():
        raise UserError(f"{folder} is not a run: it has no {STATE}: give the folder that `run --out` names")
    return recipe.load(str(folder / RECIPE), sets), read_state(folder)


def show_again(folder: Path) -> None:
    """The panels of a run's page anew, from its models and data."""
    models, adapter, streams = _models(folder, "cpu")
    with torch.no_grad(), streams.forked("evaluate"):
        panels.write(folder, shown(saved_run(folder)[0], adapter, models, folder))


def evaluate_again(folder: Path, split: str, device: str) -> dict[str, Any]:
    """Metrics of every role that a run left, on `split`."""
    models, adapter, streams = _models(folder, device)
    found: dict[str, Any] = {}
    for role, model in models.items():
        with torch.no_grad(), streams.forked("evaluate"):
            evaluation: Evaluation = adapter.evaluate(role, model, split)
        found[role] = evaluation.metrics
    return found


def _models(folder: Path, device: str) -> tuple[dict[str, nn.Module], Adapter, Streams]:
    """Every role that a run left, in eval mode."""
    loaded, state = saved_run(folder)
    torch.set_num_threads(loaded.recipe.threads)
    accelerator, streams = make_accelerator(device, "fp32"), Streams(loaded.recipe.seed)
    adapter = make_adapter(loaded, streams)
    models = {}
    for role in state["roles"]:
        path = state["roles"][role].get("path", folder / role)
        models[role] = saved(adapter, role, Path(path)).to(accelerator.device).eval()
    if not models:
        raise RunError(f"{folder}: no role is finished yet: --resume the run first")
    return models, adapter, streams


def export_again(folder: Path, sets: Sequence[str] = ()) -> dict[str, Any]:
    """Export the student of a finished run anew, by its recipe with other keys, as the run itself does."""
    loaded, state = saved_run(folder, sets)
    if "student" not in state["roles"]:
        raise RunError(f"{folder}: its student is not finished yet: --resume the run first")
    torch.set_num_threads(loaded.recipe.threads)
    make_accelerator("cpu", "fp32")
    adapter = make_adapter(loaded, Streams(loaded.recipe.seed))
    student, ways = folder / "student", compressions(loaded)
    lock = RunLock(folder)
    try:
        model = saved(adapter, "student", student).eval()
        ways.restore(model, student)
        return ways.export(adapter, model, student)
    finally:
        lock.release()
