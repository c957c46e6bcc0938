"""One of the processes of `test_ddp`: trains the toy student and writes its weights."""

from __future__ import annotations

from pathlib import Path

import torch
from toy import RELATION, TERMS, ToyAdapter, adapter, engine, roles

from xmodal_kd.objective.objective import Objective
from xmodal_kd.recipe.balance_spec import Balance
from xmodal_kd.recipe.recipe import Optimizer, Term, Train
from xmodal_kd.recipe.schedules import Schedule
from xmodal_kd.runtime.checkpoint import write_tensors
from xmodal_kd.training.label_budget import LabelBudget
from xmodal_kd.training.method import Distil

#: Terms whose count is no number of rows of the batch.
CHOSEN = (
    Term(loss="test_ce", name="rare", weights="rarity"),
    Term(loss="kd", name="rare_kd", weights="rarity"),
    Term(loss="kd", name="sure", min_confidence=0.3),
)


def main(folder: Path, accumulate: int, scarce: bool, balance: Balance | None = None) -> None:
    torch.set_num_threads(1)
    config = Train(
        steps=5, batch_size=12, accumulate=accumulate, ema=0.9, checkpoint_every=5,
        optimizer=Optimizer(lr=1e-2), schedule=Schedule(),
    )  # fmt: skip
    toy = adapter(batch_size=12)
    models = roles(toy)
    if scarce:
        source = LabelBudget(toy.data("train"), [1, 3, 6, 7], 12, toy.streams, pool=True)
        toy.data = lambda split: source if split == "train" else ToyAdapter.data(toy, split)  # type: ignore[assignment, method-assign, return-value]
    terms = (*TERMS, RELATION, *CHOSEN)
    method = Distil(toy, Objective(terms, steps=config.steps, balance=balance), config, toy.streams)
    built = engine(
        folder / "run", config, toy=toy, models=models, method=method, metric=("loss", True),
        evaluate=lambda model: toy.evaluate("student", model, "dev").metrics,
    )  # fmt: skip
    at = built.fit()
    assert at.samples == 60, at.samples
    rank = built.ranks.rank
    learnt = {**models["student"].state_dict(), **built.method.objective.state_dict()}
    write_tensors(folder / f"rank{rank}.safetensors", learnt)
    if built.ranks.main:
        (folder / "log.jsonl").write_text(built.log.path.read_text())
