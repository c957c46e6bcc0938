"""What is images' own among losses: heat maps of joints, pixels of restored images.

May import ``models`` and ``data``, beside the core. Public are the names of losses in recipes.
"""

from . import joints, restoration

__all__ = ["joints", "restoration"]
