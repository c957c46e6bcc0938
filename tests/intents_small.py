"""Recordings with intents, their teachers and recipes, as small as they get."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf
import torch

from xmodal_kd.modalities.speech.tasks.intents import IntentsAdapter
from xmodal_kd.recipe.recipe import load
from xmodal_kd.run.roles import make_adapter
from xmodal_kd.runtime.random_streams import Streams

CLASSES = ("off", "on", "up")
TEXTS = {"off": "lights off", "on": "lights on", "up": "turn it up"}
SMALL = [
    "data.features={sample_rate: 8000, mels: 12}", "data.augment={}", "trackers=[]", "train.steps=4",
    "train.batch_size=4", "train.eval_every=2", "teacher.train.steps=2", "teacher.train.batch_size=4",
    "teacher.params={width: 12, dilations: [1, 2], embedding: 6}",
    "student.params={width: 8, dilations: [1, 2], embedding: 5}",
]  # fmt: skip


def record(folder: Path, changed: Mapping[int, Mapping[str, Any]] | None = None, rate: int = 8000) -> Path:
    """Noise of several lengths, a manifest a split.

    Args:
        changed: by line of training what it says otherwise; None takes a key out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("dev", 3), ("test", 6)):
        lines = []
        for i in range(count):
            name, intent = f"{split}{i}.wav", CLASSES[i % 3]
            sf.write(folder / name, 0.1 * rng.standard_normal(int(rate * (0.3 + 0.05 * i))), rate)
            line = {"audio_filepath": name, "speaker": f"s{i % 2}", "text": TEXTS[intent], "intent": intent}
            line |= (changed or {}).get(i, {}) if split == "train" else {}
            lines.append(json.dumps({key: value for key, value in line.items() if value is not None}))
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    return folder


def sets(recordings: Path, *more: str) -> list[str]:
    speakers = [f"data.{split}_speakers=[]" for split in ("train", "dev", "test")]
    return [f"data.path={recordings}", "data.sources=manifest", *speakers, *SMALL, *more]


def adapter_of(recordings: Path, *more: str) -> IntentsAdapter:
    made: Any = make_adapter(load("smoke/intents", sets(recordings, *more)), Streams(1), 4)
    assert isinstance(made, IntentsAdapter)
    return made


def batch_of(adapter: IntentsAdapter, split: str = "train", items: Sequence[int] = range(4)) -> Any:
    source = adapter.data(split)
    return source.collate([source.sample(i, 0) for i in items])


def write_reader(folder: Path, classes: Sequence[str] = (), words: Sequence[str] = ("lights", "on", "off")) -> Path:
    """A BERT with random weights, with a head of `classes` or without one, and its tokenizer."""
    import transformers

    torch.manual_seed(0)
    vocabulary = {name: i for i, name in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])}
    sizes: dict[str, Any] = {
        "vocab_size": len(vocabulary), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 16, "max_position_embeddings": 12, "initializer_range": 0.5,
    }  # fmt: skip
    if classes:
        sizes |= {"id2label": dict(enumerate(classes)), "label2id": {name: i for i, name in enumerate(classes)}}
    kind = transformers.BertForSequenceClassification if classes else transformers.BertModel
    kind(transformers.BertConfig(**sizes)).save_pretrained(folder)
    transformers.BertTokenizer(vocab=vocabulary).save_pretrained(folder)
    return folder


def write_listener(folder: Path, classes: Sequence[str]) -> Path:
    """A Wav2Vec2 with a head of classes, random weights, at 16 kHz."""
    import transformers

    torch.manual_seed(0)
    config = transformers.Wav2Vec2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, conv_dim=[8] * 7,
        num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2, classifier_proj_size=6,
        id2label=dict(enumerate(classes)), label2id={name: i for i, name in enumerate(classes)},
    )  # fmt: skip
    transformers.Wav2Vec2ForSequenceClassification(config).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(folder)
    return folder
