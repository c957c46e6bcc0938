"""Batches of utterances with a class each: what a spoken command wants, or which word it is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from xmodal_kd.runtime.errors import UserError, nearest
from xmodal_kd.runtime.random_streams import Streams

from .corpora import SpeechData, utterances
from .listing import Item
from .source import Sample, SpeechSource

#: The label of an utterance whose class nobody said.
UNKNOWN = -1


@dataclass(frozen=True)
class Intents:
    """The classes, in order. Texts stay as they are written: a teacher may read them.

    >>> Intents(("off", "on")).number("on")
    1
    """

    names: tuple[str, ...]

    @cached_property
    def _index(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.names)}

    def __len__(self) -> int:
        return len(self.names)

    def number(self, name: str) -> int | None:
        return self._index.get(name)

    def encode(self, text: str, *, unknown_left: bool = False) -> list[int]:
        return []

    def normalise(self, text: str) -> str:
        return " ".join(text.split())

    def min_frames(self, ids: Sequence[int]) -> int:
        """One answer stands for all of an utterance."""
        return 0

    def to_json(self) -> str:
        return json.dumps({"kind": "intents", "symbols": self.names}, ensure_ascii=False)


def build_intents(data: SpeechData) -> Intents:
    """The classes of the training split, sorted. Raises `UserError` where there are fewer than two."""
    found = sorted({one.intent for one in utterances(data, "train") if one.intent is not None})
    if len(found) < 2:
        told = f"one intent only, {found[0]!r}" if found else "no intent"
        raise UserError(
            f"data: the training split has {told}: give each line of the manifest its intent (or label), or take data "
            "whose folders or tables name them (fsdd, speech_commands, fluent_speech_commands)"
        )
    return Intents(tuple(found))


class IntentSource(SpeechSource):
    """The utterances of one split, of which some of training may lack an intent, a text, or both.

    Raises:
        UserError: an utterance of dev or test without an intent, or with one that no training utterance has.
    """

    tokens: Intents

    def __init__(
        self, data: SpeechData, split: str, intents: Intents, streams: Streams, batch_size: int, stride: int = 4
    ) -> None:  # fmt: skip
        super().__init__(data, split, intents, streams, batch_size, stride)

    def _rows_needed(self) -> NDArray[Any]:
        count = len(self._listed.seconds)
        self._numbers = np.fromiter((self._number(self._listed.item(row)) for row in range(count)), np.int64, count)
        return np.zeros(count, np.int64)

    def _number(self, item: Item) -> int:
        if item.intent is None:
            if self.split != "train":
                raise UserError(
                    f"data: {self.split} utterance {item.key!r} lacks 'intent': only training audio may go without"
                )
            return UNKNOWN
        if (number := self.tokens.number(item.intent)) is None:
            raise UserError(
                f"data: {self.split} utterance {item.key!r}: intent {item.intent!r} is of no training utterance"
                f"{nearest(item.intent, self.tokens.names)}: leave it out by data.skip, or train on some of it"
            )
        return number

    @property
    def texted(self) -> bool:
        """Whether any of it has a text."""
        return bool(self._listed.written.any())

    @property
    def _written(self) -> NDArray[np.bool_]:
        written: NDArray[np.bool_] = self._numbers != UNKNOWN
        return written

    def _said(self, item: Item) -> tuple[str, list[int]]:
        return self.tokens.normalise(item.text or ""), [] if item.intent is None else [self._number(item)]

    def collate(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """As `SpeechSource.collate`, with ``labels`` ``(b,)`` int64, `UNKNOWN` where nobody said it; ``texts`` are as
        they are written, empty where there is none."""
        labels = [sample.target[0] if sample.target else UNKNOWN for sample in samples]
        return super().collate(samples) | {"labels": torch.tensor(labels)}

    def describe(self) -> dict[str, Any]:
        facts = super().describe()
        without = facts.pop("untranscribed", None)
        return facts | ({"without_intent": without} if without else {})


__all__ = ["UNKNOWN", "IntentSource", "Intents", "build_intents"]
