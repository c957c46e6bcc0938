"""Commands that train nothing, behind their options. Nothing heavy is imported before one runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping


def schema() -> None:
    """Print the JSON Schema of recipes, from which editors complete and explain keys.

    Example: xmodal-kd schema > recipe.schema.json

    An editor with a YAML language server takes it up where a recipe says:
    # yaml-language-server: $schema=recipe.schema.json
    """
    from .schema import recipe_schema

    print(json.dumps(recipe_schema(), indent=1, ensure_ascii=False))


#: By name; `cli` adds them to the program.
COMMANDS: Mapping[str, Callable[..., None]] = {"schema": schema}
