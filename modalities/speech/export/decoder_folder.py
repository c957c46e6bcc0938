"""A saved student that writes by a decoder: a folder that ``transformers`` loads alone, and a card beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from xmodal_kd.adapter import saved_model as saved
from xmodal_kd.adapter.saved_model import CARD, WEIGHTS, About, read_card
from xmodal_kd.runtime.checkpoint import read_json, write_json
from xmodal_kd.runtime.errors import UserError

from ..data.tokens import Normaliser
from ..models.processor import Processor

USE = """```sh
xmodal-kd transcribe path/to/this/folder recording.wav folder/
```

takes audio files of any sample rate and length, with `pip install 'xmodal-kd[speech]' transformers`. With `transformers` alone:

```python
from transformers import pipeline

print(pipeline("automatic-speech-recognition", "path/to/this/folder")("recording.wav")["text"])
```"""  # noqa: E501


class DecoderCard(saved.Card):
    """What ``card.json`` says of a model that writes by a decoder; its processor is in files of transformers."""

    modality: str = Field(pattern="^speech$")
    task: str = Field(pattern="^seq2seq$")
    language: str | None = None
    leading_space: bool = True
    normaliser: Normaliser = "plain"
    sample_rate: int = Field(gt=0)


def is_decoder(folder: Path) -> bool:
    """Whether a folder is of a model that writes by a decoder and was saved here."""
    found = read_json(folder / CARD) if (folder / CARD).is_file() else None
    return isinstance(found, dict) and found.get("task") == "seq2seq"


def load_decoder_card(folder: Path) -> DecoderCard:
    """Raises `UserError` that names what is missing or wrong."""
    return read_card(folder, DecoderCard, "recogniser with a decoder")


def save_decoder(folder: Path, model: Any, processor: Processor, card: Mapping[str, Any]) -> None:
    """Write a folder that `transformers` loads, and `load_decoder_card` reads; the card, which makes it ours, last."""
    from transformers.utils import logging

    folder.mkdir(parents=True, exist_ok=True)
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model.save_pretrained(folder)
    finally:
        if shown:
            logging.enable_progress_bar()
    processor.save(folder)
    write_json(folder / CARD, {"format": 1, "modality": "speech", "task": "seq2seq", **card})


@torch.no_grad()
def reloaded(folder: Path, waves: list[Tensor], rate: int) -> list[str]:
    """What ``transformers`` alone writes of waves ``(samples,)`` with what lies in a folder, one after another.

    Raises:
        UserError: it cannot load the folder.
    """
    from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model = AutoModelForSpeechSeq2Seq.from_pretrained(folder, local_files_only=True).eval()
        made = AutoProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"{folder}: transformers cannot load it ({' '.join(str(error).split())[:200]})") from error
    finally:
        if shown:
            logging.enable_progress_bar()
    texts = []
    for wave in waves:
        heard = made(wave.numpy(), sampling_rate=rate, return_tensors="pt").input_features
        ids = model.generate(heard, num_beams=1, do_sample=False)
        texts.append(str(made.batch_decode(ids, skip_special_tokens=True)[0]).strip())
    return texts


def about_decoder(model: Any, processor: Processor) -> About:
    """What it hears and writes, and by how many layers."""
    config = model.config
    what = (
        f"A Whisper of {config.encoder_layers} layers that hear and {config.decoder_layers} that write "
        f"{processor.classes:,} tokens. It hears {processor.seconds:g} s of audio at {processor.rate} Hz at once, and "
        "tells no times of words."
    )
    front = {"pipeline_tag": "automatic-speech-recognition", "library_name": "transformers"}
    return About("Speech recogniser with a decoder", what, USE, front)


def size_of(folder: Path) -> int:
    """Bytes of its weights."""
    return sum(path.stat().st_size for path in folder.glob(f"{Path(WEIGHTS).stem}*.safetensors"))


__all__ = ["about_decoder", "is_decoder", "load_decoder_card", "reloaded", "save_decoder", "size_of"]
