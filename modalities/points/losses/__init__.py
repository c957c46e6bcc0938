"""What is detection's own among losses: centres as heat, boxes at centres, what a teacher says of both.

May import ``models``, ``views`` and ``data``, beside the core. Public are the names of losses in recipes.
"""

from . import centres

__all__ = ["centres"]
