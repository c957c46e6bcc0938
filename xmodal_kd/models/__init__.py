"""Parts of networks that every modality may use: attention, early exits, weights swapped for a forward pass, ONNX.

May import ``adapter``, ``signals`` and ``runtime``. Nothing here is public.
"""

PAGE = "README.md#your-own-models"
