"""What a recipe is: its sections as pydantic models, YAML read strictly with the line of every key, schedules.

May import ``runtime``, ``signals``, ``adapter`` and ``losses``. Public are `Recipe`, `Term` and `Train` (``recipe``).
"""
