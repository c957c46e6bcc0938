"""Losses of heat maps of joints, and of restored images.

May import ``data``, beside the core. Public are the losses, registered by being imported.
"""

from .joints import heatmap_mse
from .restoration import pixel_l1

__all__ = ["heatmap_mse", "pixel_l1"]
