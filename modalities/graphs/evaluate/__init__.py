"""How well nodes are told apart.

May import ``models`` and ``data``, beside the core. Public are the metrics of predictions.
"""
