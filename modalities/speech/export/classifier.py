"""A classifier of utterances as ONNX, in float32 and int8, and how well each names classes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xmodal_kd.adapter.adapter import Batch, Evaluation
from xmodal_kd.adapter.saved_model import About
from xmodal_kd.models import onnx

from ..data.corpora import SpeechData
from ..data.intents import Intents
from ..data.source import SpeechSource
from ..models.classifier import Classifier
from .onnx import EXTRA, FP32, INT8, against, export_onnx, quantise
from .scored import CALIBRATION

USE = """```sh
xmodal-kd classify-audio path/to/this/folder recording.wav folder/ --top 3
```

names the class of audio files of any sample rate, with `pip install 'xmodal-kd[speech]'`. From Python:

```python
from xmodal_kd.modalities.speech.use.classify import UtteranceClassifier

classifier = UtteranceClassifier.from_pretrained("path/to/this/folder")  # or owner/name of a repository of the Hub
print(classifier.classify("recording.wav"))
```

`model.onnx` and `model.int8.onnx`, where they lie here, take `features` (batch, time, mels) and `lengths` (batch,) and
give `logits` (batch, {classes}). `card.json` says what the features are, and in `tokens` the classes in order."""


def export_classifier(
    model: Classifier, folder: Path, data: SpeechData, train: SpeechSource,
    evaluate: Callable[[Callable[[Batch], Tensor]], Evaluation],
) -> dict[str, Any]:  # fmt: skip
    """Write ``model.onnx`` and ``model.int8.onnx`` into `folder`, and score both on the test split in ONNX Runtime.

    Args:
        train: of whose first utterances the ranges of int8 are.
        evaluate: the scores on test of what answers so.
    Returns:
        As `scored.export_scored`.
    """
    export_onnx(model, folder, data.features.mels, ["logits"])
    cost = quantise(folder, (train.sample(i, 0).clean.numpy() for i in range(min(CALIBRATION, len(train)))))
    scores = {}
    for name in (FP32, INT8):
        answer = partial(onnx.run, onnx.session(folder / name, threads=torch.get_num_threads(), extra=EXTRA))
        scores[name] = evaluate(lambda batch, answer=answer: answer(batch["clean"], batch["lengths"])[0])  # type: ignore[misc]
    found: dict[str, Any] = {
        name: {"bytes": (folder / name).stat().st_size, "metrics": one.metrics} for name, one in scores.items()
    }
    interval, worse = against(scores[INT8].scores, scores[FP32].scores)
    found[INT8] |= {} if worse is None else {"note": worse}
    return found | {"int8_against_fp32": cost | {"error_interval": list(interval)}}


def about_classifier(data: SpeechData, intents: Intents) -> About:
    """What it hears and its classes."""
    named = ", ".join(intents.names[:20]) + (", ..." if len(intents) > 20 else "")
    what = (
        f"It hears a whole utterance at {data.features.sample_rate} Hz and names its class: one of {len(intents)} "
        f"({named})."
    )
    front = {"pipeline_tag": "audio-classification"}
    return About("Classifier of utterances", what, USE.format(classes=len(intents)), front)


__all__ = ["about_classifier", "export_classifier"]
