"""Hidden features by module path, inside a block and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from ..runtime.errors import UserError, nearest


def find_modules(model: nn.Module, pattern: str) -> list[str]:
    """Module paths that `pattern` names: a path, or a glob over paths (``blocks.*.norm``), in the model's order.

    A ``*`` also crosses dots: ``blocks.*`` is every module below ``blocks``, at any depth.

    Raises `UserError` that offers the nearest paths when there is none.
    """
    paths = [path for path, _ in model.named_modules() if path]
    found = [path for path in paths if fnmatchcase(path, pattern)]
    if not found:
        raise UserError(f"no module {pattern!r} in {type(model).__name__}{nearest(pattern, paths)}")
    return found


def split(feature: str) -> tuple[str, bool]:
    """``("blocks.1", True)`` of ``"blocks.1:input"``: the module's pattern and whether its input is meant."""
    pattern, _, side = feature.partition(":")
    if side not in ("", "input", "output"):
        raise UserError(f"feature {feature!r}: after the colon stands input or output")
    return pattern, side == "input"


@contextmanager
def capture(model: nn.Module, features: Sequence[str]) -> Iterator[dict[str, list[Tensor]]]:
    """Record what the modules named by `features` put out (or take in: ``path:input``) while the block runs.

    Yields a dict from each concrete path (with its ``:input`` where asked for) to the tensors of all its calls in
    order. Hooks are gone when the block ends, whatever happened in it, and the dict is the only one to hold tensors.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    >>> with capture(net, ["0", "1:input"]) as got:
    ...     _ = net(torch.zeros(4, 2))
    >>> [tuple(got[name][0].shape) for name in ("0", "1:input")]
    [(4, 3), (4, 3)]
    """
    taken: dict[str, list[Tensor]] = {}
    handles = []

    def recorder(name: str, of_input: bool) -> Callable[..., None]:
        def record(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if of_input and not args:
                raise UserError(
                    f"module {name.removesuffix(':input')!r} takes its input by keyword: capture its output"
                )
            taken[name].append(_first_tensor(args if of_input else output, name))

        return record

    if features and getattr(model, "_compiled_call_impl", None) is not None:
        raise UserError(
            f"train.compile: {features[0]!r} is inside a compiled model and cannot be captured: leave it out"
        )
    try:
        for feature in features:
            pattern, of_input = split(feature)
            for path in find_modules(model, pattern):
                name = f"{path}:input" if of_input else path
                if name not in taken:
                    taken[name] = []
                    module = model.get_submodule(path)
                    handles.append(module.register_forward_hook(recorder(name, of_input)))
        yield taken
    finally:
        for handle in handles:
            handle.remove()


def only_call(name: str, calls: Sequence[Tensor]) -> Tensor:
    """What a captured module put out, where a loss needs one tensor. Raises `UserError` for none and for several."""
    if len(calls) != 1:
        raise UserError(
            f"module {name!r} was called {len(calls)} times in a forward pass, and a term compares one tensor: "
            + ("capture a module that is used" if not calls else "capture a module around it, or inside it")
        )
    return calls[0]


def _first_tensor(value: Any, name: str) -> Tensor:
    """The tensor itself, or the first of a tuple (attention and recurrent modules return several)."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, tuple | list) and value:
        return _first_tensor(value[0], name)
    raise UserError(f"module {name!r} gave {type(value).__name__}, not a tensor: capture a module inside it")
