"""A teacher by its name among torchaudio's pipelines: ``bundle.json`` in a folder says which, as
WAV2VEC2_ASR_BASE_960H.

Its weights are those that torchaudio keeps in torch's cache (``$TORCH_HOME/hub/checkpoints``), fetched where they are
not, or a safetensors file of the folder. One utterance is heard at a time: bundles that normalise waves do so over a
whole batch.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from fractions import Fraction
from math import prod
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from xmodal_kd.adapter.saved_model import explain
from xmodal_kd.adapter.source import Strict
from xmodal_kd.runtime.binary_packages import loading
from xmodal_kd.runtime.checkpoint import load_weights, read_tensors
from xmodal_kd.runtime.errors import UserError, nearest
from xmodal_kd.runtime.whole_files import read_object

from ..data.symbols import Vocabulary
from .pretrained import Described, Pretrained, WaveFrontEnd, shortest

ABOUT = "bundle.json"


class BundleAbout(Strict):
    """What ``bundle.json`` says."""

    #: A Wav2Vec2, HuBERT or WavLM of ``torchaudio.pipelines``.
    bundle: str
    #: Weights of it in this folder, as safetensors, such as those of a training of your own; None: the published ones.
    weights: str | None = Field(default=None, pattern=r"\.safetensors$")


def is_bundle(folder: Path) -> bool:
    return (folder / ABOUT).is_file()


def described_bundle(folder: Path) -> Described:
    """What it hears and writes, without its weights. Raises `UserError` for a name that torchaudio does not have."""
    bundle = _bundle(folder, _about(folder).bundle)
    layers = 0 if hasattr(bundle, "get_labels") else int(bundle._params["encoder_num_layers"])
    return Described(int(bundle.sample_rate), _frame(bundle), _vocabulary(bundle), layers)


def load_bundle(folder: Path) -> Pretrained:
    """The model, frozen, in float32 on the CPU; without a head where the bundle has none.

    Raises:
        UserError: torchaudio has no such bundle, or its weights are not there and cannot be fetched, or do not fit.
    """
    about = _about(folder)
    bundle = _bundle(folder, about.bundle)
    if about.weights is not None:
        model: nn.Module = _built(bundle)
        load_weights(model, read_tensors(folder / about.weights), folder / about.weights)
    else:
        model = _fetched(bundle, about.bundle, folder)
    model = model.eval().requires_grad_(False)
    return Pretrained(model, BundleFrontEnd(bundle), _vocabulary(bundle))


class BundleFrontEnd(WaveFrontEnd):
    """Waves of the bundle's rate, of mean 0 and variance 1 where it says so."""

    def __init__(self, bundle: Any) -> None:
        self.rate = int(bundle.sample_rate)
        self.normalise, self.masked = bool(bundle._normalize_waveform), False
        self.answers = hasattr(bundle, "get_labels")
        self.least = shortest(_convolutions(bundle))
        self.frame = _frame(bundle)

    def _together(self, samples: Sequence[int]) -> Iterator[list[int]]:
        yield from ([index] for index in range(len(samples)))

    def _said(self, model: nn.Module, waves: Sequence[Tensor]) -> Tensor:
        (wave,) = waves
        heard = F.layer_norm(wave, wave.shape) if self.normalise else wave
        return model(heard[None])[0]  # type: ignore[no-any-return]


def _about(folder: Path) -> BundleAbout:
    try:
        return BundleAbout.model_validate(read_object(folder / ABOUT))
    except ValidationError as error:
        raise UserError(f"{folder / ABOUT}: {explain(error)}") from error


def _bundle(folder: Path, name: str) -> Any:
    with loading("torchaudio"):
        from torchaudio import pipelines
    known = {key for key in dir(pipelines) if isinstance(getattr(pipelines, key), pipelines.Wav2Vec2Bundle)}
    if name not in known:
        raise UserError(f"{folder / ABOUT}: torchaudio.pipelines has no Wav2Vec2 bundle {name!r}{nearest(name, known)}")
    return getattr(pipelines, name)


def _built(bundle: Any) -> Any:
    """The network with random weights; a bundle's parameters name its head (``aux_num_out``), or none."""
    with loading("torchaudio"):
        from torchaudio.models import wav2vec2_model, wavlm_model
    factory = {"Wav2Vec2": wav2vec2_model, "WavLM": wavlm_model}[bundle._model_type]
    with torch.random.fork_rng(devices=[]):
        return factory(**bundle._params)


def _fetched(bundle: Any, name: str, folder: Path) -> nn.Module:
    try:
        model = bundle.get_model(dl_kwargs={"progress": False, "weights_only": True})
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:  # no network is an OSError, too
        why = " ".join(str(error).split())[:200]
        raise UserError(
            f"{folder / ABOUT}: the weights of {name} ({bundle._path}) cannot be had ({why}): put that file of "
            f"https://download.pytorch.org/torchaudio/models into {torch.hub.get_dir()}/checkpoints, or name "
            "safetensors of this folder as weights"
        ) from error
    return model.model if bundle._normalize_waveform else model  # type: ignore[no-any-return]


def _vocabulary(bundle: Any) -> Vocabulary | None:
    return Vocabulary(tuple(bundle.get_labels()), blank=0) if hasattr(bundle, "get_labels") else None


def _convolutions(bundle: Any) -> list[tuple[int, int]]:
    """Kernel and stride of each layer that brings the wave to frames."""
    return [(kernel, stride) for _, kernel, stride in bundle._params["extractor_conv_layer_config"]]


def _frame(bundle: Any) -> Fraction:
    return Fraction(prod(stride for _, stride in _convolutions(bundle)), int(bundle.sample_rate))


__all__ = ["ABOUT", "BundleFrontEnd", "described_bundle", "is_bundle", "load_bundle"]
