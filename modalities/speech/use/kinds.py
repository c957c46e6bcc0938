"""Which recogniser a saved student is for."""

from __future__ import annotations

from pathlib import Path

from xmodal_kd.runtime.errors import UserError

from ..export.saved_folder import kind_in
from ..models import EncoderForCTC
from .transcribe import Recogniser
from .transducer import TransducerRecogniser
from .waves import WaveRecogniser


def recogniser_of(folder: Path) -> type[Recogniser]:
    """The class that transcribes with a folder; `Recogniser`, which says what is wrong, where nothing does."""
    kind = kind_in(folder)
    if getattr(kind, "task", "ctc") == "intents":
        raise UserError(f"{folder}: it writes no text, it names classes: xmodal-kd classify-audio {folder} AUDIO")
    if getattr(kind, "task", "ctc") == "transducer":
        return TransducerRecogniser
    return WaveRecogniser if kind is EncoderForCTC else Recogniser


__all__ = ["recogniser_of"]
