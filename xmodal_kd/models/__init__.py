"""Parts of networks that every modality may use: attention, early exits, weights swapped for a forward pass, ONNX, and
what stands for a teacher that is not there.

May import ``adapter``, ``signals`` and ``runtime``. Nothing here is public.
"""

PAGE = "README.md#your-own-models"
