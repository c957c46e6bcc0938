"""Recordings and recipes of students with a decoder, as small as they get."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf
import torch

from xmodal_kd.modalities.speech.tasks.seq2seq import Seq2SeqAdapter
from xmodal_kd.objective.objective import Objective
from xmodal_kd.recipe.recipe import Term, Train, load
from xmodal_kd.run.roles import make_adapter
from xmodal_kd.runtime.distributed import Ranks
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.runtime.timing import StepTimer
from xmodal_kd.training.method import Context, Stage

TEXTS = ["yes", "no way", "it's so", "a quiz", "yes no", "maybe"]


def record(folder: Path, texts: Sequence[str | None] = TEXTS) -> Path:
    """Noise of several lengths as sentences in letters."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("dev", 2), ("test", 2)):
        lines = []
        for i in range(count):
            name = f"{split}{i}.wav"
            sf.write(folder / name, 0.1 * rng.standard_normal(int(16000 * (1.0 + 0.13 * i))), 16000)
            line = {"audio_filepath": name, "speaker": f"s{i}"}
            text = texts[i] if split == "train" else TEXTS[i]
            lines.append(json.dumps(line if text is None else {**line, "text": text}))
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    return folder


def sets(recordings: Path, teacher: Path, *more: str) -> list[str]:
    return [
        f"data.path={recordings}", f"teacher={{path: {teacher}}}", "data.augment={}", "train.batch_size=3",
        "train.steps=2", "train.eval_every=2", "trackers=[]", *more,
    ]  # fmt: skip


def listed(given: Sequence[str]) -> list[str]:
    return [word for one in given for word in ("--set", one)]


def adapter_of(recordings: Path, teacher: Path, *more: str) -> Seq2SeqAdapter:
    made: Any = make_adapter(load("speech/whisper", sets(recordings, teacher, *more)), Streams(1), 3)
    assert isinstance(made, Seq2SeqAdapter)
    return made


def context(step: int = 0, steps: int = 4, micro: int = 0) -> Context:
    stage = Stage("student", steps, frozenset({"student"}))
    return Context(stage, step, micro, Streams(1), StepTimer(torch.device("cpu")), Ranks())


def begun(kind: Any, recordings: Path, teacher: Path, terms: list[Term], **params: Any) -> tuple[Any, Any, Any]:
    """A method with its roles, and a batch."""
    adapter = adapter_of(recordings, teacher)
    torch.manual_seed(1)
    roles = {"student": adapter.build("student", "whisper", {"decoder_layers": 2, "freeze_encoder": True}).train()}
    roles["teacher"] = adapter.load("teacher", teacher).requires_grad_(False)
    train = Train(steps=4, batch_size=3)
    made = kind(adapter, Objective(terms, steps=4), train, Streams(1), params=kind.Params(**params))
    made.check(roles)
    source = adapter.data("train")
    return made, roles, source.collate([source.sample(i, 0) for i in range(len(source))])


def arguments(out: Path, recordings: Path, teacher: Path, *more: str) -> list[str]:
    given = sets(recordings, teacher, "train.steps=4", "train.checkpoint_every=2", *more)
    return ["run", "speech/whisper", "--out", str(out), "--device", "cpu", "--no-export", "--quiet", *listed(given)]
