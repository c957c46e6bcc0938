"""Shapes in annotations are checked at run time, in tests only: it costs 35 microseconds a call.

Not in the core's losses, which refuse wrong shapes with messages of their own, and not in models, which ONNX traces.
"""

from jaxtyping import install_import_hook

SHAPED = ("align", "decode", "features", "losses", "score")
install_import_hook([f"xmodal_kd.modalities.speech.{name}" for name in SHAPED], "beartype.beartype")
