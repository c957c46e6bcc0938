"""Networks by name: graph networks of several layers, one of a single layer that knows its peers, and an MLP.

All are built as ``cls(config, features=, classes=)`` and have ``layers.*`` and ``head`` to capture; ``head`` is linear.

May import ``data``, beside the core. Public are the names in recipes and their parameters.
"""

from __future__ import annotations

from typing import Any

from xmodal_kd.runtime.registry import Registry

from .networks import GCN, MLP, Network, PeerAware, Sage

MODELS: Registry[Any] = Registry("graphs model")
MODELS.add("sage", Sage)
MODELS.add("gcn", GCN)
MODELS.add("peer_aware", PeerAware)
MODELS.add("mlp", MLP)

__all__ = ["GCN", "MLP", "MODELS", "Network", "PeerAware", "Sage"]
