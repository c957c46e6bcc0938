"""A saved segmenter: folder, card, ONNX, labelled point files."""
