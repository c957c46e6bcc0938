"""Acoustic models by name: a compact streaming student, a conformer teacher, both as transducers, a smaller Whisper, an
encoder of waves.

Every CTC model is built as ``cls(config, mels=, classes=)``, is called as ``model(features, lengths)`` and has

* ``Config``: its pydantic parameters, the ``params`` of a recipe and of a saved folder;
* ``stride``: input frames an output frame;
* ``receptive_field``: input frames it sees to the left and right of an output frame, or None where it sees them all;
* ``axes(path)``: the layout of a captured submodule's output, ``"b t c"`` or ``"t b c"``.

`EncoderForCTC` hears waves by a front end of its own, and is called as `transformers` calls its models.

A model of ``task`` transducer is built and called alike, and gives states of its encoder; see `Transducer`. One of
``task`` intents gives an utterance's class scores; see `Classifier`. One of ``task`` seq2seq has a `Config` and builds
a ``WhisperForConditionalGeneration`` of ``transformers``.

May import ``data``, beside the core. Public are the names in recipes and their parameters.
"""

from __future__ import annotations

from typing import Any

from xmodal_kd.runtime.registry import Registry

from .classifier import ConformerClassifier, ConvClassifier
from .conformer import ConformerCTC
from .conv import ConvCTC
from .encoder import EncoderForCTC
from .frames import AcousticModel
from .seq2seq import WhisperStudent
from .transducer import ConformerTransducer, ConvTransducer

MODELS: Registry[Any] = Registry("speech model")
MODELS.add("conv", ConvCTC)
MODELS.add("conformer", ConformerCTC)
MODELS.add("encoder", EncoderForCTC)
MODELS.add("whisper", WhisperStudent)
MODELS.add("conv_transducer", ConvTransducer)
MODELS.add("conformer_transducer", ConformerTransducer)
MODELS.add("conv_classifier", ConvClassifier)
MODELS.add("conformer_classifier", ConformerClassifier)

__all__ = [
    "MODELS",
    "AcousticModel",
    "ConformerCTC",
    "ConformerClassifier",
    "ConformerTransducer",
    "ConvCTC",
    "ConvClassifier",
    "ConvTransducer",
    "EncoderForCTC",
    "WhisperStudent",
]
