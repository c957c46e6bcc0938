"""Batches for decoders: what every utterance needs so that one can be forced over its text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams

from .corpora import SpeechData
from .source import Hears, Sample, SpeechSource
from .tokens import Writes


class DecoderSource(SpeechSource):
    """The utterances of one split, of which no row is a frame: nothing has to be aligned.

    Args:
        limit: positions of the decoder.
        seconds: that the model hears at once.
        others: tokens of roles that write others, and the positions of their decoders.
    Raises:
        UserError: a training text is missing or longer than `limit`, an utterance of dev or test lasts longer than
            `seconds`.
    """

    def __init__(
        self, data: SpeechData, split: str, tokens: Writes, streams: Streams, batch_size: int, frontend: Hears,
        limit: int, seconds: float, others: Mapping[str, tuple[Writes, int]] | None = None,
    ) -> None:  # fmt: skip
        self.limit, self.heard, self.others = limit, seconds, others or {}
        super().__init__(data, split, tokens, streams, batch_size, frontend=frontend)
        if split == "train":
            self._check_texts()
        elif len(long := np.flatnonzero(self.seconds > seconds)):
            item = self.items[int(long[0])]
            raise UserError(
                f"{split} utterance {item.key}: {item.seconds:.1f} s, the model hears {seconds:g} s at once "
                f"({len(long)} such utterances): cut it into segments (offset and duration in its manifest), or leave "
                "it out by data.skip"
            )

    def _check_texts(self) -> None:
        written = np.zeros(len(self), np.bool_)
        written[np.asarray(self.labelled, np.int64)] = True
        if not written.all():
            item = self.items[int(np.flatnonzero(~written)[0])]
            raise UserError(
                f"train utterance {item.key}: it has no text, over which a decoder is forced: xmodal-kd pseudolabel "
                "TEACHER RECORDINGS --out FOLDER --as-written writes the teacher's"
            )
        kept = self._kept()
        needed = self._needed if kept is None else self._needed[kept]
        self.longest = int(needed.max())
        if len(over := np.flatnonzero(needed > self.limit)):
            raise UserError(self.too_long(int(over[0]), self.limit, len(over)))
        for role, (tokens, limit) in self.others.items():
            needed = self._listed.needed(tokens, self.split, unknown_left=False)
            needed = needed if kept is None else needed[kept]
            if len(over := np.flatnonzero(needed > limit)):
                raise UserError(f"{role}: {self.too_long(int(over[0]), limit, len(over), tokens)}")

    def too_long(self, index: int, limit: int, count: int, tokens: Writes | None = None) -> str:
        """Why an utterance cannot be learnt from."""
        item = self.items[index]
        needed = len((tokens or self.tokens).encode(item.text or ""))
        return (
            f"train utterance {item.key}: its text needs {needed} positions of the decoder, which has {limit} "
            f"(max_target_positions; {count} such utterances): cut it into segments, or leave it out by data.skip"
        )

    def again(self, index: int, epoch: int, view: int) -> Sample:
        made = super().again(index, epoch, view)
        text = self.items[index].text or ""
        others = {role: tokens.encode(text) for role, (tokens, _) in self.others.items()}
        return replace(made, others=others) if others else made

    def collate(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """As for CTC, and beside it what roles of other tokens are forced over: `targets_of`."""
        made = super().collate(samples)
        for role in self.others:
            made |= forced_over(role, [sample.others[role] for sample in samples])
        return made

    def _unfit(self, needed: NDArray[np.uint32]) -> NDArray[np.int64]:
        """Training leaves out what lasts longer than the model hears, or than it should."""
        if self.split != "train":
            return np.empty(0, np.int64)
        seconds = self._listed.seconds
        return np.flatnonzero((seconds > self.data.max_seconds) | (seconds / self.data.augment.slowest > self.heard))

    def _why(self, row: int) -> tuple[str, str]:
        item, slowest = self._listed.item(row), self.data.augment.slowest
        played = f" (played at {slowest:g})" if slowest < 1 else ""
        if item.seconds > self.data.max_seconds:
            return item.key, f"{item.seconds:.1f} s is longer than data.max_seconds ({self.data.max_seconds:g})"
        return item.key, f"{item.seconds:.1f} s{played} is longer than what is heard at once ({self.heard:g} s)"

    def _unaligned(self, frames: int, needed: int) -> str | None:
        return None


def forced_over(role: str, targets: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """What a batch says of the tokens that a role is forced over; "" is whoever writes the student's."""
    return {
        _key(role, "targets"): pad_sequence([torch.tensor(one) for one in targets], True, -1),
        _key(role, "target_lengths"): torch.tensor([len(one) for one in targets]),
    }


def targets_of(batch: Mapping[str, Any], role: str) -> Tensor:
    """``(b, u)`` tokens of `forced_over`, padded with -1."""
    found: Tensor = batch[_key(role, "targets")]
    return found


def lengths_of(batch: Mapping[str, Any], role: str) -> Tensor:
    """``(b,)``."""
    found: Tensor = batch[_key(role, "target_lengths")]
    return found


def _key(role: str, name: str) -> str:
    return f"{name} of {role}" if role else name


__all__ = ["DecoderSource", "forced_over", "lengths_of", "targets_of"]
