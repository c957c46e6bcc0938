"""What is points' own among losses: heat and boxes at centres, maps of the ground, graphs of rows, fused pictures.

May import ``models``, ``views`` and ``data``, beside the core. Public are the names of losses in recipes.
"""

from . import bev, centres, fusion, local

__all__ = ["bev", "centres", "fusion", "local"]
