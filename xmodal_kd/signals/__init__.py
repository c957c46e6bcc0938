"""What a model says about a batch: named rows on layouts, features by module path, classes matched by name.

May import ``runtime``. Public are `Layout` and `Signals` (``signals``) and the context manager `capture` (``capture``).
"""

PAGE = "docs/own_models.md#in-a-loop-of-your-own-with-features"
