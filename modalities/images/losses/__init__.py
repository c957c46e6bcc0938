"""What is images' own among losses: heat maps of joints.

May import ``models`` and ``data``, beside the core. Public are the names of losses in recipes.
"""

from . import joints

__all__ = ["joints"]
