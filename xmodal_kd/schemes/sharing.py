"""Students that share modules, and one optimizer of several of them that holds a shared parameter once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn
from torch.optim import Optimizer

from ..recipe.recipe import Optimizer as Config
from ..runtime.errors import UserError, nearest
from ..training.optim import build_optimizer


# docs/decisions/015-students-that-teach.md
def share(model: nn.Module, others: Sequence[nn.Module], paths: Sequence[str]) -> None:
    """Put the modules of `model` at `paths` into the place of those of `others`: branches on one trunk.

    Raises:
        UserError: a path that is none of the model's, or lies inside another.
    """
    known = {path for path, _ in model.named_modules() if path}
    for path in paths:
        if path not in known:
            raise UserError(f"scheme, shared: no module {path!r} in {type(model).__name__}{nearest(path, known)}")
        if any(path.startswith(f"{other}.") for other in paths):
            raise UserError(f"scheme, shared: {path!r} lies inside another shared module: leave it out")
        for other in others:
            other.set_submodule(path, model.get_submodule(path))
    mine = {id(parameter) for parameter in model.parameters()}
    if others and all(id(parameter) in mine for parameter in others[0].parameters()):
        raise UserError("scheme, shared: that is all of the model: students who share everything have nothing to teach")


def together(config: Config, owners: Sequence[Mapping[str, nn.Module]]) -> Optimizer:
    """One optimizer over the modules of several owners, each parameter once.

    The names of each owner's modules are those that ``lr_scale`` knows, so that a pattern means all owners alike.
    """
    held: set[int] = set()
    whole: Optimizer | None = None
    for modules in owners:
        made = build_optimizer(config, modules)
        for group in made.param_groups:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in held]
            held |= {id(parameter) for parameter in group["params"]}
            if whole is not None and group["params"]:
                whole.add_param_group(group)
        whole = whole or made
    assert whole is not None
    return whole
