"""Students that write by a decoder: a Whisper with fewer layers than the folder that it is made from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from pydantic import Field
from torch import Tensor, nn

from xmodal_kd.adapter.source import Strict
from xmodal_kd.runtime.errors import UserError

from .processor import Processor


class WhisperLayers(Strict):
    """Of a model as of its folder, ``data.processor``: all else is as there."""

    processor: Path | None = None
    """Of a teacher that is trained here: a folder of its own, whose tokenizer it writes by."""
    encoder_layers: int | None = Field(default=None, ge=1, le=1024)
    """None: as many as the folder's."""
    decoder_layers: int | None = Field(default=None, ge=1, le=1024)
    """None: as many as the folder's."""
    freeze_encoder: bool = False
    """Whether the encoder stays as it starts, which takes a start from a trained one (`layer_copy`). Where it is the
    teacher's, it runs once for both."""


class WhisperStudent:
    """What `MODELS` knows of a ``WhisperForConditionalGeneration``; its sizes are those of ``data.processor``."""

    Config: ClassVar[type[Strict]] = WhisperLayers
    task: ClassVar[str] = "seq2seq"

    @staticmethod
    def build(config: WhisperLayers, processor: Processor) -> Any:
        """With random weights. What masks its features while it learns is off: it draws from no stream of ours."""
        from transformers import WhisperConfig, WhisperForConditionalGeneration

        whole = int(processor.config["encoder_layers"])
        if config.freeze_encoder and config.encoder_layers not in (None, whole):
            raise UserError(
                f"student.params.encoder_layers: {config.encoder_layers} of {whole}: an encoder with other layers has "
                "to learn: set student.params.freeze_encoder=false"
            )
        changes = {
            key: value
            for key in ("encoder_layers", "decoder_layers")
            if (value := getattr(config, key)) is not None
        }  # fmt: skip
        sizes = WhisperConfig.from_dict({**processor.config, **changes, "apply_spec_augment": False})
        model = WhisperForConditionalGeneration(sizes)
        model.generation_config = processor.written_config()
        if config.freeze_encoder:
            encoder_of(model).requires_grad_(False)
        return model


def encoder_of(model: nn.Module) -> nn.Module:
    found: nn.Module = model.model.encoder  # type: ignore[union-attr,assignment]
    return found


class Encoders:
    """States of encoders, computed once a batch where two roles have one frozen encoder and hear the same."""

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[nn.Module, tuple[tuple[int, ...], str]] = WeakKeyDictionary()
        self._last: tuple[str, Tensor, Tensor] | None = None

    def __call__(self, encoder: nn.Module, heard: Tensor, *, shared: bool) -> Tensor:
        """``(b, t, c)`` states of features ``(b, mels, frames)``.

        Args:
            shared: False where a caller looks inside the encoder, which must then run.
        """
        if any(parameter.requires_grad for parameter in encoder.parameters()):
            states: Tensor = encoder(heard).last_hidden_state
            return states
        if encoder.training:
            encoder.eval()
        digest = self._digest(encoder)
        if shared and self._last is not None:
            known, there, states = self._last
            if known == digest and there.shape == heard.shape and bool((there == heard).all()):
                return states
        with torch.no_grad():
            states = encoder(heard).last_hidden_state
        self._last = (digest, heard, states)
        return states

    def _digest(self, encoder: nn.Module) -> str:
        """Of its weights, taken again where one of them was written to."""
        state = [*encoder.parameters(), *encoder.buffers()]
        versions = tuple(value._version for value in state)
        known = self._known.get(encoder)
        if known is None or known[0] != versions:
            known = (versions, digest_of(state))
            self._known[encoder] = known
        return known[1]


def digest_of(tensors: Sequence[Tensor]) -> str:
    """A hash of their values."""
    found = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        found.update(str((tuple(tensor.shape), tensor.dtype)).encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def shifted(targets: Tensor, start: int, pad: int) -> Tensor:
    """``(b, u)`` what a decoder is given for targets ``(b, u)``: the start, then each target but the last.

    Args:
        targets: below 0 where there is none.
    """
    given = torch.cat([torch.full_like(targets[:, :1], start), targets[:, :-1]], dim=1)
    return torch.where(given < 0, pad, given)


__all__ = ["Encoders", "WhisperLayers", "WhisperStudent", "encoder_of", "shifted"]
