"""What a recipe is: its sections as pydantic models, YAML read strictly with the line of every key, schedules.

May import ``losses``, ``models``, ``adapter``, ``signals`` and ``runtime``. Public are `Recipe`, `Term` and `Train`
(``recipe``).
"""

PAGE = "recipes/README.md#keys"
