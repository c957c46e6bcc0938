"""CTC acoustic models by name: a compact streaming student and a conformer teacher.

Every model is built as ``cls(config, mels=, classes=)``, is called as ``model(features, lengths)`` and has

* ``Config``: its pydantic parameters, the ``params`` of a recipe and of a saved folder;
* ``stride``: input frames an output frame;
* ``receptive_field``: input frames it sees to the left and right of an output frame, or None where it sees them all;
* ``axes(path)``: the layout of a captured submodule's output, ``"b t c"`` or ``"t b c"``.

May import ``data``, beside the core. Public are the names in recipes and their parameters.
"""

from __future__ import annotations

from xmodal_kd.runtime.registry import Registry

from .conformer import ConformerCTC
from .conv import ConvCTC
from .frames import AcousticModel

MODELS: Registry[type[AcousticModel]] = Registry("speech model")
MODELS.add("conv", ConvCTC)
MODELS.add("conformer", ConformerCTC)

__all__ = ["MODELS", "AcousticModel", "ConformerCTC", "ConvCTC"]
