"""What a model says about a batch: named rows on layouts, features by module path, classes matched by name.

May import ``runtime``. Public are `Layout` and `Signals` (``signals``) and the context manager `capture` (``capture``).
"""
