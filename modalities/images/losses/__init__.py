"""Losses of heat maps of joints.

May import ``data``, beside the core. Public are the losses, registered by being imported.
"""

from .joints import heatmap_mse

__all__ = ["heatmap_mse"]
