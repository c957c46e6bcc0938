"""Knowledge distillation across modalities: one core, adapters for speech, 3D points, diffusion, images, graphs.

The names in ``__all__`` are the public API. They are imported when they are first asked for, so that ``import
xmodal_kd`` costs nothing.

>>> import torch
>>> from xmodal_kd import Layout, Objective, Signals, Term
>>> rows = Layout.samples(3)
>>> teacher = Signals().add("logits", torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), rows)
>>> student = Signals().add("logits", torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 3.0]]), rows)
>>> round(float(Objective([Term(loss="kd")])(student, teacher).value()), 6)
0.0

**Stability.** Before 1.0 a minor version may change these names, and says so in CHANGELOG.md; a patch never does. From
1.0 on they follow semantic versioning. The same holds for what a recipe may say, for the keys of ``report.json``,
``compare.json`` and every ``--json``, and for the files of a saved student. Everything else (modules, whatever starts
with an underscore, the text of messages) may change at any time. The context manager `capture` of
`xmodal_kd.signals.capture` is public too.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .adapter.adapter import Adapter, Batch, Evaluation, Score, Source, Strict
    from .losses import LOSSES, loss
    from .objective.objective import Objective
    from .objective.parts import LossOut
    from .recipe.recipe import Recipe, Term, Train
    from .runtime.device import make_accelerator
    from .runtime.errors import RunError, UserError
    from .runtime.random_streams import Streams
    from .runtime.registry import Registry
    from .signals.signals import Layout, Signals
    from .training.engine import Engine
    from .training.method import METHODS, Context, Distil, Method, Stage

__version__ = "0.1.0"

__all__ = [
    "LOSSES",
    "METHODS",
    "Adapter",
    "Batch",
    "Context",
    "Distil",
    "Engine",
    "Evaluation",
    "Layout",
    "LossOut",
    "Method",
    "Objective",
    "Recipe",
    "Registry",
    "RunError",
    "Score",
    "Signals",
    "Source",
    "Stage",
    "Streams",
    "Strict",
    "Term",
    "Train",
    "UserError",
    "__version__",
    "loss",
    "make_accelerator",
]

_HOMES = {
    "adapter.adapter": ("Adapter", "Batch", "Evaluation", "Score", "Source", "Strict"),
    "training.engine": ("Engine",),
    "runtime.errors": ("RunError", "UserError"),
    "losses": ("LOSSES", "loss"),
    "training.method": ("METHODS", "Context", "Distil", "Method", "Stage"),
    "objective.objective": ("Objective",),
    "objective.parts": ("LossOut",),
    "recipe.recipe": ("Recipe", "Term", "Train"),
    "runtime.registry": ("Registry",),
    "runtime.device": ("make_accelerator",),
    "signals.signals": ("Layout", "Signals"),
    "runtime.random_streams": ("Streams",),
}


if not TYPE_CHECKING:  # to whom every name would be of this package

    def __getattr__(name: str) -> Any:
        for home, names in _HOMES.items():
            if name in names:
                found = globals()[name] = getattr(import_module(f".{home}", __name__), name)
                return found
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
