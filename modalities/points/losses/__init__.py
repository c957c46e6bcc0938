"""What is points' own among losses: centres as heat, boxes at centres, what a teacher says of both; graphs of rows.

May import ``models``, ``views`` and ``data``, beside the core. Public are the names of losses in recipes.
"""

from . import centres, local

__all__ = ["centres", "local"]
