"""One of the processes of `test_ddp`: trains the toy student and writes its weights. Started as a program."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from toy import RELATION, TERMS, adapter, engine, roles

from xmodal_kd.checkpoint import write_tensors
from xmodal_kd.recipe import Optimizer, Train
from xmodal_kd.schedules import Schedule


def main(folder: Path, accumulate: int) -> None:
    torch.set_num_threads(1)
    config = Train(
        steps=5, batch_size=12, accumulate=accumulate, ema=0.9, checkpoint_every=5,
        optimizer=Optimizer(lr=1e-2), schedule=Schedule(),
    )  # fmt: skip
    toy = adapter(batch_size=12)
    models = roles(toy)
    built = engine(
        folder / "run", config, toy=toy, models=models, terms=(*TERMS, RELATION), metric=("loss", True),
        evaluate=lambda model: toy.evaluate("student", model, "dev").metrics,
    )  # fmt: skip
    at = built.fit()
    assert at.samples == 60, at.samples
    rank = built.ranks.rank
    learnt = {**models["student"].state_dict(), **built.method.objective.state_dict()}
    write_tensors(folder / f"rank{rank}.safetensors", learnt)
    if built.ranks.main:
        (folder / "log.jsonl").write_text(built.log.path.read_text())


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
