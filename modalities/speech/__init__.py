"""Compact CTC recognisers by acoustic distillation.

Nothing heavy is imported until the adapter is asked for. May import the core below ``run``, and no other modality.
Public are `ADAPTER`, `COMMANDS` and `SKETCH`, which the core finds by the folder's name.
"""

ADAPTER = "adapter:SpeechAdapter"
COMMANDS = "use.commands"
SKETCH = "use.sketch"
PAGE = "modalities/speech/README.md#a-teacher-of-your-own"
