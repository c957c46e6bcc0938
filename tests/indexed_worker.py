"""A process of `test_indexed` and `test_shards`: what a training over a long list hears from a step on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from killed_runs import kill_with
from launch import FORKS

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


def heard(
    folder: Path, large: int, start: int = 0, kill_behind: int | None = None, kind: str = "manifest"
) -> list[Any]:
    """What a process of its own is told, which is killed behind a step."""
    ours, theirs = FORKS.Pipe(duplex=False)
    process = FORKS.Process(target=told, args=(theirs, folder, folder / "user", start, large, kind))
    process.start()
    theirs.close()
    found = []
    try:
        while True:
            found.append(ours.recv())
            if found[-1][0] == kill_behind:
                process.kill()
                break
    except EOFError:
        pass
    process.join(100)
    return found


def told(pipe: Any, folder: Path, cache: Path, start: int, large: int, kind: str) -> None:
    """Batches to step 12, made by two workers, through a pipe."""
    indexed.LARGE, indexed.AT_ONCE = large, 5
    os.environ["XDG_CACHE_HOME"] = str(cache)
    data = SpeechData.model_validate({"sources": kind, "path": folder, "augment": {"speed": (0.9, 1.1)}})
    stream = steps(SpeechSource(data, "train", build_tokens(data), Streams(3), 4), start=start, workers=2)
    for step in range(start, 12):
        batch = next(stream)[0]
        pipe.send((step, batch["keys"], batch["targets"].tolist(), float(batch["features"].double().sum())))
    pipe.close()
