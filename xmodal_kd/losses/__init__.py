"""All losses of the core. A new one is one file here and its oracle in ``tests/oracles``."""

from importlib import import_module
from pkgutil import iter_modules

from . import blocks
from .base import LOSSES, LossSpec, loss

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["LOSSES", "LossSpec", "blocks", "loss"]
