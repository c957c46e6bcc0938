"""What a run was made from: the models that it loaded, the files of its samples, the roles that it finished.

They are noted when the run starts (``made_from.json``) and when a role is finished (``state.json``), and looked at
again by ``--resume``: what has changed is named, because a student of half one teacher and half another is no result.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ..adapter.hub import CONFIG
from ..adapter.saved_model import CARD
from ..models.onnx_teacher import files as onnx_files
from ..models.onnx_teacher import is_onnx
from ..runtime.checkpoint import read_json, write_json
from ..runtime.errors import UserError
from ..runtime.saved_steps import file_digest

FILE = "made_from.json"
#: Of a saved model's files, those that a run reads again.
READ = (".safetensors", ".json")
#: Of its card, what is written once its metrics are known, which decides nothing.
TOLD = frozenset({"metrics", "license", "recipe"})
#: Bytes of all samples up to which they are known by their content; beyond it by size and time, unless asked for.
SMALL = 1 << 28
#: Files below a path of the data section that are looked at.
MOST = 5_000_000
#: Lists of samples beside the samples themselves.
LISTS = (".jsonl", ".json", ".txt", ".csv", ".tsv", ".yaml", ".yml")

#: size, time in nanoseconds, digest of the content where it is known.
Known = Sequence[Any]
Files = dict[str, Known]


def model_files(folder: Path) -> dict[str, str]:
    """Digest of each file of a saved model that whoever loads it reads, by its name in `folder`."""
    found = {}
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = Path(place) / name
            if name == CONFIG and CARD in files:  # which says no more than the card
                continue
            if path.suffix in READ and not name.startswith("."):
                found[path.relative_to(folder).as_posix()] = _card_digest(path) if name == CARD else file_digest(path)
    return found


def _card_digest(path: Path) -> str:
    content = read_json(path)
    kept = {key: value for key, value in content.items() if key not in TOLD} if isinstance(content, dict) else content
    return blake2b(json.dumps(kept, sort_keys=True).encode(), digest_size=16).hexdigest()


# ---------------------------------------------------------------- samples


def paths_in(section: Any) -> Iterator[Path]:
    """Every path that a checked section of a recipe names."""
    if isinstance(section, Path):
        yield section
    elif isinstance(section, BaseModel):
        for _, value in section:
            yield from paths_in(value)
    elif isinstance(section, Mapping | list | tuple):
        for value in section.values() if isinstance(section, Mapping) else section:
            yield from paths_in(value)


def sample_files(kind: Any, data: Any, out: Path) -> list[Path]:
    """The files that the samples of a data section stand on, without duplicates, in order.

    Args:
        kind: the adapter's class; one that lists its ``files`` is asked for them, and then of all others below the
            section's paths only lists of samples count.
        out: the run folder, which is no part of them.
    """
    listing = getattr(kind, "files", None)
    listed = [Path(getattr(one, "path", one)) for one in listing(data)] if listing is not None else []
    found = dict.fromkeys(path.expanduser().absolute() for path in listed)
    for path in paths_in(data):
        for file in islice(_below(path.expanduser().absolute(), out.absolute()), MOST):
            if not listed or file.suffix.lower() in LISTS:
                found.setdefault(file)
    return sorted(found)


def _below(path: Path, out: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
    for place, folders, files in os.walk(path, followlinks=True):
        hidden = {name for name in folders if name.startswith(".") or (Path(place) / name) == out}
        folders[:] = sorted(set(folders) - hidden)
        yield from (Path(place) / name for name in files if not name.startswith("."))


def noted(files: Sequence[Path], content: bool) -> Files:
    """Size, time and, of few or where `content` says so, digest of each file, by its name below what they share."""
    root = os.path.commonpath([path.parent for path in files]) if files else ""
    stats = {path: path.stat() for path in files if path.is_file()}
    known = content or sum(stat.st_size for stat in stats.values()) <= SMALL
    return {
        os.path.relpath(path, root): [stat.st_size, stat.st_mtime_ns, file_digest(path) if known else None]
        for path, stat in stats.items()
    }


def samples_differ(before: Mapping[str, Known], now: Mapping[str, Known]) -> list[str]:
    """What of the samples is not what it was: by content where it is known, else by size and time."""
    found = []
    for name in sorted(before.keys() | now.keys()):
        if name not in now or name not in before:
            found.append(f"{name} is {'gone' if name not in now else 'new'}")
            continue
        (size, time, digest), (new_size, new_time, new_digest) = before[name], now[name]
        same_content = digest == new_digest if digest and new_digest else (size, time) == (new_size, new_time)
        if not same_content:
            found.append(
                f"{name} is another file" if size == new_size else f"{name} had {size:,} bytes, has {new_size:,}"
            )
    return found


# ---------------------------------------------------------------- of a run


def origins(loaded: Iterable[tuple[str, Path]], samples: Files) -> dict[str, Any]:
    """What ``made_from.json`` holds: digests of the models that are `loaded`, by role, and the files of the samples."""
    return {"schema": 1, "loaded": {role: _read(path) for role, path in loaded}, "samples": samples}


def _read(path: Path) -> dict[str, str]:
    """Of a model that a run loads: as `model_files`, and where it is an ONNX file, that and what describes it."""
    if not is_onnx(path):
        return model_files(path)
    graphs = [*path.glob("*.onnx*")] if path.is_dir() else onnx_files(path)
    return model_files(path) | {one.name: file_digest(one) for one in sorted(graphs)}


def read(out: Path) -> dict[str, Any]:
    """``made_from.json`` of a run; nothing of one that an older version began."""
    path = out / FILE
    if not path.is_file():
        return {}
    found = read_json(path)
    if not isinstance(found, dict) or not all(isinstance(found.get(key), dict) for key in ("loaded", "samples")):
        raise UserError(f"{path} is damaged: remove it to go on without what it knows of teachers and samples")
    for name, one in found["samples"].items():
        if not isinstance(one, list) or len(one) != 3 or not isinstance(one[0], int):
            raise UserError(f"{path} is damaged at {name!r}: remove it to go on without what it knows of samples")
    return found


def write(out: Path, found: Mapping[str, Any]) -> None:
    write_json(out / FILE, found)


def differences(before: Mapping[str, Any], now: Mapping[str, Any], roles: Mapping[str, Any], out: Path) -> list[str]:
    """What a run's teachers, samples and finished roles are not any more, a line each.

    Args:
        roles: of the run's state; those it finished know the digests of their files.
    """
    found = []
    if before:
        for role in before["loaded"].keys() | now["loaded"].keys():
            theirs, ours = before["loaded"].get(role), now["loaded"].get(role)
            if isinstance(theirs, dict) and isinstance(ours, dict):
                found += [f"the saved {role}: {one}" for one in _files_differ(theirs, ours)]
        if before["samples"]:
            found += [f"data: {one}" for one in samples_differ(before["samples"], now["samples"])]
    for role, entry in roles.items():
        if isinstance(known := entry.get("files"), dict):
            there = model_files(out / role)
            found += [f"{role}, which this run finished: {one}" for one in _files_differ(known, there)]
    return found


def _files_differ(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    return [
        f"{name} is {'gone' if name not in now else 'new' if name not in before else 'not what it was'}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]


def told(found: Sequence[str]) -> str:
    """The first differences and how many more there are."""
    return "; ".join(found[:3]) + (f" and {len(found) - 3:,} more" if len(found) > 3 else "")


__all__ = ["FILE", "differences", "model_files", "noted", "origins", "read", "sample_files", "told", "write"]
