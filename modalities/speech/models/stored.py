"""A teacher that ran elsewhere: in its place stand its logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from xmodal_kd.adapter.adapter import Batch
from xmodal_kd.runtime.errors import UserError

from ..data.stored_logits import StoredLogits
from .front_ends import Heard


class StoredAnswers:
    """Looks up what was said of each utterance, by its key.

    Args:
        seconds: duration of utterances by key, by which the frame rate is found where the folder does not say it.
    """

    rate: int | None = None

    def __init__(self, stored: StoredLogits, seconds: Mapping[str, float]) -> None:
        self.stored = stored
        self.frame = stored.frame(seconds)

    def hear(self, model: nn.Module, batch: Batch, view: str, features: Sequence[str] = ()) -> Heard:
        """Logits of a batch's ``keys``; an utterance that was skipped has no frames."""
        if features:
            raise UserError(f"a teacher of stored logits has no module {features[0]!r}: only its logits teach")
        device = next(model.parameters()).device
        found = [self.stored[key] for key in batch["keys"]]
        lengths = torch.tensor([len(logits) for logits in found], device=device)
        padded = pad_sequence(found, batch_first=True).to(device)
        if not padded.shape[1]:
            padded = padded.new_zeros(len(found), 1, len(self.stored.vocabulary.names))
        return Heard(padded, lengths, {})
