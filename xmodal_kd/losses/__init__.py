"""All losses of the core, a file a family. A new one is a function here and its oracle in ``tests/oracles``.

``base`` is the contract, ``blocks`` computes in chunks and blocks, ``guards`` keeps digits where formulas divide by
almost nothing. May import ``adapter``, ``signals`` and ``runtime``. Public are `LOSSES`, `loss` and every registered
name.
"""

from importlib import import_module
from pkgutil import iter_modules

from . import blocks
from .base import LOSSES, LossSpec, loss

PAGE = "recipes/README.md#rows-and-weights"

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["LOSSES", "LossSpec", "blocks", "loss"]
