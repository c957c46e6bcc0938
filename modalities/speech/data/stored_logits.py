"""Logits of a recogniser that ran elsewhere, by utterance, and their symbols: ``docs/own_logits.md``."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xmodal_kd.runtime.errors import UserError
from xmodal_kd.teacher_cache.folder import ABOUT, CLASSES, INDEX, SignalFolder

from .symbols import BLANKS, Vocabulary

#: Frame rates are guessed in steps of so many seconds, from so many utterances.
STEP, LOOKED_AT = Fraction(1, 400), 50
#: A guess further off than this share is none.
SURE = 0.015


class StoredLogits:
    """A folder of logits by utterance.

    Args:
        on_missing: ``error``, or ``skip``: an utterance without a file has no frames.
    Raises:
        UserError: the folder, its vocabulary or its blank is not there.
    """

    def __init__(self, folder: Path, on_missing: str) -> None:
        self.folder, self.on_missing = folder, on_missing
        self.stored = SignalFolder(folder, "teacher.signals")
        if (names := self.stored.classes()) is None:
            raise UserError(f"{folder}: no {CLASSES}: it says which column of the logits is which symbol")
        self.about: Mapping[str, Any] = self.stored.about
        self.vocabulary = self._vocabulary(names)

    def _vocabulary(self, names: tuple[str, ...]) -> Vocabulary:
        wanted = [str(self.about["blank"])] if "blank" in self.about else BLANKS
        blank = next((names.index(name) for name in wanted if name in names), None)
        if blank is None:
            raise UserError(f'{self.folder}: which symbol is the blank? say {{"blank": SYMBOL}} in {ABOUT} beside it')
        special = {i for i, name in enumerate(names) if name in ("<s>", "</s>", "<unk>", "[UNK]") and i != blank}
        return Vocabulary(names, blank, frozenset(special))

    def frame(self, seconds: Mapping[str, float]) -> Fraction:
        """Seconds of a frame: as ``signals.json`` says, or the one that fits the utterances' durations.

        Args:
            seconds: duration by key.
        """
        if "frame_seconds" in self.about:
            return Fraction(str(self.about["frame_seconds"]))
        longest = sorted(seconds, key=lambda key: -seconds[key])
        known = list(islice((key for key in longest if self.stored.path(key) is not None), LOOKED_AT))
        if not known:
            raise UserError(
                f"{self.folder}: holds logits of none of the {len(seconds)} training utterances, whose keys are as in "
                f"{next(iter(seconds), '')!r}: name each file KEY.npz or KEY.safetensors, or list them in {INDEX}"
            )
        # half a frame more: front ends drop the end of a recording that fills no window
        lasts = float(np.median([seconds[key] / (len(self[key]) + 0.5) for key in known]))
        guess = round(Fraction(lasts) / STEP) * STEP
        if guess <= 0 or abs(lasts / float(guess) - 1) > SURE:
            raise UserError(
                f'{self.folder}: say {{"frame_seconds": SECONDS}} in {ABOUT}: its frames last about {lasts:.4f} s, '
                "which the durations do not tell more exactly"
            )
        return guess

    def __getitem__(self, key: str) -> Tensor:
        """``(frames, symbols)`` float32; no frames where nothing is stored and that is no error.

        Raises `UserError` that names the key, or the file and what is wrong with it.
        """
        if (logits := self.stored.logits(key)) is None:
            if self.on_missing == "skip":
                return torch.zeros(0, len(self.vocabulary.names))
            raise UserError(f"{self.folder}: no logits of {key!r}: add its file, or say teacher.on_missing=skip")
        if logits.ndim != 2 or logits.shape[1] != len(self.vocabulary.names) or not len(logits):
            raise UserError(
                f"{self.stored.path(key)}: logits of shape {logits.shape}: (frames, {len(self.vocabulary.names)}) is "
                f"expected, a column a symbol of {CLASSES}"
            )
        return torch.from_numpy(np.ascontiguousarray(logits))
