"""Batches for transducers: every utterance has its text, and none needs as many frames as symbols."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams

from .corpora import SpeechData
from .source import SpeechSource
from .tokens import Writes


class TextSource(SpeechSource):
    """The utterances of one split; of training those are left out that are longer than ``data.max_seconds``.

    Raises:
        UserError: a training utterance has no text.
    """

    def __init__(
        self, data: SpeechData, split: str, tokens: Writes, streams: Streams, batch_size: int, stride: int = 4
    ) -> None:  # fmt: skip
        super().__init__(data, split, tokens, streams, batch_size, stride)
        if split == "train" and len(self.labelled) < len(self):
            written = np.zeros(len(self), np.bool_)
            written[np.asarray(self.labelled, np.int64)] = True
            item = self.items[int(np.flatnonzero(~written)[0])]
            raise UserError(
                f"train utterance {item.key}: it has no text, along which a transducer's lattice lies: xmodal-kd "
                "pseudolabel TEACHER RECORDINGS --out FOLDER writes a teacher's"
            )

    def _unfit(self, needed: NDArray[Any]) -> NDArray[Any]:
        too_long = self._listed.seconds > self.data.max_seconds
        return np.flatnonzero(too_long) if self.split == "train" else np.empty(0, np.int64)

    def _unaligned(self, frames: int, needed: int) -> str | None:
        return None  # several symbols may be written in one frame


__all__ = ["TextSource"]
