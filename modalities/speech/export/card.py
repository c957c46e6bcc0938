"""What the card of a saved recogniser says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from xmodal_kd.adapter.saved_model import About

from ..data.corpora import SpeechData
from ..data.tokens import Tokens
from ..models import EncoderForCTC

USE = """```sh
xmodal-kd transcribe path/to/this/folder recording.wav folder/ --json
```

takes audio files of any sample rate and length, with `pip install 'xmodal-kd[speech]'`. From Python:

```python
from xmodal_kd.modalities.speech.use.transcribe import Recogniser

recogniser = Recogniser.from_pretrained("path/to/this/folder")  # or owner/name of a repository of the Hub
print(recogniser.transcribe("recording.wav")["text"])
```

`transcribe.py`, where it lies here, does without this project and without PyTorch: it takes numpy, onnxruntime and
soundfile (`python transcribe.py --help`).

```sh
python path/to/this/folder/transcribe.py recording.wav
```

It is also how `model.onnx` and `model.int8.onnx` are called: they take `features` (batch, time, mels) and `lengths`
(batch,) and give `logits` and `logit_lengths`; class 0 is the blank."""
STREAMING = """

`model.stream.onnx` and `model.stream.int8.onnx` hear sound as it comes, a multiple of {stride} frames at a time, and
compute each frame once. They take `features`, `length` (batch,) and a state that begins as zeros, and give `logits`,
`frames` and the state of the next call (`next_position` for `position`, and so on). {before} frames of zeros stand
before an utterance. `frames` says of which output frame each row of `logits` is: rows below 0 are thrown away.
`length` is a large number until the utterance has ended, then its frames of features; zeros are given until its last
output frame has come ({after} of the {stride} frames)."""

TRANSDUCER = """```sh
xmodal-kd transcribe path/to/this/folder recording.wav folder/ --json
```

takes audio files of any sample rate and length, with `pip install 'xmodal-kd[speech]'`. From Python:

```python
from xmodal_kd.modalities.speech.use.transducer import TransducerRecogniser

recogniser = TransducerRecogniser("path/to/this/folder")
print(recogniser.transcribe("recording.wav")["text"])
```

`transcribe.py`, where it lies here, does without this project and without PyTorch: it takes numpy, onnxruntime and
soundfile (`python transcribe.py --help`).

`model.onnx` and `model.int8.onnx`, where they lie here, are the encoder: `features` (batch, time, mels) and `lengths`
(batch,) to states (`logits`) and `logit_lengths`. `predictor.onnx` takes `symbols` (batch,) and `state`, which begins
as zeros and with symbol 0, and gives `known` and `next_state`; `joint.onnx` takes a frame's state as `sound` and
`known` as `text` and gives `logits`, whose class 0 is the blank: go on to the next frame. `card.json` says what the
features are."""


WAVES = """```sh
xmodal-kd transcribe path/to/this/folder recording.wav folder/ --json
```

takes audio files of any sample rate and length, with `pip install 'xmodal-kd[speech]' transformers`. From Python:

```python
from xmodal_kd.modalities.speech.use.waves import WaveRecogniser

recogniser = WaveRecogniser("path/to/this/folder")
print(recogniser.transcribe("recording.wav")["text"])
```

`card.json` says what the encoder's configuration in `transformers` was (`params.encoder`) and how many heads, inner
units and channels are left of it (`params.left`): `transformers` has none for layers that differ, so it is built
by this project."""


def about(model: nn.Module, data: SpeechData, tokens: Tokens) -> About:
    """A CTC model: what it hears, what it writes, how long it waits."""
    features, stride = data.features, int(model.stride)  # type: ignore[arg-type]
    seconds = features.hop / features.sample_rate
    field = getattr(model, "receptive_field", None)
    waits = "It needs the whole utterance." if field is None else (
        f"An answer hangs on {field[0] * seconds:.2f} s before and {field[1] * seconds:.2f} s after it."
    )  # fmt: skip
    what = (
        f"It writes what is said in {tokens.kind} ({len(tokens.symbols) - 1} of them beside the blank), a frame every "
        f"{1000 * stride * seconds:.0f} ms of audio at {features.sample_rate} Hz, decoded greedily. {waits}"
    )
    if isinstance(model, EncoderForCTC):
        what = f"It hears waves as a {model.prefix} does. {what}"
        return About("CTC speech recogniser", what, WAVES, {"pipeline_tag": "automatic-speech-recognition"})
    use = USE + _streaming(model, data)
    return About("CTC speech recogniser", what, use, {"pipeline_tag": "automatic-speech-recognition"})


def about_transducer(model: nn.Module, data: SpeechData, tokens: Tokens) -> About:
    """A transducer: what it hears, what it writes, what it knows of the text."""
    features, stride = data.features, int(model.stride)  # type: ignore[arg-type]
    params: Mapping[str, Any] = model.card["params"]  # type: ignore[index,assignment]
    knows = f"the last {params['context']} symbols" if params["predictor"] == "stateless" else "all of the text so far"
    what = (
        f"It writes what is said in {tokens.kind} ({len(tokens.symbols) - 1} of them beside the blank), a frame every "
        f"{1000 * stride * features.hop / features.sample_rate:.0f} ms of audio at {features.sample_rate} Hz, "
        f"greedily, and knows {knows} while it does."
    )
    use = TRANSDUCER + _streaming(model, data)
    return About("Transducer speech recogniser", what, use, {"pipeline_tag": "automatic-speech-recognition"})


def _streaming(model: nn.Module, data: SpeechData) -> str:
    """How sound is given that comes in chunks, where the student was exported so."""
    stride, field = int(model.stride), getattr(model, "receptive_field", None)  # type: ignore[arg-type]
    if not data.streaming or field is None:
        return ""
    return STREAMING.format(stride=stride, before=stride - 1, after=field[1] // stride)


__all__ = ["about", "about_transducer"]
