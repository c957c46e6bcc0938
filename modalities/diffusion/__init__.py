"""Few-step diffusion samplers by step distillation.

Nothing heavy is imported until the adapter is asked for. May import the core below ``run``, and no other modality.
Public are `ADAPTER`, `COMMANDS` and `SKETCH`, which the core finds by the folder's name.
"""

ADAPTER = "adapter:DiffusionAdapter"
COMMANDS = "use.commands"
SKETCH = "use.sketch"
PAGE = "modalities/diffusion/README.md#distil-a-model-of-your-own"
