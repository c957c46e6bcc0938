"""Models that are spread over ranks, recomputed or kept on the CPU while they train.

Torch's ``fully_shard`` is called here and not through Accelerate, whose plugin wraps models and optimizers in its own
where the engine steps the bare ones, shards by the classes of one model where there are several, and averages gradients
where there are sums and counts.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint

from ..models.weight_swap import weight_swap_of
from ..objective.heads import head_paths
from ..recipe.recipe import Train
from ..runtime.distributed import Ranks
from ..runtime.errors import UserError
from ..runtime.shards import gathered, is_shard
from .compiled import DEFAULT

#: Errors of torch that say that weights were used past the module that holds them.
MIXED = ("mixed torch.Tensor and DTensor", "FSDP", "data is not allocated yet")


def blocks(model: nn.Module) -> dict[str, nn.Module]:
    """The repeated parts of a model: what has parameters in its lists of modules, the outermost of such lists."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not any(name.startswith(f"{outer}.") for outer in found):
            found |= {
                f"{name}.{i}": one for i, one in enumerate(module) if next(one.parameters(), None) is not None
            }  # fmt: skip
    return found


def fits(train: Train, method: Any, ranks: Ranks) -> None:
    """Raises `UserError` where what the recipe says of sharding does not go with the rest of it."""
    other = next((what for what, there in (
        ("train.precision: fp16, whose gradients are looked at by each rank alone", train.precision == "fp16"),
        ("balance gradnorm", any(getattr(m, "reads_gradients", False) for m in method.modules().values())),
    ) if there), None)  # fmt: skip
    if train.sharding == "fsdp" and other is not None:
        raise UserError(f"train.sharding: fsdp does not go with {other}: leave one of them out")
    keys = {"sharding": train.sharding != "none", "frozen": train.frozen != "whole", "recompute": train.recompute}
    if (key := next((key for key, said in keys.items() if said), None)) and not getattr(method, "shards", False):
        raise UserError(
            f"train.{key}: {type(method).__name__} handles models itself: only a teacher, a student and what they are "
            f"trained with by `distil` can be spread, recomputed or kept away: leave train.{key} out"
        )
    heads = [one for module in method.modules().values() for one in getattr(module, "terms", ()) if one.term.head]
    if train.frozen != "whole" and heads:
        path = " ".join(head_paths(heads[0].term, "teacher"))
        raise UserError(f"train.frozen: {train.frozen}: {heads[0].name} reads the teacher's {path!r}: say whole")
    if train.sharding != "none" and (own := [one for one in heads if "own_head" in one.spec.inputs]):
        path = " ".join(head_paths(own[0].term, "student"))
        raise UserError(f"train.sharding: {train.sharding}: {own[0].name} reads the student's {path!r}: say none")
    if train.frozen == "sharded" and train.sharding != "fsdp":
        raise UserError("train.frozen: sharded needs train.sharding: fsdp")
    if train.recompute and train.compile != "none":
        raise UserError("train.recompute does not go with train.compile: leave one of them out")


class Sharding:
    """The roles of a training as this rank holds them.

    Args:
        roles: by name; those that are spread are replaced by copies until `leave`, the originals wait on the CPU.
        learning: of these, who learns, and the averages of who learns.
    """

    def __init__(
        self, train: Train, roles: dict[str, nn.Module], learning: frozenset[str], ranks: Ranks, device: torch.device
    ) -> None:
        self.roles, self.ranks, self.device, self.compiles = roles, ranks, device, train.compile != "none"
        several = ranks.world > 1
        self.spread = sorted(
            role for role in roles if several and train.sharding == "fsdp"
            and (role in learning or train.frozen == "sharded")
        )  # fmt: skip
        self.away = sorted(role for role in roles if role not in learning and train.frozen == "cpu")
        self.recomputed = sorted(role for role in learning & roles.keys() if train.recompute)
        self.whole: dict[str, nn.Module] = {}
        self._put_back: list[Callable[[], None]] = []

    def enter(self) -> None:
        """Raises `UserError` for a model that cannot be spread or recomputed, by what of it."""
        for role in self.recomputed:
            self._recompute(role)
        self.ranks.agree(self.roles[role] for role in self.spread)
        for role in self.spread:
            check(role, self.roles[role])
            original = self.whole[role] = self.roles[role]
            self.roles[role] = _spread(copy.deepcopy(original), self.device, compiles=self.compiles)
            original.to("cpu")
        for role in self.away:
            self._keep_away(role)

    def leave(self, *, gather: bool) -> None:
        """The originals are in their places again, with what was learnt if `gather`; then all ranks must call it."""
        for role, original in self.whole.items():
            if gather:
                _gather(self.roles[role], original)
            self.roles[role] = original.to(self.device)
        self.whole = {}
        while self._put_back:
            self._put_back.pop()()

    @contextmanager
    def looked_at(self, role: str) -> Iterator[nn.Module]:
        """A role as a whole, for whoever is not its training. All ranks must ask; the main one gets the weights."""
        if role not in self.whole:
            yield self.roles[role]
            return
        original = self.whole[role]
        _gather(self.roles[role], original)
        yield original.to(self.device if self.ranks.main else "cpu")
        original.to("cpu")

    def _recompute(self, role: str) -> None:
        found = blocks(self.roles[role])
        if not found:
            raise UserError(
                f"train.recompute: the {role} ({type(self.roles[role]).__name__}) has no list of blocks to recompute "
                "one by one: leave it out"
            )
        for module in found.values():
            # by the class's forward, so that a copy of the module recomputes its own
            module.forward = partial(_recomputed, module)
            self._put_back.append(partial(module.__dict__.pop, "forward", None))

    def _keep_away(self, role: str) -> None:
        model = self.roles[role].to("cpu")
        for buffer in model.buffers():
            buffer.data = buffer.data.to(self.device)
        units = list(blocks(model).values())
        inside = {id(parameter) for unit in units for parameter in unit.parameters()}
        parts = [(unit, list(unit.parameters())) for unit in units]
        parts.append((model, [parameter for parameter in model.parameters() if id(parameter) not in inside]))
        hooks = []
        for unit, parameters in parts:
            kept = [parameter.data for parameter in parameters]
            hooks.append(unit.register_forward_pre_hook(partial(_fetch, parameters, self.device)))
            hooks.append(unit.register_forward_hook(partial(_drop, parameters, kept), always_call=True))

        def back() -> None:
            for hook in hooks:
                hook.remove()
            model.to(self.device)

        self._put_back.append(back)


def _fetch(parameters: list[nn.Parameter], device: torch.device, *given: Any) -> None:
    for parameter in parameters:
        parameter.data = parameter.data.to(device, non_blocking=True)


def _drop(parameters: list[nn.Parameter], kept: list[Tensor], *given: Any) -> None:
    """A frozen weight is what it was: nothing is copied back."""
    for parameter, held in zip(parameters, kept, strict=True):
        parameter.data = held


def _recomputed(module: nn.Module, *args: Any, **named: Any) -> Any:
    forward = type(module).forward
    if not torch.is_grad_enabled():
        return forward(module, *args, **named)
    return checkpoint(forward, module, *args, use_reentrant=False, **named)


def check(role: str, model: nn.Module) -> None:
    """Raises `UserError` for a model that cannot be spread over ranks, by what of it."""
    told = f"train.sharding: fsdp: the {role} ({type(model).__name__})"
    advice = "say train.sharding=none" if role != "teacher" else "say train.frozen=whole"
    if weight_swap_of(model) is not None:
        raise UserError(f"{told} computes with other weights than it stores (compress): {advice}")
    found = blocks(model)
    owner: dict[int, tuple[str, str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        unit = next((unit for unit in found if name.startswith(f"{unit}.")), "")
        if parameter.ndim == 0:
            raise UserError(f"{told} has a parameter without a dimension, {name!r}, which cannot be cut: {advice}")
        first, where = owner.setdefault(id(parameter), (name, unit))
        if where != unit:
            raise UserError(f"{told} has one weight in two blocks, {first!r} and {name!r}: {advice}")


def _spread(model: nn.Module, device: torch.device, *, compiles: bool = False) -> nn.Module:
    """Each block, and the rest of the model, cut over all ranks; gradients are summed, as the engine's are.

    Args:
        compiles: each block is compiled by itself, so that its weights come and go around what is compiled; a model
            without blocks is one.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    # the outermost too gives its weights up after each forward pass: between passes there are parts and nothing else
    units = (*blocks(model).values(), model)
    for unit in units[: max(1, len(units) - 1)] if compiles else ():
        unit.forward = torch.compile(unit.forward, **DEFAULT)
    for unit in units:
        unit.register_forward_hook(_own)
    for unit in [cast(Any, fully_shard(unit, mesh=mesh, reshard_after_forward=True)) for unit in units]:
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(True)
    return model


def _own(module: nn.Module, given: Any, out: Any) -> Any:
    """Answers that are views of others get memory of their own: what is done to them in place would lose the hook by
    which a unit's weights come back."""
    return tree_map(lambda one: one.clone() if isinstance(one, Tensor) and one._is_view() else one, out)


@torch.no_grad()
def _gather(model: nn.Module, original: nn.Module) -> None:
    """Weights of all ranks into `original`, one tensor after the other."""
    there = original.state_dict()
    for name, value in model.state_dict().items():
        there[name].copy_(gathered(value))


@contextmanager
def told_by_name(roles: Mapping[str, nn.Module]) -> Iterator[None]:
    """What torch says of a model that uses a weight past its module becomes a line with the role's name."""
    try:
        yield
    except (RuntimeError, AssertionError) as error:
        if not any(word in str(error) for word in MIXED):
            raise
        spread = [f"{role} ({type(model).__name__})" for role, model in roles.items() if any_shard(model)]
        raise UserError(
            f"train.sharding: fsdp: {' or '.join(spread)} uses a weight past the module that holds it, is copied, or "
            f"no term looks at its answer: say train.sharding=none ({' '.join(str(error).split())[:100]})"
        ) from error


def any_shard(model: nn.Module) -> bool:
    return any(is_shard(parameter) for parameter in model.parameters())


__all__ = ["Sharding", "blocks", "check", "fits", "told_by_name"]
