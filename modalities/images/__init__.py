"""Images of one class each, and figures whose joints are found: classifiers, small enough to read in one sitting.

Nothing heavy is imported until the adapter is asked for. May import the core below ``run``, and no other modality.
Public are `ADAPTER`, `COMMANDS` and `SKETCH`, which the core finds by the folder's name.
"""

ADAPTER = "adapter:ImagesAdapter"
COMMANDS = "use.commands"
SKETCH = "use.sketch"
