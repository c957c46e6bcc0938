"""Features that nobody recorded, as a batch: what methods without data ask a recogniser."""

from __future__ import annotations

from math import log

import torch
from torch import Tensor

from xmodal_kd.adapter.adapter import Batch, Input

from .features import FLOOR, PRIOR, Features

#: Frames of an utterance that is made.
FRAMES = 96
#: How far above silence the loudest mel lies, in the unit of the features.
LOUD = 18.0


def made_input(features: Features) -> Input:
    """Mels by frames, the highest mel first, from silence to loud; less the usual mean where they are normalised."""
    silence = log(FLOOR) - (0.0 if features.normalise == "none" else PRIOR)
    return Input((1, features.mels, FRAMES), silence, silence + LOUD)


def made_batch(x: Tensor) -> Batch:
    """``(b, 1, mels, frames)`` as utterances that all roles hear alike, without a text."""
    heard = x[:, 0].flip(1).transpose(1, 2)
    ids = torch.arange(len(x), device=x.device)
    return {
        "ids": ids, "features": heard, "clean": heard, "lengths": torch.full_like(ids, heard.shape[1]),
        "targets": ids.new_zeros(len(x), 0), "target_lengths": torch.zeros_like(ids), "labelled": ids < 0,
    }  # fmt: skip


__all__ = ["FRAMES", "made_batch", "made_input"]
