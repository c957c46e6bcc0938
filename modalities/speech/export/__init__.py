"""A saved recogniser: folder, card, ONNX in float32 and int8."""
