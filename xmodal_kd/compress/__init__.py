"""What makes a student smaller before, while or after it learns, by name.

``base`` is the contract and ``known`` all that is registered; ``channels`` follows channels through a model,
``buckets`` chooses few-bit values, ``packed`` writes them. May import ``teacher_cache``, ``training`` and what these
may. Public are the names in recipes, their parameters and the format of ``packed.safetensors``.

Nothing is imported here: whoever loads a student through ``folder`` would wait for all that trains one.
"""

PAGE = "recipes/README.md#small-students"
