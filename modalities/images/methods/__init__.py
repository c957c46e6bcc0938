"""What is images' own among methods: how heat maps of joints change from frame to frame.

May import ``models`` and ``data``, beside the core. Public are the names of methods in recipes.
"""

from .temporal import TemporalParams, TemporalPlay

__all__ = ["TemporalParams", "TemporalPlay"]
