"""The one training loop and what a step of it minimises: engine, methods, gradients, batches, optimizers.

May import ``objective``, ``report`` and what these may. A role's place in a run is a `RolePlan` (``role_plan``).
Newcomers start at `Engine.fit`. Public are `Engine` (``engine``), `Method`, `Distil`, `Stage`, `Context` and `METHODS`
(``method``).
"""

PAGE = "recipes/README.md#keys"
