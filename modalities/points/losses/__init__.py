"""What is points' own among losses: heat and boxes at centres, graphs of rows, pictures fused with scans.

May import ``models``, ``views`` and ``data``, beside the core. Public are the names of losses in recipes.
"""

from . import centres, fusion, local

__all__ = ["centres", "fusion", "local"]
