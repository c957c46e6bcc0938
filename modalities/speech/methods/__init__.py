"""Methods of decoders: students that learn on what they write themselves.

May import ``models`` and ``data``, beside the core. Public are the names of methods in recipes.
"""

from .minillm import MiniLLM, MiniLLMParams
from .own_texts import GKD, ContrastivePair, GKDParams, PairParams

__all__ = ["GKD", "ContrastivePair", "GKDParams", "MiniLLM", "MiniLLMParams", "PairParams"]
