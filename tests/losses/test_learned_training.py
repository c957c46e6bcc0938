"""Learned losses in the engine: their parameters train with the student's and resume with it, to the bit."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from launch import ranks
from safetensors.torch import load_file
from toy import adapter, engine, roles

from xmodal_kd.recipe.recipe import Optimizer, Term, Train
from xmodal_kd.runtime.checkpoint import digest, write_tensors
from xmodal_kd.runtime.interrupt import Interrupted
from xmodal_kd.training.engine import Engine

#: Losses on maps, with batch norms, masks drawn at random, a reversed gradient and two stages in six steps.
TERMS = (
    Term(loss="test_ce"),
    Term(loss="ctkd", params={"mode": "instance", "ramp": 0.5}),
    Term(loss="mlkd", params={"confident": "half"}, weight=0.1),
    *(Term(loss=name, on="body", weight=1e-2) for name in ("vid", "ab", "ofd", "simkd", "mgd", "dmkd")),
    Term(loss="ft", on="body", params={"pretrain": 0.4}),
    Term(loss="fgfi", on="body", regions="labels", weight=1e-2),
)


def made(folder: Path, accumulate: int) -> Engine:
    config = Train(
        steps=6, batch_size=8, accumulate=accumulate, optimizer=Optimizer(lr=1e-2), eval_every=6, checkpoint_every=3,
    )  # fmt: skip
    toy = adapter(batch_size=8)
    return engine(folder, config, toy=toy, models=roles(toy), terms=TERMS, metric=("loss", True))


def state(built: Engine) -> dict[str, Any]:
    return dict(built.method.objective.state_dict())


@pytest.mark.parametrize("accumulate", [1, 2])
def test_learned_losses_train_and_resume_to_the_bit(tmp_path: Path, accumulate: int) -> None:
    whole, stopped = (made(tmp_path / name, accumulate) for name in ("whole", "stopped"))
    whole.fit()
    milestones = stopped._milestones

    def interrupt(*args: Any) -> None:
        if stopped.at.total == 3:
            os.kill(os.getpid(), signal.SIGINT)
        milestones(*args)

    stopped._milestones = interrupt  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        stopped.fit()
    halfway = {key: value.clone() for key, value in state(stopped).items()}
    again = made(tmp_path / "stopped", accumulate)
    again.fit(resume=True)
    ended = state(again)
    assert digest(ended.items()) == digest(state(whole).items())
    students = [digest(built.roles["student"].state_dict().items()) for built in (again, whole)]
    assert students[0] == students[1]
    moved = {key for key, value in ended.items() if not value.equal(halfway[key])}
    paraphraser = {key for key in ended if ".paraphraser." in key or ".decoder." in key}
    chosen = {key for key in ended if key.endswith(".resampling")}  # once, in the dry run
    still = paraphraser | chosen
    assert moved == set(ended) - still, "the second stage leaves the paraphraser as it is, and all else learns"


#: Losses whose value on two ranks is that of one process: batch norms and margins are taken over both.
SHARED = (
    Term(loss="test_ce"),
    Term(loss="ctkd", params={"ramp": 0.5}),
    Term(loss="mlkd", weight=0.1),
    *(Term(loss=name, on="body", weight=1e-2) for name in ("vid", "ab", "ofd", "simkd", "dmkd", "fgfi", "ft")),
)


def train(folder: Path) -> None:
    torch.set_num_threads(1)
    toy = adapter(batch_size=12)
    config = Train(steps=4, batch_size=12, optimizer=Optimizer(name="sgd", lr=1e-2), checkpoint_every=4)
    models = roles(toy)
    built = engine(folder / "run", config, toy=toy, models=models, terms=SHARED, metric=("loss", True))
    built.fit()
    write_tensors(folder / f"rank{built.ranks.rank}.safetensors", {**models["student"].state_dict(), **state(built)})


def test_two_ranks_train_what_one_process_does(tmp_path: Path) -> None:
    with ranks(train, tmp_path / "two"):
        train(tmp_path / "one")
    one, *two = (
        load_file(tmp_path / path)
        for path in ("one/rank0.safetensors", "two/rank0.safetensors", "two/rank1.safetensors")
    )
    for key, value in one.items():
        assert torch.equal(two[0][key], two[1][key]), key
        torch.testing.assert_close(two[0][key], value, rtol=1e-4, atol=1e-5)
