"""A saved segmenter: folder, card, ONNX, labelled point files.

May import ``show``, ``evaluate`` and what it may, beside the core. Public are the files of a saved segmenter.
"""
