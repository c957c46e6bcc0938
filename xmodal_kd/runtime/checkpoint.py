"""Files that are whole or not there: safetensors and JSON. Nothing is pickled, nothing unpickled."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from .bounded_files import is_pointer, regular
from .errors import UserError
from .shards import like
from .whole_files import damaged, disk_errors, read_json, read_object, sync_folder, write_bytes, write_json

#: What stands before every name where a wrapped model was saved: torch.compile's, and those for several processes.
WRAPPERS = ("_orig_mod.", "module.")
POINTER = "a pointer of Git LFS, which git lfs pull replaces by the file"


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """safetensors, whole or not at all. Copied to contiguous CPU memory; shared storage is written twice."""
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    write_bytes(path, save(plain))


def read_tensors(path: Path) -> dict[str, Tensor]:
    regular(path)
    try:
        tensors: dict[str, Tensor] = load_file(path)
        return tensors
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        with path.open("rb") as file:
            why = POINTER if is_pointer(file.read(64)) else " ".join(str(error).split())
        raise UserError(f"{path} is not a safetensors file: {why}") from None


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], source: Path | str) -> None:
    """`load_state_dict` whose mismatch is one line with the first missing, unexpected or misshapen name.

    Weights that the model knows by two names, as a decoder's embedding and head, may be given by one. What a wrapper
    put before all names (torch.compile, DistributedDataParallel) is left out. Raises `UserError` for parameters that
    are NaN or infinite, too.
    """
    own = model.state_dict()
    tensors = _unwrapped(tensors, own)
    places = {name: (value.data_ptr(), value.shape) for name, value in own.items()}
    given = {places[name] for name in tensors if name in own}
    if (lacking := next((name for name in own if name not in tensors and places[name] not in given), None)) is not None:
        raise UserError(f"{source}: lacks {lacking!r}, which {type(model).__name__} has")
    for name, tensor in tensors.items():
        if name not in own:
            raise UserError(f"{source}: holds {name!r}, which {type(model).__name__} has not")
        if own[name].shape != tensor.shape:
            raise UserError(f"{source}: {name!r} is {tuple(tensor.shape)}, the model's {tuple(own[name].shape)}")
    check_finite(((name, tensors[name]) for name, _ in model.named_parameters() if name in tensors), source)
    model.load_state_dict({name: like(own[name], tensor) for name, tensor in tensors.items()}, strict=False)


def _unwrapped(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    while prefix := next((one for one in WRAPPERS if tensors and all(name.startswith(one) for name in tensors)), None):
        if any(name.startswith(prefix) for name in own):
            break
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def check_finite(parameters: Iterable[tuple[str, Tensor]], source: Path | str) -> None:
    """Raises `UserError` for a parameter that is NaN or infinite: of a training that went astray, or a damaged file."""
    broken = next((name for name, one in parameters if one.is_floating_point() and not one.isfinite().all()), None)
    if broken is not None:
        raise UserError(
            f"{source}: {broken!r} is NaN or infinite: its training went astray: take an earlier checkpoint"
        )


def optimizer_state(
    optimizer: torch.optim.Optimizer, names: Mapping[int, str]
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Tensors of an optimizer by ``parameter/key``, and its groups as JSON.

    Args:
        names: name of every parameter, by ``id``.
    """
    tensors = {
        f"{names[id(parameter)]}/{key}": value
        if isinstance(value, Tensor)
        else torch.tensor(value, dtype=torch.float64)
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
        if value is not None
    }
    groups = [
        {k: v for k, v in group.items() if k != "params"} | {"params": [names[id(p)] for p in group["params"]]}
        for group in optimizer.param_groups
    ]
    return tensors, groups


def load_optimizer(
    optimizer: torch.optim.Optimizer,
    names: Mapping[int, str],
    tensors: Mapping[str, Tensor],
    groups: list[dict[str, Any]],
) -> None:
    """Put back what `optimizer_state` gave, by parameter name; the groups must hold the same names.

    Whether a step is one fused call is no state: it is as this process has it, whose parameters may lie elsewhere.
    """
    saved: dict[str, dict[str, Any]] = {}
    mine_by_name = {names[id(p)]: p for group in optimizer.param_groups for p in group["params"]}
    for path, tensor in tensors.items():
        name, _, key = path.rpartition("/")
        saved.setdefault(name, {})[key] = like(mine_by_name[name], tensor) if name in mine_by_name else tensor
    mine = [[names[id(p)] for p in group["params"]] for group in optimizer.param_groups]
    if mine != [group["params"] for group in groups]:
        raise UserError("the checkpoint's optimizer holds other parameters than this run's: the recipe has changed")
    order = {name: i for i, name in enumerate(name for group in mine for name in group)}
    packed = [
        {**group, "params": [order[name] for name in group["params"]]} | {k: own[k] for k in ("fused",) if k in own}
        for group, own in zip(groups, optimizer.param_groups, strict=True)
    ]
    optimizer.load_state_dict({"state": {order[n]: s for n, s in saved.items()}, "param_groups": packed})


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def unprefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries below `prefix`, without it."""
    start = f"{prefix}/"
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Hash of named tensors' bytes, to say whether two models are the same to the bit."""
    from hashlib import blake2b

    hasher = blake2b(digest_size=16)
    for name, tensor in sorted(tensors):
        hasher.update(name.encode())
        hasher.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return hasher.hexdigest()


__all__ = [
    "damaged",
    "digest",
    "disk_errors",
    "load_optimizer",
    "load_weights",
    "optimizer_state",
    "prefixed",
    "read_json",
    "read_object",
    "read_tensors",
    "sync_folder",
    "unprefixed",
    "write_bytes",
    "write_json",
    "write_tensors",
]
