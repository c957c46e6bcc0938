"""Files that are whole or not there: safetensors and JSON. Nothing is pickled, nothing unpickled."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from .bounded_files import MOST_JSON, parse_json, read_bytes, regular
from .errors import RunError, UserError
from .leftovers import temporary


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """A full disk, a size limit or a missing permission becomes one line that names the file."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
        what = "the disk is full (or a file-size limit is hit)" if full else (error.strerror or str(error))
        advice = ": free some space, then --resume" if full else ""
        raise UserError(f"cannot write {path}: {what}; what was complete before is untouched{advice}") from error


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    half = temporary(path)
    with disk_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with half.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            half.replace(path)
            sync_folder(path.parent)
        finally:
            half.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """A rename is safe from a power cut once the folder is on the disk too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, content: Any) -> None:
    """JSON, whole or not at all. Raises `RunError` for NaN and infinity, which JSON does not have."""
    try:
        text = json.dumps(content, indent=2, allow_nan=False)
    except ValueError as error:
        raise RunError(f"{path}: a value of it is NaN or infinite ({error})") from error
    write_bytes(path, f"{text}\n".encode())


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
        raise UserError(f"{path} is not a safetensors file: {' '.join(str(error).split())}") from None


def read_json(path: Path, most: int = MOST_JSON) -> Any:
    """Raises `UserError` for what is missing, no file, too large or nested too deeply, and for what is not JSON."""
    return parse_json(read_bytes(path, most), path)


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds keys and values."""
    found = read_json(path)
    if not isinstance(found, dict):
        raise UserError(f"{path}: a JSON object belongs here, not {type(found).__name__}")
    return found


def damaged(path: Path, error: BaseException) -> UserError:
    """What to say of a file whose content is not of the types that it should be of."""
    told = " ".join(str(error).split())[:120]
    return UserError(f"{path} is damaged, or of another version ({type(error).__name__}: {told})")


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], source: Path | str) -> None:
    """`load_state_dict` whose mismatch is one line with the first missing, unexpected or misshapen name."""
    own = model.state_dict()
    if (lacking := next((name for name in own if name not in tensors), None)) is not None:
        raise UserError(f"{source}: lacks {lacking!r}, which {type(model).__name__} has")
    for name, tensor in tensors.items():
        if name not in own:
            raise UserError(f"{source}: holds {name!r}, which {type(model).__name__} has not")
        if own[name].shape != tensor.shape:
            raise UserError(f"{source}: {name!r} is {tuple(tensor.shape)}, the model's {tuple(own[name].shape)}")
    model.load_state_dict(dict(tensors))


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
    """Put back what `optimizer_state` gave, by parameter name; the groups must hold the same names."""
    saved: dict[str, dict[str, Any]] = {}
    for path, tensor in tensors.items():
        name, _, key = path.rpartition("/")
        saved.setdefault(name, {})[key] = tensor
    mine = [[names[id(p)] for p in group["params"]] for group in optimizer.param_groups]
    if mine != [group["params"] for group in groups]:
        raise UserError("the checkpoint's optimizer holds other parameters than this run's: the recipe has changed")
    order = {name: i for i, name in enumerate(name for group in mine for name in group)}
    packed = [{**group, "params": [order[name] for name in group["params"]]} for group in groups]
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
