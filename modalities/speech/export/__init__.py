"""A saved recogniser: folder, card, ONNX in float32 and int8.

May import ``show``, ``evaluate`` and what it may, beside the core. Public are the files of a saved recogniser.
"""
