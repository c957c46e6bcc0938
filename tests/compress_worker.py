"""Trainings of a compressed toy student: one of the processes of `test_compress_runs`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from toy import TERMS, adapter, engine, roles

from xmodal_kd.compress.known import COMPRESSIONS
from xmodal_kd.recipe.recipe import Optimizer, Train
from xmodal_kd.recipe.schedules import Schedule
from xmodal_kd.runtime.checkpoint import write_tensors
from xmodal_kd.training.engine import Engine
from xmodal_kd.training.role_plan import RolePlan

#: Ways of compression, in order, with their parameters.
KINDS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "even": [("quantise", {"bits": 2, "full": [], "bucket": 16})],
    "stochastic": [("quantise", {"bits": 2, "full": [], "bucket": 16, "rounding": "stochastic"})],
    "learned": [("width_prune", {}), ("quantise", {"points": "learned", "bits": 4, "full": []})],
    "qat": [("width_prune", {"importance": "taylor"}), ("fskd", {"measure": False}), ("qat", {"averaging": 0.3})],
}


def made(folder: Path, kind: str, steps: int = 5) -> Engine:
    config = Train(
        steps=steps, batch_size=12, accumulate=2, ema=0.9, checkpoint_every=1, eval_every=2,
        optimizer=Optimizer(lr=1e-2), schedule=Schedule(),
    )  # fmt: skip
    toy = adapter(batch_size=12)
    models = roles(toy, student={"dropout": 0.0})
    models["teacher"].requires_grad_(False)  # as a training leaves it
    role_plan = RolePlan("student", "mlp", {}, ("student", "params"), TERMS, config, ("teacher",))
    for name, params in KINDS[kind]:
        way = COMPRESSIONS[name]
        models["student"] = way.start(way.Params(**params), toy, role_plan, models["student"], models)
    return engine(
        folder / "run", config, toy=toy, models=models, metric=("loss", True),
        evaluate=lambda model: toy.evaluate("student", model, "dev").metrics,
    )  # fmt: skip


def main(folder: Path, kind: str) -> None:
    torch.set_num_threads(1)
    built = made(folder, kind)
    built.fit()
    # ranges are held as their bits: shown as numbers
    learnt = {name: v.view(torch.float32) if v.dtype == torch.int32 else v
              for name, v in built.roles["student"].state_dict().items()}  # fmt: skip
    finite = {name: torch.where(v.isfinite(), v, 0.0) for name, v in learnt.items()}
    write_tensors(folder / f"rank{built.ranks.rank}", finite)
