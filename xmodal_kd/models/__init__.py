"""Parts of networks that every modality may use: attention, early exits, weights swapped for a forward pass, ONNX.

May import ``runtime``, ``signals`` and ``adapter``. Nothing here is public API.
"""
