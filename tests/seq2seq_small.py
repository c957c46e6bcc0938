"""Recordings and recipes of students with a decoder, as small as they get."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf

from xmodal_kd.modalities.speech.tasks.seq2seq import Seq2SeqAdapter
from xmodal_kd.recipe.recipe import load
from xmodal_kd.run.roles import make_adapter
from xmodal_kd.runtime.random_streams import Streams

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
