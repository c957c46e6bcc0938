"""Recipes of transducers as small as they get."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from xmodal_kd.modalities.speech.tasks.transducer import TransducerAdapter
from xmodal_kd.recipe.recipe import load
from xmodal_kd.run.roles import make_adapter
from xmodal_kd.runtime.random_streams import Streams

#: Of the smoke recipe's data and trainings, a little.
SMALL = [
    "data.compose={utterances: {train: 12, dev: 4, test: 3}, clips: [1, 2]}", "teacher.train.steps=2", "trackers=[]",
    "teacher.train.batch_size=4", "train.steps=4", "train.batch_size=4", "train.eval_every=2",
    "teacher.params={width: 12, dilations: [1, 2], embedding: 8, joint: 12}",
    "student.params={width: 8, dilations: [1, 2], embedding: 8, joint: 10}",
]  # fmt: skip


def sets(digits: Path, *more: str) -> list[str]:
    return [f"data.path={digits}", *SMALL, *more]


def adapter_of(digits: Path, *more: str) -> TransducerAdapter:
    made: Any = make_adapter(load("smoke/rnnt", sets(digits, *more)), Streams(1), 4)
    assert isinstance(made, TransducerAdapter)
    return made


def batch_of(adapter: TransducerAdapter, split: str = "train", items: int = 4) -> Any:
    source = adapter.data(split)
    return source.collate([source.sample(i, 0) for i in range(items)])
