"""A saved network of nodes: folder, card, ONNX.

May import ``evaluate``, ``models`` and ``data``, beside the core. Public are the files of a saved network.
"""
