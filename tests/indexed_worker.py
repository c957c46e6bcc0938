"""A process of `test_indexed`: what a training over a manifest hears from a step on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from killed_runs import kill_with

from xmodal_kd.modalities.speech.data import indexed
from xmodal_kd.modalities.speech.data.corpora import SpeechData, build_tokens
from xmodal_kd.modalities.speech.data.source import SpeechSource
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.training.loader import steps


def at(cache: Path, killed_with: Path | None = None) -> None:
    """Before a run: where its indexes are, and the checkpoint with which it is killed."""
    os.environ["XDG_CACHE_HOME"] = str(cache)
    if killed_with is not None:
        kill_with(killed_with)


def told(pipe: Any, folder: Path, cache: Path, start: int, large: int) -> None:
    """Batches to step 12, made by two workers, through a pipe."""
    indexed.LARGE, indexed.AT_ONCE = large, 5
    os.environ["XDG_CACHE_HOME"] = str(cache)
    data = SpeechData.model_validate({"sources": "manifest", "path": folder, "augment": {"speed": (0.9, 1.1)}})
    stream = steps(SpeechSource(data, "train", build_tokens(data), Streams(3), 4), start=start, workers=2)
    for step in range(start, 12):
        batch = next(stream)[0]
        pipe.send((step, batch["keys"], batch["targets"].tolist(), float(batch["features"].double().sum())))
    pipe.close()
