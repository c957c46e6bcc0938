"""One of the processes of `test_sharding`: trains a toy student of blocks, and writes what it became."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from toy import MODELS, RELATION, TERMS, WIDTH, Config, Net, adapter, engine, roles

from xmodal_kd.adapter.source import Strict
from xmodal_kd.objective.objective import Objective
from xmodal_kd.recipe.recipe import Optimizer, Term, Train
from xmodal_kd.recipe.schedules import Schedule
from xmodal_kd.runtime.checkpoint import write_tensors
from xmodal_kd.runtime.interrupt import Interrupted
from xmodal_kd.runtime.shards import is_shard
from xmodal_kd.training.method import Distil


class Block(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.linear, self.norm, self.dropout = nn.Linear(width, width), nn.LayerNorm(width), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.dropout(torch.tanh(self.linear(self.norm(x))))


@MODELS.register("deep")
class Deep(Net):
    """Three blocks between the layers of a `Net`; a buffer counts its training passes."""

    Config: ClassVar[type[Strict]] = Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.blocks = nn.ModuleList(Block(WIDTH, config.dropout) for _ in range(3))
        self.register_buffer("scale", torch.ones(WIDTH))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        rows = x[mask] * self.scale
        for block in self.blocks:
            rows = block(rows)
        out: Tensor = self.head(self.body(rows))
        return out


#: Terms on what models answer, which may be compiled.
ANSWERS = TERMS[:3]


def main(
    folder: Path, keys: dict[str, Any], stop: int | None = None, resume: bool = False,
    terms: Sequence[Term] = (*TERMS, RELATION),
) -> None:  # fmt: skip
    """Six steps, or as many as to `stop`, of training with `keys`; ``rank<n>.safetensors`` has what was learnt."""
    torch.set_num_threads(1)
    config = Train(**{
        "steps": 6, "batch_size": 12, "ema": 0.9, "checkpoint_every": 1, "eval_every": 3, "clip": 0.05,
        "optimizer": Optimizer(lr=1e-2, weight_decay=0.1), "schedule": Schedule(), **keys,
    })  # fmt: skip
    toy = adapter(batch_size=12)
    models = roles(toy)
    for role in models:
        with toy.streams.forked("init", role):
            models[role] = Deep(Config())
    method = Distil(toy, Objective(terms, steps=config.steps), config, toy.streams)
    built = engine(
        folder / "run", config, toy=toy, models=models, method=method, metric=("loss", True),
        evaluate=lambda model: toy.evaluate("student", model, "dev").metrics,
    )  # fmt: skip
    seen = set()
    milestones = built._milestones

    def looking(*args: Any) -> None:
        spread = {role: model for role, model in built.roles.items() if any(map(is_shard, model.parameters()))}
        seen.update(spread)
        assert all(model._compiled_call_impl is None for model in spread.values()), "compiled by blocks, if at all"
        if built.at.total == stop:
            os.kill(os.getpid(), signal.SIGINT)
        milestones(*args)

    built._milestones = looking  # type: ignore[method-assign]
    try:
        built.fit(resume=resume)
    except Interrupted:
        assert stop is not None
        return
    several = built.ranks.world > 1 and config.sharding == "fsdp"
    assert seen == ({"student", "average", *(["teacher"] if config.frozen == "sharded" else [])} if several else set())
    assert not any(is_shard(p) for model in built.roles.values() for p in model.parameters()), (
        "they are given back whole"
    )
    learnt = {**built.roles["student"].state_dict(), **built.method.objective.state_dict()}
    learnt |= {f"teacher.{k}": v for k, v in built.roles["teacher"].state_dict().items()}
    write_tensors(folder / f"rank{built.ranks.rank}.safetensors", learnt)
    if built.ranks.main:
        (folder / "log.jsonl").write_text(built.log.path.read_text())


def compiled(folder: Path, keys: dict[str, Any], how: dict[str, Any] | None) -> None:
    """`main` of models whose blocks are compiled by `how`, or as users have it; counts that they are."""
    from xmodal_kd.training import compiled, sharding

    if how is not None:
        sharding.DEFAULT = compiled.DEFAULT = how  # type: ignore[assignment]
    counted: list[Any] = []
    call = torch.compile
    torch.compile = lambda given, **k: (counted.append(given), call(given, **k))[1]  # type: ignore[assignment]
    main(folder, keys, terms=ANSWERS)
    spread = ["student", *(["teacher"] if keys.get("frozen") == "sharded" else [])]
    blocks = [one for one in counted if isinstance(getattr(one, "__self__", None), Block)]
    assert len(blocks) >= 3 * len(spread), f"three blocks of each of {spread}: {counted}"


def speech(folder: Path, teacher: Path, keys: dict[str, Any]) -> None:
    """Three steps of a conformer that a wav2vec 2.0 of transformers teaches, on the project's digits."""
    from xmodal_kd.modalities.speech.adapter import SpeechAdapter
    from xmodal_kd.modalities.speech.data.corpora import SpeechData

    torch.set_num_threads(1)
    # not Adam, whose first steps are as long where a gradient is mere rounding
    optimizer = Optimizer(name="sgd", lr=0.1)
    config = Train(steps=3, batch_size=6, optimizer=optimizer, schedule=Schedule(), eval_every=9, **keys)
    data = SpeechData(
        sources=("fsdd",), path=Path(__file__).parents[1] / "assets/digits", tokens="characters",
        features={"sample_rate": 8000}, train_speakers=("anna",), dev_speakers=("duncan",), test_speakers=("edith",),
    )  # fmt: skip
    toy = adapter()  # for its streams
    heard = SpeechAdapter(data, toy.streams, config.batch_size)
    with toy.streams.forked("init"):
        size = {"width": 16, "layers": 2, "heads": 2, "feed_forward": 16, "kernel": 3, "dropout": 0.0}
        models = {"student": heard.build("student", "conformer", size), "teacher": heard.load("teacher", teacher)}
    method = Distil(heard, Objective((Term(loss="ctc"), Term(loss="kd")), steps=3), config, toy.streams)
    built = engine(folder / "run", config, toy=heard, models=models, method=method)  # type: ignore[arg-type]
    built.fit()
    write_tensors(folder / f"rank{built.ranks.rank}.safetensors", models["student"].state_dict())
